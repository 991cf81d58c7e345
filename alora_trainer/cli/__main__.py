"""``python -m alora_trainer.cli``, for torchrun."""

from __future__ import annotations

import sys

from alora_trainer.cli.command_line import main

sys.exit(main())
