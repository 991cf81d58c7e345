"""`--list-methods` and `--list-settings`, for the command itself and for those that read a recipe: no recipe is needed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from alora_trainer.basics.output import say


def add_listings(parser: argparse.ArgumentParser) -> None:
    """The two options, which print and end the process as ``--help`` does."""
    parser.add_argument("--list-methods", nargs=0, action=_Methods, help="list the methods, and exit")
    parser.add_argument(
        "--list-settings",
        nargs="?",
        metavar="SECTION",
        action=_Settings,
        help="list the sections of a recipe, or the settings of one (tune, domain, alora.lam), and exit",
    )


class _Methods(argparse.Action):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"default": argparse.SUPPRESS})

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from alora_trainer.basics.registry import has_plugins
        from alora_trainer.experiment.recipe.schema.lists import methods_text

        methods = None
        if has_plugins():  # only then: to know theirs, everything must be imported
            from alora_trainer.experiment.methods import METHODS

            methods = {name: method.description for name, method in METHODS.items()}
        say(methods_text(methods))
        parser.exit()


class _Settings(argparse.Action):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"default": argparse.SUPPRESS})

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from alora_trainer.errors import ALoRAError
        from alora_trainer.experiment.recipe.schema.lists import settings_text

        try:
            say(settings_text(values if isinstance(values, str) else None))
        except ALoRAError as error:
            parser.error(str(error))
        parser.exit()
