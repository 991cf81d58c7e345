"""Publishing maps and adapters: everything in one commit, so that a repository has all of it or nothing new."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

from alora_trainer.artefact.adapter_file import write_public_adapter_config
from alora_trainer.artefact.cards.adapter_card import write_adapter_card
from alora_trainer.artefact.cards.evaluation import CardScores
from alora_trainer.artefact.cards.facts import licensed_texts, public_name
from alora_trainer.artefact.cards.map_card import write_map_card
from alora_trainer.artefact.cards.tuning import TUNING_FILE, read_tuning
from alora_trainer.artefact.config_file import write_config
from alora_trainer.artefact.entries import MapConfig
from alora_trainer.artefact.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CARD_FILE,
    CONFIG_FILE,
    HEATMAP_FILE,
    check_inside,
    is_replaceable,
)
from alora_trainer.artefact.hub.benchmarks import RESULTS_FILE, write_benchmark_results
from alora_trainer.artefact.hub.errors import hub_errors
from alora_trainer.artefact.hub.licences import look_up
from alora_trainer.artefact.map_folder import present_folder
from alora_trainer.artefact.reading import verify_map
from alora_trainer.artefact.tensor_file import read_header
from alora_trainer.artefact.theta_files import THETA_FILES
from alora_trainer.artefact.writing import MAX_SHARD_BYTES, chosen_formats, write_map
from alora_trainer.basics.hub_ids import is_hub_id
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.importance_values import ImportanceValues

_OF_AN_ADAPTER = (ADAPTER_FILE, ADAPTER_CONFIG_FILE, RESULTS_FILE)

logger = logging.getLogger(__name__)


def push_map(
    importance: ImportanceValues,
    repo_id: str,
    *,
    storage: str | Sequence[str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **settings: Any,
) -> str:
    """Publish a map that is in memory; `settings` as in `push_folder`. Returns the commit's address.

    Raises:
        ALoRAError: the Hub does not take it.
    """
    formats = chosen_formats(importance, storage)
    with tempfile.TemporaryDirectory(prefix="importance-map-") as folder:
        write_map(importance, Path(folder), formats, max_shard_bytes)
        return push_folder(Path(folder), repo_id, **settings)


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    results: CardScores | None = None,
) -> str:
    """Publish what is in a folder: an importance map, or an adapter that was tuned with one.

    Args:
        folder: from `ImportanceMap.save_pretrained`, or the adapter's folder of a training.
        repo_id: "organisation/name" (or a name, for the token's own user); made if need be.
        private: whether the repository is, if it is made now.
        revision: the branch to commit to, made if need be.
        token: as in `huggingface_hub`.
        commit_message: the commit's first line.
        base_model: the base model's Hub id, where the folder names it by a path.
        license: the licence to state; without it, the one that base model and data have if they have the same.
        results: an evaluation for the card, such as `experiment.report.results.card_scores` reads from a run's results.

    Returns:
        The commit's address.

    Raises:
        ALoRAError: no token is set; the folder holds neither, it is damaged, or the Hub does not take it.
    """
    if base_model is not None and not is_hub_id(base_model):
        raise ALoRAError(f"base_model={base_model!r} is no Hub id: give organisation/name")
    check_token(repo_id, token)
    folder = present_folder(folder)
    prepare = _prepare_map if (folder / CONFIG_FILE).is_file() else _prepare_adapter
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="importance-push-") as rewritten:
        with hub_errors(repo_id, revision, "published"):
            named = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
        statement = _Statement(named, base_model, license, results, token)
        what, files = prepare(folder, Path(rewritten), statement)
        with hub_errors(named, revision, "published"):
            api.create_repo(named, private=private, exist_ok=True)
            return _commit(api, named, revision, files, commit_message or f"Add {what}")


def check_token(repo_id: str, token: str | bool | None) -> None:
    """Raise ALoRAError where there is no token to publish with: the Hub would call it one that may not."""
    if not isinstance(token, str) and (token is False or get_token() is None):
        raise ALoRAError(
            f"{repo_id} cannot be published: no token is set. Log in (`hf auth login`), or set HF_TOKEN to one that may write"
        )


@dataclass(frozen=True)
class _Statement:
    """What whoever publishes says beside what is in the folder; see `push_folder`."""

    repo_id: str
    base_model: str | None
    license: str | None
    results: CardScores | None
    token: str | bool | None


def _commit(api: Any, repo_id: str, revision: str | None, files: Mapping[str, Path], message: str) -> str:
    """One commit with all files, which also takes away what an older map had and this one has not."""
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    head = api.repo_info(repo_id, revision=revision).sha
    there = api.list_repo_files(repo_id, revision=head)
    stale = [name for name in there if (is_replaceable(name) or name in _OF_AN_ADAPTER) and name not in files]
    operations: list[Any] = [CommitOperationDelete(name) for name in stale]
    operations += [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision, parent_commit=head)
    return str(commit.commit_url)


def _prepare_map(folder: Path, rewritten: Path, statement: _Statement) -> tuple[str, dict[str, Path]]:
    """The files of a map to publish, those that must say something else now written anew."""
    config = public_config(verify_map(folder), statement.base_model, statement.license)
    _warn_unnamed(config.info.base_model)
    files = {name: check_inside(folder, name) for name in config.files}
    changed = THETA_FILES[config.theta.type].rewritten_for_public(folder, rewritten, config.info.base_model)
    files |= changed
    config = replace(config, files=config.files | {name: path.stat().st_size for name, path in changed.items()})
    write_config(config, rewritten)
    licences = look_up(config.info.base_model, licensed_texts(config.info.data), config.info.license, statement.token)
    write_map_card(
        config,
        rewritten / CARD_FILE,
        picture=HEATMAP_FILE in files,
        repo_id=statement.repo_id,
        licences=licences,
        results=statement.results,
    )
    files |= {CARD_FILE: rewritten / CARD_FILE, CONFIG_FILE: rewritten / CONFIG_FILE}
    return f"an importance map for {public_name(config.info.base_model)}", files


def public_config(config: MapConfig, base_model: str | None, license: str | None) -> MapConfig:
    """A map's config as it may be published: no path of this machine in it."""
    info = config.info
    named = base_model or info.base_model
    named = named if is_hub_id(named) or named is None else public_name(named)
    data = dict(info.data)
    if isinstance(data.get("sources"), list):
        data["sources"] = [_public_source(source) for source in data["sources"]]
    return replace(config, info=replace(info, base_model=named, license=license or info.license, data=data))


def _public_source(source: Any) -> Any:
    if isinstance(source, Mapping) and "path" in source:
        return {**source, "path": Path(str(source["path"])).name}
    return source


def _warn_unnamed(base_model: str | None) -> None:
    if not is_hub_id(base_model):
        logger.warning(
            f"the base model is {public_name(base_model)}, which is no Hub id, so nobody will find this by its base model: "
            "name it with base_model (--base_model on the command line)"
        )


def _prepare_adapter(folder: Path, rewritten: Path, statement: _Statement) -> tuple[str, dict[str, Path]]:
    """The files of a tuned adapter to publish."""
    if not (folder / ADAPTER_CONFIG_FILE).is_file() or not (folder / TUNING_FILE).is_file():
        raise ALoRAError(
            f"{folder} holds neither an importance map ({CONFIG_FILE}) nor an adapter that was tuned with one ({TUNING_FILE})"
        )
    read_header(check_inside(folder, ADAPTER_FILE))
    tuning = read_tuning(folder).public(statement.base_model)
    _warn_unnamed(tuning.base_model)
    (rewritten / TUNING_FILE).write_text(tuning.to_json(), encoding="utf-8")
    files = {
        ADAPTER_FILE: folder / ADAPTER_FILE,
        ADAPTER_CONFIG_FILE: write_public_adapter_config(folder, rewritten, tuning.base_model),
        TUNING_FILE: rewritten / TUNING_FILE,
        CARD_FILE: rewritten / CARD_FILE,
    }
    licences = look_up(tuning.base_model, licensed_texts(tuning.data), statement.license, statement.token)
    write_adapter_card(
        tuning, rewritten / CARD_FILE, repo_id=statement.repo_id, licences=licences, results=statement.results
    )
    if statement.results is not None:
        benchmarks = rewritten / RESULTS_FILE
        if write_benchmark_results(statement.results, benchmarks, statement.token):
            files[RESULTS_FILE] = benchmarks
    return f"an adapter of {public_name(tuning.base_model)}", files
