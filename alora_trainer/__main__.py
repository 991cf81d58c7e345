"""``python -m alora_trainer``: the `alora` command."""

from __future__ import annotations

import sys

from alora_trainer.cli.command_line import main

sys.exit(main())
