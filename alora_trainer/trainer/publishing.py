"""What a trainer saves and publishes beside its model: the recorded map, how it was protected, and a card that says so."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from alora_trainer.artefact.cards import map_card
from alora_trainer.artefact.cards.adapter_card import RISES, write_adapter_card
from alora_trainer.artefact.cards.facts import licensed_texts
from alora_trainer.artefact.cards.held import holding
from alora_trainer.artefact.cards.tuning import TUNING_FILE, Tuning, read_tuning
from alora_trainer.artefact.config_file import read_config
from alora_trainer.artefact.files import ADAPTER_CONFIG_FILE, CARD_FILE, CONFIG_FILE, HEATMAP_FILE
from alora_trainer.artefact.hub.licences import look_up
from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.artefact.provenance import base_facts
from alora_trainer.basics.files import write_text
from alora_trainer.basics.processes import Processes
from alora_trainer.basics.versions import software_versions
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.base_model import base_revision
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.recording import Recording
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.start import StartFrom

# What a card says of a training, as far as the arguments have it.
_TRAINING = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "seed")


@dataclass(frozen=True)
class Publication:
    """What there is to publish of one training, as it stands at one moment.

    Attributes:
        config: how it records and protects.
        args: the trainer's `transformers.TrainingArguments`.
        state: the trainer's `transformers.TrainerState`: steps so far, and what was logged.
        model: as it came from `from_pretrained` or `get_peft_model`, with nothing wrapped around it.
        adapter: the name of the adapter that trains; None where there is none, or nothing is recorded or held.
        given: the map that holds the training; None for none.
        recorded: the map of a recording that has ended; None before, and for a training that records nothing.
        repo_id: of the Hub repository that the trainer pushes to, if it does.
        initialized: how the adapter's first directions were chosen; empty where they are PEFT's own.
    """

    config: ALoRAConfig
    args: TrainingArguments
    state: TrainerState
    model: nn.Module
    adapter: str | None
    given: ImportanceMap | None
    recorded: ImportanceMap | None
    repo_id: str | None
    initialized: Mapping[str, Any] = field(default_factory=dict)

    @property
    def records(self) -> bool:
        """Whether the training records importance."""
        return self.config.record is not None


class _Secret(str):
    """A token that works as one and stays out of every file: pickled, it is a placeholder."""

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        return str, ("<HUB_TOKEN>",)

    def __copy__(self) -> _Secret:
        return self

    def __deepcopy__(self, memo: Any) -> _Secret:
        return self


@contextmanager
def token_kept_out(args: TrainingArguments) -> Iterator[None]:
    """Inside, training arguments that are pickled, as the Trainer does to publish them, come out without their token."""
    token = args.hub_token
    if token is not None:
        args.hub_token = _Secret(token)
    try:
        yield
    finally:
        args.hub_token = token


def save_beside_model(publication: Publication, folder: str | Path) -> None:
    """Write what a finished or running training has to tell into the folder that its model was saved to.

    A map of the whole recording goes where the model goes, but not into every checkpoint: these hold the recorder's state.
    """
    folder = Path(folder)
    if publication.given is not None:
        write_text(folder / TUNING_FILE, describe_tuning(publication, publication.given).to_json())
    if publication.recorded is not None and not _is_checkpoint(folder, publication.args):
        publication.recorded.save_pretrained(folder)


def save_protected_adapter(
    trainer: Any, folder: str | Path, *, data: Mapping[str, Any], over_merged: bool | None = None
) -> None:
    """Write beside an adapter that was just saved with which map, and how, it was tuned, and its card.

    Beside a whole model there is no card: it would say how to load an adapter.

    Args:
        trainer: an `ALoRAMixin` that was given a map.
        folder: where the adapter is.
        data: what it was tuned on.
        over_merged: whether it is for the base model with the map's own adapter merged into it; None leaves it as the
            training's settings say.

    Raises:
        ALoRAError: the trainer was given no map.
    """
    publication: Publication = trainer.publication()
    if publication.given is None:
        raise ALoRAError("nothing held this training: an adapter that was tuned without a map has no such card")
    tuning = replace(describe_tuning(publication, publication.given), data=dict(data))
    if over_merged is not None:
        tuning = replace(tuning, over_merged=over_merged)
    write_text(Path(folder) / TUNING_FILE, tuning.to_json())
    if publication.config.parameterization is Parameterization.ADAPTER:
        write_adapter_card(tuning, Path(folder) / CARD_FILE)


def prepare_push(
    trainer: Trainer, publication: Publication, recording: Recording | None, checkpoint: str | Path
) -> None:
    """Bring the output folder up to date before `Trainer` uploads it from the middle of a training.

    `Trainer` itself copies its own model files there, and no others. All processes call this together.

    Args:
        trainer: for the upload that may still be going on.
        publication: what there is to publish.
        recording: of the training; None where nothing is recorded.
        checkpoint: the folder that `Trainer` copies from.
    """
    args = publication.args
    if args.hub_strategy == HubStrategy.END:
        return
    pending = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    passed_over = pending and not args.hub_always_push
    if Processes().first(0 if passed_over else None, args.device) is not None:
        return  # Trainer passes this one over, too
    # All processes have a part of it.
    recorded = recording.so_far() if recording is not None and recording.steps > 0 else None
    if not trainer.is_world_process_zero():
        return
    if pending:
        trainer._finish_current_push()  # it is reading the files that are about to change
    folder = Path(str(args.output_dir))
    if recorded is not None and recorded.mean > 0:  # zero while the learning rate has not begun to rise
        recorded.save_pretrained(folder)
        if (Path(checkpoint) / ADAPTER_CONFIG_FILE).is_file():
            # The map's own says the names of the weights where PEFT's has a pattern, and Trainer copies over it.
            write_text(Path(checkpoint) / ADAPTER_CONFIG_FILE, (folder / ADAPTER_CONFIG_FILE).read_text("utf-8"))
    if publication.given is not None:
        write_text(folder / TUNING_FILE, describe_tuning(publication, publication.given).to_json())
    if publication.given is not None or recording is not None:
        write_card(publication, {})


def write_card(publication: Publication, stated: Mapping[str, Any]) -> bool:
    """Write the card of the recorded map or of the protected adapter; False (and nothing) if this training is neither.

    Args:
        publication: what there is to publish; its files are in the output folder already.
        stated: what the caller of `create_model_card` stated: of `license`, `language`, `tags`, `dataset` and the like.
    """
    folder, token = Path(str(publication.args.output_dir)), publication.args.hub_token
    common: dict[str, Any] = {"repo_id": publication.repo_id}
    if publication.records and (folder / CONFIG_FILE).is_file():
        config = read_config(folder)
        common |= _stated(stated, map_card.map_tags(config))
        licences = look_up(config.info.base_model, licensed_texts(config.info.data), stated.get("license"), token)
        picture = (folder / HEATMAP_FILE).is_file()
        map_card.write_map_card(config, folder / CARD_FILE, picture=picture, licences=licences, **common)
        return True
    # Full tuning makes a model and no adapter: the trainer's own card is the right one.
    held = publication.given
    adapts = held is not None and publication.config.parameterization is Parameterization.ADAPTER
    if adapts and (folder / TUNING_FILE).is_file():
        tuning = read_tuning(folder)
        common |= _stated(stated, holding(tuning).tags)
        licences = look_up(tuning.base_model, licensed_texts(tuning.data), stated.get("license"), token)
        write_adapter_card(tuning, folder / CARD_FILE, licences=licences, **common)
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


def describe_tuning(publication: Publication, importance: ImportanceMap) -> Tuning:
    """How the training's adapter (or the model itself) is being tuned, with which map.

    Args:
        publication: of the training.
        importance: the map that it was given.
    """
    args, config, info, origin = publication.args, publication.config, importance.info, importance.origin
    return Tuning(
        base_model=base_facts(publication.model, publication.adapter)["base_model"] or info.base_model,
        base_revision=base_revision(publication.model) or info.base_revision,
        map={
            "repo_id": origin.repo_id if origin else None,
            "commit": origin.commit if origin else None,
            "estimator": info.estimator,
            "storage": importance.storage,
            "tokens": info.tokens,
            "data": dict(info.data),
        },
        protection=config.resolved_protecting(),
        training={"steps": publication.state.global_step, "optimizer": str(getattr(args.optim, "value", args.optim))}
        | {name: getattr(args, name) for name in _TRAINING}
        | {f"initialization_{name}": value for name, value in publication.initialized.items()}
        | _steered(publication)
        | _rises(publication),
        over_merged=config.start_from is StartFrom.MERGED,
        versions=software_versions(),
    )


def _steered(publication: Publication) -> dict[str, float]:
    """Lambda as it was last, where it is not one number throughout."""
    config = publication.config
    if config.lam != "auto" and config.budget is None and config.lam_schedule == "constant":
        return {}
    logged = [log["lam"] for log in publication.state.log_history if "lam" in log]
    return {"last_lambda": logged[-1]} if logged else {}


def _rises(publication: Publication) -> dict[str, float]:
    """How general loss rose by a curvature map's prediction and by a probe, where both were logged together last, or else by
    the prediction alone (nats a token)."""
    logged = [log for log in publication.state.log_history if RISES[0] in log]
    probed = [log for log in logged if RISES[1] in log]
    last = (probed or logged or [{}])[-1]
    return {name: last[name] for name in RISES if name in last}


def _is_checkpoint(folder: Path, args: TrainingArguments) -> bool:
    own = Path(os.path.abspath(str(args.output_dir)))
    return folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-") and Path(os.path.abspath(folder)) != own
