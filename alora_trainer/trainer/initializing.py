"""Where a fresh adapter starts, as a part of a training: its first directions chosen by the domain, and A frozen or not."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset
from transformers import Trainer

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.basics.files import read_json, write_json
from alora_trainer.basics.processes import Processes
from alora_trainer.errors import ALoRAError
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.initialization.domain_passes import Batch, Domain
from alora_trainer.trainer.initialization.initialize import (
    check_map,
    check_weights,
    choose_directions,
    predicted,
)
from alora_trainer.trainer.initialization.settings import DEFAULT
from alora_trainer.trainer.part import Part
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.frozen_a import freeze_a
from alora_trainer.weights.start import StartFrom
from alora_trainer.weights.trained_weight import TrainedWeight

INITIALIZATION_FILE = "adapter_initialization.json"


def initializing_part(importance: ImportanceMap | None, config: ALoRAConfig) -> Initializing | None:
    """The part that chooses a fresh adapter's first directions, or freezes A; None where neither is asked for.

    Args:
        importance: the map of general curvature, if any.
        config: the settings, as they are meant for it.

    Raises:
        ALoRAError: directions are to be chosen, and there is no map, or one of elements, or no fresh adapter.
    """
    if config.init_adapter == DEFAULT and not config.freeze_a:
        return None
    if importance is None and config.record is not None:
        return None  # all that is said of holding is for the training after this one
    if config.init_adapter != DEFAULT and importance is None:
        raise ALoRAError(
            f"init_adapter={config.init_adapter!r} needs a map of general curvature: pass importance=..., one of "
            "kronecker, ekfac or covariance importance (lam=0 holds nothing)"
        )
    if config.init_adapter != DEFAULT and config.start_from is StartFrom.RECORDED:
        raise ALoRAError(
            f"init_adapter={config.init_adapter!r} is for a fresh adapter, and start='recorded' goes on with one that has "
            "learned: say start='bare', or leave init_adapter out"
        )
    if config.init_adapter != DEFAULT and importance is not None:
        check_map(importance, importance, config.init_adapter)
    return Initializing(importance, config)


class Initializing(Part):
    """Sets A before the first step, unless a checkpoint is gone on from, which has it.

    Args:
        importance: a map of general curvature; not needed to freeze A alone.
        config: the settings.

    Attributes:
        facts: how the directions were chosen, as plain data; empty before, and where they are PEFT's own.
    """

    needs_weights = True

    def __init__(self, importance: ImportanceMap | None, config: ALoRAConfig) -> None:
        self._importance = importance
        self._config = config
        self._trainer: Any = None
        self.facts: dict[str, Any] = {}
        self._chooses_later = False
        self._norms: dict[str, float] = {}

    def before_training(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        """Before an optimizer is made, and before an engine has its own copies of the parameters.

        FSDP2 has none, and before it has spread the model, that is in host memory, if it is anywhere.
        """
        self._trainer = trainer
        chooses = self._config.init_adapter != DEFAULT and not resumes
        self._chooses_later = chooses and trainer.is_fsdp_enabled
        if chooses and not self._chooses_later:
            self._choose(weights)
        if self._config.freeze_a:
            freeze_a(
                [weight for weight in weights if isinstance(weight, AdaptedWeight)]
            )  # all, as ALoRAConfig has seen to

    def _choose(self, weights: Sequence[TrainedWeight]) -> None:
        config, trainer = self._config, self._trainer
        assert self._importance is not None
        chosen = check_weights(weights, self._importance)
        batches, items = _batches(trainer, config.init_items, chosen[0].device)
        with _metrics_kept(trainer):
            domain = Domain(
                trainer.model,
                batches,
                lambda batch: _loss(trainer, batch),
                [predicted(batch) for batch in batches],
                items,
            )
            found = choose_directions(
                chosen,
                self._importance,
                domain,
                kind=config.init_adapter,
                damping=config.init_damping,
                memory=config.init_memory,
            )
        self.facts = asdict(found)
        self._norms = {weight.name: float(weight.a.norm()) for weight in chosen}
        self._chooses_later = False

    def begin(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        """Raises ALoRAError if another model has come into the place of the one that was initialised (`model_init`)."""
        if self._chooses_later:
            self._choose(weights)
        for weight in weights:
            assert isinstance(weight, AdaptedWeight)
            known = None if resumes else self._norms.get(weight.name)
            moved = known is not None and abs(float(weight.a.norm()) - known) > 0.01 * known
            if moved or (self._config.freeze_a and weight.parameter_a.requires_grad):
                raise ALoRAError(
                    "the model that trains is another one than that whose adapter was initialised: give the trainer a model, "
                    "and no model_init"
                )

    def load(self, folder: str) -> None:
        if self._config.init_adapter == DEFAULT:
            return
        facts = read_json(Path(folder) / INITIALIZATION_FILE)
        if not isinstance(facts, dict):
            raise ALoRAError(
                f"{folder} does not say how its adapter was initialised (it was saved with init_adapter='default', or by an "
                "earlier version): resume with init_adapter='default', or start again"
            )
        self.facts = facts

    def save(self, folder: str) -> None:
        if self.facts and self._trainer.args.should_save:
            write_json(Path(folder) / INITIALIZATION_FILE, self.facts)


def _batches(trainer: Any, items: int, device: torch.device) -> tuple[list[Batch], int]:
    """This process's share of the items, evenly spaced over the data set, or from the beginning of a stream; how many it has.

    A batch may have more rows than items (a preference has two) or fewer (packed ones have one), so that rows are not counted.
    """
    if trainer.train_dataset is None:
        raise ALoRAError("init_adapter chooses directions by the domain's items: pass a train_dataset")
    data, collate = trainer.train_dataset, trainer.data_collator
    if hasattr(data, "remove_columns") and hasattr(data, "__len__"):  # of datasets, which is not imported for it
        data = trainer._remove_unused_columns(data, description="training")
    else:
        collate = trainer._get_collator_with_removed_columns(collate, description="training")
    processes = Processes()
    share: Any
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        share = list(itertools.islice(data, processes.rank, items, processes.count))
    else:
        count = min(items, len(data))
        places = [place * len(data) // count for place in range(count)]
        share = Subset(data, places[processes.rank :: processes.count])
    batches = DataLoader(share, batch_size=trainer.args.train_batch_size, collate_fn=collate)
    found: list[Batch] = []
    for batch in batches if len(share) else ():
        prepared = trainer._prepare_inputs({k: value for k, value in batch.items() if isinstance(value, torch.Tensor)})
        # Where an engine has not put the model on its device yet, the trainer's is another than the model's.
        found.append({name: value.to(device) for name, value in prepared.items()})
    return found, len(share)


def _loss(trainer: Any, batch: Batch) -> torch.Tensor:
    with trainer.compute_loss_context_manager():
        loss: torch.Tensor = trainer.compute_loss(trainer.model, dict(batch))
    return loss


@contextmanager
def _metrics_kept(trainer: Any) -> Iterator[None]:
    """TRL's trainers count in every loss that they compute; those inside are none of the evaluation's."""
    before: Mapping[str, Any] | None = copy.deepcopy(getattr(trainer, "_metrics", None))
    try:
        yield
    finally:
        if before is not None:
            trainer._metrics = before
