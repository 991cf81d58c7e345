"""The `alora` command's subcommands, one module each.

A module has ``add(commands)``, which adds its parser, and a function that does the work, given to the parser as `execute`.
Nothing heavy is imported before that function runs.
"""

from __future__ import annotations

from alora_trainer.commands import demo, evaluate, inspect, pull, push, record, run, search, tune

# In the order of `alora --help`.
COMMANDS = (demo, run, record, tune, evaluate, search, inspect, pull, push)
