"""The `alora` command's subcommands, one module each.

A module has ``add(commands)``, which adds its parser, and a function that does the work, given to the parser as `execute`.
Nothing heavy is imported before that function runs.
"""

from __future__ import annotations

from alora_trainer.cli.commands import (
    board,
    check,
    compare,
    completion,
    demo,
    evaluate,
    fit,
    init,
    inspect,
    plan,
    pull,
    push,
    record,
    report,
    run,
    scale,
    schema,
    search,
    sweep,
    tasks,
    tune,
)

# In the order of `alora --help`.
COMMANDS = (
    *(demo, fit, init, check, plan, run, record, tune, evaluate, sweep, board, report, compare, schema, tasks),
    *(scale, search, inspect, pull, push, completion),
)  # fmt: skip
