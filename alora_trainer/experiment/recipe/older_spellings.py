"""Recipes as earlier versions wrote them: every old key is put where it belongs today, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from alora_trainer.basics.output import OlderSpelling
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.settings import as_mapping
from alora_trainer.weights.start import with_start


def in_todays_spelling(sections: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A recipe's sections by name, with `alora.save_storage` as `map.storage`, and `start` and `fresh_base` as one `start`.

    Raises:
        ALoRAError: one thing is set in both spellings; there is no such start.
    """
    alora, saved = dict(sections["alora"]), dict(sections["map"])
    if "save_storage" in alora:
        if "storage" in saved:
            raise ALoRAError("alora.save_storage is an older spelling of map.storage: leave it out")
        warnings.warn("alora.save_storage is an older spelling: say map.storage", OlderSpelling, stacklevel=2)
        saved["storage"] = alora.pop("save_storage")
    options = {
        method: {**given, "alora": with_start(as_mapping(given["alora"], f"method_options.{method}.alora"), over=alora)}
        if isinstance(given, Mapping) and "alora" in given
        else given
        for method, given in sections["method_options"].items()
    }
    return {**sections, "alora": with_start(alora), "map": saved, "method_options": options}
