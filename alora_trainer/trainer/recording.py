"""Stage A as a part of a training: importance is recorded while the trainer trains, whatever it trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from transformers import Trainer

from alora_trainer.artefact.importance_map import ImportanceMap, as_map
from alora_trainer.artefact.provenance import describe_recording
from alora_trainer.basics.processes import Processes
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.base_model import check_base
from alora_trainer.importance.kinds.ekfac import EKFAC
from alora_trainer.importance.kinds.elementwise import ELEMENTWISE
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.recording.recorder import Recorder
from alora_trainer.trainer.checkpoint import load_recorder, save_recorder
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.part import Part
from alora_trainer.weights.sharding import gathered
from alora_trainer.weights.start import StartFrom
from alora_trainer.weights.trained_weight import Matrices, TrainedWeight, check_optimized, learning_rates


class Recording(Part):
    """Records the importance of the weights that train (arXiv 2501.13669 eq. 13-15).

    It comes after the parts that move weights, so that the whole movement of a step is recorded.

    Args:
        config: with an estimator as its `record`.
        earlier: a map that the recorded one is added to, of what was learned before; None for none.

    Raises:
        ALoRAError: there is no map at the place of the configuration's `basis`; importance of the kind that would be recorded
            cannot be added to the earlier map's.

    Attributes:
        recorder: of the training that is under way; None before and after.
        recorded: the map of the last training that was recorded to its end; None before.
    """

    needs_weights = True

    def __init__(self, config: ALoRAConfig, earlier: ImportanceMap | None = None) -> None:
        self._config = config
        self._earlier = earlier
        self._basis = None if config.basis is None else as_map(config.basis)
        kind = ELEMENTWISE if self._basis is None else EKFAC
        if earlier is not None and earlier.kind != kind:
            raise ALoRAError(
                f"the importance that would be recorded is {kind}, and that of the map that holds this training is "
                f"{earlier.kind}: they cannot be added up; set basis to record along directions, or record=None"
            )
        self._trainer: Trainer | None = None
        self.recorder: Recorder | None = None
        self.recorded: ImportanceMap | None = None

    @property
    def watches_gradients(self) -> bool:
        return self.recorder is not None

    @property
    def ends_training(self) -> bool:
        """Whether as many tokens are recorded as `record_tokens` asks for."""
        limit = self._config.record_tokens
        return self.recorder is not None and limit is not None and self.recorder.tokens >= limit

    @property
    def steps(self) -> int:
        """Optimizer steps recorded so far in the training that is under way."""
        return self.recorder.steps if self.recorder is not None else 0

    def begin(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        if self._config.record is None:
            raise ALoRAError("there is nothing to record with: set record to an estimator, such as 'projected'")
        if self.recorder is not None:  # of a training that was broken off
            self.recorder.close()
        if not trainer.is_deepspeed_enabled:  # whose optimizer has flat copies of the parameters
            check_optimized(weights, trainer.optimizer)
        self._trainer = trainer
        assert self._config.xi is not None  # None stands for the default, which it is by now
        with gathered(parameter for weight in weights for parameter in weight.parameters):
            self.recorder = Recorder(
                weights,
                self._config.record,
                self._config.xi,
                bases=self._bases(trainer.model, weights),
                location=self._config.omega_device,
                fold_every=self._config.fold_every,
                folder=Path(trainer.args.output_dir) / f"importance-recording-{trainer.args.process_index}",
            )

    def _bases(self, model: Any, weights: Sequence[TrainedWeight]) -> Mapping[str, Importance] | None:
        basis = self._basis
        if basis is None:
            return None
        # An earlier adapter that is merged into the base has moved it from where the directions were found.
        if self._config.start_from is not StartFrom.MERGED or self._earlier is None:
            known = {weight.name: weight for weight in weights if weight.name in basis}
            check_base(model, basis, known, allow_other_revision=self._config.allow_other_revision)
        return {weight.name: basis.stored(weight.name) for weight in weights if weight.name in basis}

    @property
    def _along(self) -> str | None:
        """The directions in words; see `ImportanceInfo`."""
        if self._basis is None:
            return None
        where = f" of {self._basis.origin}" if self._basis.origin is not None else ""
        return f"the directions of {self._basis.kind} importance{where} ({self._basis.info.tokens:,} tokens)"

    def load(self, folder: str) -> None:
        load_recorder(self._under_way()[1], folder)

    def save(self, folder: str) -> None:
        save_recorder(self._under_way()[1], folder)

    def before_step(self, gradients: Mapping[str, Matrices], *, loss_scale: float | None, tokens: int) -> None:
        trainer, recorder = self._under_way()
        recorder.tokens += int(Processes().total(tokens, trainer.args.device))
        with self._whole():
            recorder.before_step(gradients, self._learning_rates(), loss_scale=loss_scale)

    def after_step(self, *, skipped: bool) -> None:
        with self._whole():
            self._under_way()[1].after_step(skipped=skipped)

    def _whole(self) -> AbstractContextManager[None]:
        weights = self._under_way()[1].weights
        return gathered(parameter for weight in weights for parameter in weight.parameters)

    def _learning_rates(self) -> dict[int, float]:
        trainer, recorder = self._under_way()
        if not trainer.is_deepspeed_enabled:
            return learning_rates(trainer.optimizer)
        rates = {float(group["lr"]) for group in trainer.optimizer.param_groups}
        if len(rates) > 1:
            raise ALoRAError(
                f"DeepSpeed's optimizer has several learning rates ({', '.join(map(str, sorted(rates)))}), and does not say of "
                "which parameters: put all into one parameter group"
            )
        return {id(parameter): rate for rate in rates for w in recorder.weights for parameter in w.parameters}

    def end(self) -> dict[str, float]:
        trainer, recorder = self._under_way()
        with self._whole():
            self.recorder = None
            self.recorded = self._with_earlier(describe_recording(trainer, recorder, basis=self._along))
        return {}

    def so_far(self) -> ImportanceMap:
        """The map of the steps that were recorded until now; the recording goes on untouched. All processes call it together.

        Raises:
            ALoRAError: no step was recorded yet.
        """
        trainer, recorder = self._under_way()
        with self._whole():
            return self._with_earlier(describe_recording(trainer, recorder, basis=self._along, so_far=True))

    def _with_earlier(self, recorded: ImportanceMap) -> ImportanceMap:
        return recorded if self._earlier is None else self._earlier + recorded

    def _under_way(self) -> tuple[Trainer, Recorder]:
        if self._trainer is None or self.recorder is None:
            raise ALoRAError("no recording is under way: importance is recorded during trainer.train()")
        return self._trainer, self.recorder
