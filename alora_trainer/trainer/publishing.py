"""What a trainer saves and publishes beside its model: the recorded map, how it was protected, and a card that says so."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_trainer.artefact.cards.facts import licensed_texts
from alora_trainer.artefact.cards.tuning import TUNING_FILE, Tuning, read_tuning
from alora_trainer.artefact.config_file import read_config
from alora_trainer.artefact.files import CARD_FILE, CONFIG_FILE, HEATMAP_FILE
from alora_trainer.artefact.hub.licences import look_up
from alora_trainer.basics.files import write_text
from alora_trainer.basics.processes import Processes
from alora_trainer.importance.base_model import base_revision
from alora_trainer.trainer.config import PROTECTING
from alora_trainer.weights.model_weights import adapter_of
from alora_trainer.weights.parameterization import Parameterization

if TYPE_CHECKING:
    from alora_trainer.artefact.importance_map import ImportanceMap
    from alora_trainer.importance.recording.recorder import Recorder


# What a card says of a training, as far as the arguments have it.
_TRAINING = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "seed")


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


def save_beside_model(trainer: Any, folder: str | Path) -> None:
    """Write what a finished or running training has to tell into the folder that its model was saved to.

    A map of the whole recording goes where the model goes, but not into every checkpoint: these hold the recorder's state.
    """
    folder = Path(folder)
    if trainer._given_importance is not None:
        write_text(folder / TUNING_FILE, describe_tuning(trainer).to_json())
    recorded = _recorded(trainer)
    if recorded is not None and not _is_checkpoint(trainer, folder):
        recorded.save_pretrained(folder)


def save_protected_adapter(
    trainer: Any, folder: str | Path, *, data: Mapping[str, Any], over_merged: bool | None = None
) -> None:
    """Write beside an adapter that was just saved with which map, and how, it was tuned, and its card.

    Beside a whole model there is no card: it would say how to load an adapter.

    Args:
        data: what it was tuned on.
        over_merged: whether it is for the base model with the map's own adapter merged into it; None leaves it as the
            training's settings say.
    """
    from alora_trainer.artefact.cards.adapter_card import write_adapter_card

    tuning = replace(describe_tuning(trainer), data=dict(data))
    if over_merged is not None:
        tuning = replace(tuning, over_merged=over_merged)
    write_text(Path(folder) / TUNING_FILE, tuning.to_json())
    if trainer._given_importance.parameterization is Parameterization.ADAPTER:
        write_adapter_card(tuning, Path(folder) / CARD_FILE)


def prepare_push(trainer: Any, checkpoint_folder: str) -> None:
    """Bring the output folder up to date before `Trainer` uploads it from the middle of a training.

    `Trainer` itself copies its own model files there, and no others. All processes call this together.
    """
    from transformers.trainer_utils import HubStrategy

    args = trainer.args
    if args.hub_strategy == HubStrategy.END:
        return
    pending = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    passed_over = pending and not args.hub_always_push
    if Processes().first(0 if passed_over else None, args.device) is not None:
        return  # Trainer passes this one over, too
    recorder = trainer._recorder
    recording = recorder is not None and recorder.steps > 0
    recorded = recorded_so_far(trainer, recorder) if recording else None  # all processes have a part of it
    if not trainer.is_world_process_zero():
        return
    if pending:
        trainer._finish_current_push()  # it is reading the files that are about to change
    folder = Path(args.output_dir)
    if recorded is not None:
        recorded.save_pretrained(folder)
    if trainer._given_importance is not None:
        write_text(folder / TUNING_FILE, describe_tuning(trainer).to_json())
    if trainer._given_importance is not None or recorder is not None:
        write_card(trainer, {})


def recorded_so_far(trainer: Any, recorder: Recorder) -> ImportanceMap:
    """The map of the steps that were recorded until now; the recording goes on untouched."""
    from alora_trainer.artefact.provenance import describe_recording

    recorded = describe_recording(trainer, recorder, so_far=True)
    return recorded if trainer._given_importance is None else trainer._given_importance + recorded


def write_card(trainer: Any, given: Mapping[str, Any]) -> bool:
    """Write the card of the recorded map or of the protected adapter; False (and nothing) if this training is neither.

    Args:
        given: what the caller of `create_model_card` stated: of `license`, `language`, `tags`, `dataset` and the like.
    """
    from alora_trainer.artefact.cards import adapter_card, map_card

    folder = Path(trainer.args.output_dir)
    common: dict[str, Any] = {"repo_id": getattr(trainer, "hub_model_id", None)}
    if trainer._records and (folder / CONFIG_FILE).is_file():
        config = read_config(folder)
        common |= _stated(given, map_card.map_tags(config))
        licences = look_up(
            config.info.base_model, licensed_texts(config.info.data), given.get("license"), trainer.args.hub_token
        )
        picture = (folder / HEATMAP_FILE).is_file()
        map_card.write_map_card(config, folder / CARD_FILE, picture=picture, licences=licences, **common)
        return True
    # Full tuning makes a model and no adapter: the trainer's own card is the right one.
    held = trainer._given_importance
    adapts = held is not None and held.parameterization is Parameterization.ADAPTER
    if adapts and (folder / TUNING_FILE).is_file():
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
    """How the trainer's adapter (or the model itself) is being tuned, with which map."""
    from alora_trainer.artefact.provenance import base_facts
    from alora_trainer.basics.versions import software_versions

    importance, args, alora = trainer._given_importance, trainer.args, trainer.alora
    model = trainer.accelerator.unwrap_model(trainer.model)
    info, origin = importance.info, importance.origin
    return Tuning(
        base_model=base_facts(model, adapter_of(trainer._weights))["base_model"] or info.base_model,
        base_revision=base_revision(model) or info.base_revision,
        map={
            "repo_id": origin.repo_id if origin else None,
            "commit": origin.commit if origin else None,
            "estimator": info.estimator,
            "storage": importance.storage,
            "tokens": info.tokens,
            "data": dict(info.data),
        },
        protection={name: getattr(alora, name) for name in PROTECTING},
        training={"steps": trainer.state.global_step, "optimizer": str(getattr(args.optim, "value", args.optim))}
        | {name: getattr(args, name) for name in _TRAINING}
        | _steered(trainer),
        over_merged=alora.start == "fresh" and alora.fresh_base == "merged",
        versions=software_versions(),
    )


def _steered(trainer: Any) -> dict[str, float]:
    """Lambda as it was last, where it is not one number throughout."""
    alora = trainer.alora
    if alora.lam != "auto" and alora.budget is None and alora.lam_schedule == "constant":
        return {}
    logged = [log["lam"] for log in trainer.state.log_history if "lam" in log]
    return {"last_lambda": logged[-1]} if logged else {}


def _recorded(trainer: Any) -> ImportanceMap | None:
    """The map of a recording that has ended; None during it, and for a training that records nothing."""
    if not trainer._records or trainer._recorder is not None:
        return None
    return trainer.importance if trainer.importance is not trainer._given_importance else None


def _is_checkpoint(trainer: Any, folder: Path) -> bool:
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    own = Path(os.path.abspath(trainer.args.output_dir))
    return folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-") and Path(os.path.abspath(folder)) != own
