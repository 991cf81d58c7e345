"""What a trainer saves and publishes beside its model: the recorded map, how it was protected, and a card that says so."""

from __future__ import annotations

import inspect
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from alora_trainer.cards.facts import licensed_texts
from alora_trainer.cards.tuning import TUNING_FILE, Tuning, read_tuning
from alora_trainer.hub.licences import look_up
from alora_trainer.importance.base_model import base_revision
from alora_trainer.importance.config_file import read_config
from alora_trainer.importance.files import CARD_FILE, CONFIG_FILE, HEATMAP_FILE
from alora_trainer.parts import write_text

if TYPE_CHECKING:
    from alora_trainer.importance.map import ImportanceMap
    from alora_trainer.importance.recorder import Recorder


# What a card says of a training, as far as the arguments have it.
_TRAINING = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "seed")
# What protecting depends on; the rest of ALoRAConfig is about recording.
_RECORDING = ("record", "xi", "omega_device", "fold_every", "record_tokens")


class _Secret(str):
    """A token that works as one and stays out of every file: pickled, it is a placeholder."""

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        return str, ("<HUB_TOKEN>",)

    def __copy__(self) -> _Secret:
        return self

    def __deepcopy__(self, memo: Any) -> _Secret:
        return self


def keep_token_out_of_files(args: Any) -> None:
    """See to it that the pickled training arguments, which the Trainer publishes, hold no token."""
    if args.hub_token is not None:
        args.hub_token = _Secret(args.hub_token)


def save_beside_model(trainer: Any, folder: str | Path, data: Mapping[str, Any] | None = None) -> None:
    """Write what a finished or running training has to tell into the folder that its model was saved to.

    A map of the whole recording goes where the model goes, but not into every checkpoint: these hold the recorder's state.

    Args:
        data: what the adapter was tuned on, for its card.
    """
    folder = Path(folder)
    if trainer._given_importance is not None:
        write_text(folder / TUNING_FILE, replace(describe_tuning(trainer), data=dict(data or {})).to_json())
    recorded = _recorded(trainer)
    if recorded is not None and not _is_checkpoint(trainer, folder):
        recorded.save_pretrained(folder)


def prepare_push(trainer: Any, checkpoint_folder: str) -> None:
    """Bring the output folder up to date before `Trainer` uploads it from the middle of a training.

    `Trainer` itself copies its own model files there, and no others.
    """
    from transformers.trainer_utils import HubStrategy

    args = trainer.args
    if not trainer.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
        return
    pending = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    if pending and not args.hub_always_push:
        return  # Trainer passes this one over, too
    if pending:
        trainer._finish_current_push()  # it is reading the files that are about to change
    folder = Path(args.output_dir)
    recorder = trainer._recorder
    if recorder is not None and recorder.steps > 0:
        recorded_so_far(trainer, recorder).save_pretrained(folder)
    if trainer._given_importance is not None:
        write_text(folder / TUNING_FILE, describe_tuning(trainer).to_json())
    if trainer._given_importance is not None or recorder is not None:
        write_card(trainer, {})


def recorded_so_far(trainer: Any, recorder: Recorder) -> ImportanceMap:
    """The map of the steps that were recorded until now; the recording goes on untouched."""
    from alora_trainer.provenance import describe_recording

    recorded = describe_recording(trainer, cast(Any, _SoFar(recorder)))
    return recorded if trainer._given_importance is None else trainer._given_importance + recorded


class _SoFar:
    """A recorder as `describe_recording` sees it, whose end is now and costs the real one nothing."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, name)

    def finish(self) -> dict[str, torch.Tensor]:
        """Omega of the steps so far (eq. 15), in host memory."""
        from alora_trainer.importance.estimators import movement_factors
        from alora_trainer.importance.fold import consolidate

        tensors, _ = self._recorder.state_dict()
        omega = {}
        for weight in self._recorder.weights:
            w, start_a, start_b = (tensors[f"{weight.name}.{part}"] for part in ("w", "start_a", "start_b"))
            a, b = weight.a.to(weight.dtype), weight.b.to(weight.dtype)
            total = movement_factors(start_a, start_b, a, b, weight.scaling)
            omega[weight.name] = consolidate(w.clone(), total.to(w.device), self._recorder.xi).cpu()
        return omega


def write_card(trainer: Any, given: Mapping[str, Any]) -> bool:
    """Write the card of the recorded map or of the protected adapter; False (and nothing) if this training is neither.

    Args:
        given: what the caller of `create_model_card` stated: of `license`, `language`, `tags`, `dataset` and the like.
    """
    from alora_trainer.cards import adapter_card, map_card

    folder = Path(trainer.args.output_dir)
    common: dict[str, Any] = {"repo_id": getattr(trainer, "hub_model_id", None)}
    if trainer._records and (folder / CONFIG_FILE).is_file():
        config = read_config(folder)
        common |= _stated(given, map_card.TAGS)
        licences = look_up(
            config.info.base_model, licensed_texts(config.info.data), given.get("license"), trainer.args.hub_token
        )
        picture = (folder / HEATMAP_FILE).is_file()
        map_card.write_map_card(config, folder / CARD_FILE, picture=picture, licences=licences, **common)
        return True
    if trainer._given_importance is not None and (folder / TUNING_FILE).is_file():
        tuning = read_tuning(folder)
        common |= _stated(given, adapter_card.TAGS)
        licences = look_up(tuning.base_model, licensed_texts(tuning.data), given.get("license"), trainer.args.hub_token)
        adapter_card.write_adapter_card(tuning, folder / CARD_FILE, licences=licences, **common)
        return True
    return False


def card_arguments(
    function: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a trainer's own `create_model_card` by name, whatever that trainer calls them."""
    return dict(inspect.signature(function).bind_partial(*arguments, **named).arguments)


def _stated(given: Mapping[str, Any], tags: tuple[str, ...]) -> dict[str, Any]:
    """Metadata that a caller stated, as a setting of the card."""
    stated = {"language": given.get("language"), "datasets": given.get("dataset") or given.get("dataset_name")}
    extra = given.get("tags") or []
    extra = [extra] if isinstance(extra, str) else list(extra)
    stated["tags"] = list(dict.fromkeys([*tags, *extra]))
    return {"metadata": {key: value for key, value in stated.items() if value}}


def describe_tuning(trainer: Any) -> Tuning:
    """How the trainer's adapter is being tuned, with which map."""
    import alora_trainer

    importance, args = trainer._given_importance, trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.peft_config[trainer._weights[0].adapter]
    info, origin = importance.info, importance.origin
    return Tuning(
        base_model=config.base_model_name_or_path or info.base_model,
        base_revision=base_revision(model) or info.base_revision,
        map={
            "repo_id": origin.repo_id if origin else None,
            "commit": origin.commit if origin else None,
            "estimator": info.estimator,
            "storage": importance.storage,
            "tokens": info.tokens,
            "data": dict(info.data),
        },
        protection={key: value for key, value in asdict(trainer.alora).items() if key not in _RECORDING},
        training={"steps": trainer.state.global_step, "optimizer": str(getattr(args.optim, "value", args.optim))}
        | {name: getattr(args, name) for name in _TRAINING},
        versions={
            "python": platform.python_version(),
            "alora_trainer": alora_trainer.__version__,
            **{package: version(package) for package in ("torch", "transformers", "peft")},
        },
    )


def _recorded(trainer: Any) -> ImportanceMap | None:
    """The map of a recording that has ended; None during it, and for a training that records nothing."""
    if not trainer._records or trainer._recorder is not None:
        return None
    return trainer.importance if trainer.importance is not trainer._given_importance else None


def _is_checkpoint(trainer: Any, folder: Path) -> bool:
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    own = Path(os.path.abspath(trainer.args.output_dir))
    return folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-") and Path(os.path.abspath(folder)) != own
