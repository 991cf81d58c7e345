"""The embedded default: a small base model, general text that every Python brings along, and a domain of our own.

Everything the demo needs is in the package or in the Python that runs it: no download, no data beside the repository.
"""

from __future__ import annotations

from pathlib import Path

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.demo import corpus, elements

FOLDER = Path(__file__).resolve().parent
MODEL = FOLDER / "model"
RECIPE = FOLDER / "recipe.yaml"


def variables(folder: Path) -> dict[str, str]:
    """What ``recipe.yaml`` interpolates, with its data in `folder`; nothing is written.

    Raises:
        ALoRAError: the package has no model.
    """
    if not (MODEL / "model.safetensors").is_file():
        raise ALoRAError(
            f"the demo's base model is missing from {MODEL}; reinstall alora-trainer, "
            "or make it with `python -m alora_trainer.experiment.demo.build --output_dir` and that folder"
        )
    return {"ALORA_DEMO_DATA": str(Path(folder).resolve()), "ALORA_DEMO_MODEL": str(MODEL)}


def prepare(folder: Path) -> dict[str, str]:
    """Write the data files that ``recipe.yaml`` names under ``folder`` and return the variables it interpolates.

    The general text is extracted from the standard library of the Python that runs (a few seconds). What is there stays as it
    is, since what was trained on it depends on it, whichever Python runs later.

    Raises:
        ALoRAError: the package has no model, or the Python that runs has no source files.
    """
    folder, found = Path(folder), variables(folder)
    names = [f"{name}_{split}.jsonl" for name in (*corpus.SUBSETS, "elements") for split in ("train", "test")]
    if not all((folder / name).is_file() for name in names):
        corpus.write_general_text(folder)
        elements.write_questions(folder)
    return found
