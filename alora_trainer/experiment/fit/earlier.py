"""What a fit takes over from elsewhere: the map and the items of an earlier fit, or a map that the Hub has."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from alora_trainer.artefact.hub.search import search_maps
from alora_trainer.basics.files import read_json, write_json
from alora_trainer.basics.hub_ids import is_hub_id
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.fit.files import FOUND
from alora_trainer.experiment.fit.probing import PROBES
from alora_trainer.experiment.fit.request import SEARCH, FitRequest
from alora_trainer.experiment.fit.set_aside import FOUND_MAP, HELD_BY
from alora_trainer.experiment.fit.validation import VALIDATION
from alora_trainer.experiment.methods import get_method
from alora_trainer.importance.recording.measured import Measured

logger = logging.getLogger(__name__)


def with_earlier(request: FitRequest) -> FitRequest:
    """The request with the items of the fit that it comes after among its data, and its map, unless another one is named.

    All are learned together, by a new adapter: one that went on from the earlier one would forget what that had learned. The
    test of the earlier fit is not among them.

    Raises:
        ALoRAError: there is no fit in that folder, or it was of another model.
    """
    if request.after is None:
        return request
    folder = request.after
    if not (folder / "data" / FOUND).is_file():
        raise ALoRAError(f"--after {folder} holds no fit: name the --output_dir of an earlier `alora fit`")
    learned = [folder / "data" / name for name in ("train.jsonl", VALIDATION)]
    data = (*(str(path) for path in learned if path.exists()), *request.data)
    importance = request.importance
    if importance is None:
        places = (folder / part / _measured(request).folder / "map" for part in ("run", PROBES))
        # A fit that was held by a map which it did not measure says by which.
        held = (read_json(folder / HELD_BY) or {}).get("importance")
        importance = next((str(place) for place in places if place.is_dir()), held)
    return replace(request, data=data, importance=importance, after=None)


def with_found_map(request: FitRequest) -> FitRequest:
    """The request with the map that it asks to be searched for on the Hub; one is measured where there is none.

    What was found is kept in the result's folder: a fit that goes on is held by the same map.

    Raises:
        ALoRAError: the model is not of the Hub, or the Hub cannot be asked.
    """
    if request.importance != SEARCH:
        return request
    if Path(request.model).is_dir() or not is_hub_id(request.model):
        raise ALoRAError(
            f"--importance {SEARCH} looks for maps of a model of the Hub, and {request.model} is a folder: name a map, or "
            "leave it out"
        )
    kept = read_json(request.output_dir / FOUND_MAP)
    if kept is None:
        wanted = _measured(request).name
        found = [one.repo_id for one in search_maps(request.model) if one.estimator == wanted]
        kept = {"importance": found[0] if found else None}
        write_json(request.output_dir / FOUND_MAP, kept)
        logger.info(
            f"the map of {found[0]}" if found else f"no {wanted} map of {request.model} on the Hub: one is measured"
        )
    return replace(request, importance=kept["importance"])


def note_map(request: FitRequest) -> None:
    """Note in the result's folder by which map the fit is held, where it measures none: a later one is held by the same."""
    given = request.importance
    if given is not None:
        path = Path(given)
        write_json(request.output_dir / HELD_BY, {"importance": str(path.resolve()) if path.is_dir() else given})


def _measured(request: FitRequest) -> Measured:
    measured = get_method(request.method).measured
    assert measured is not None  # the request was checked
    return measured
