"""What the server keeps: repositories with commits, branches and large objects, all in memory."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any

import yaml

KINDS = ("model", "dataset")
_LARGE = (".safetensors", ".parquet", ".png", ".bin", ".pt")


@dataclass(frozen=True)
class Blob:
    """One file's content; `large` ones are kept as the Hub keeps LFS files."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """git's own name for the content, as the client computes it to skip what has not changed."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


@dataclass
class Repo:
    """A repository: commits by hash, and branches and tags that point to them."""

    kind: str
    id: str
    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob], message: str, branch: str = "main") -> str:
        listing = json.dumps([self.id, len(self.commits), message, sorted((n, b.sha256) for n, b in files.items())])
        sha = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[sha] = files
        self.messages[sha] = message
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def card(self, sha: str) -> dict[str, Any]:
        """The metadata of the card in a commit; empty if there is none."""
        readme = self.commits[sha].get("README.md")
        return card_metadata(readme.content.decode()) if readme else {}

    def tags(self, sha: str) -> list[str]:
        """Tags as the Hub derives them from a card."""
        card = self.card(sha)
        tags = [str(tag) for tag in card.get("tags") or []]
        bases = card.get("base_model") or []
        relation = card.get("base_model_relation")
        for base in [bases] if isinstance(bases, str) else bases:
            tags += [f"base_model:{base}"] + ([f"base_model:{relation}:{base}"] if relation else [])
        if "license" in card:
            tags.append(f"license:{card['license']}")
        return tags


def card_metadata(text: str) -> dict[str, Any]:
    """The YAML at the head of a card. Raises ValueError as the Hub refuses it."""
    match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    if match is None:
        return {}
    try:
        card = yaml.safe_load(match.group(1)) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"the card's metadata is no YAML: {error}") from error
    if not isinstance(card, dict):
        raise ValueError("the card's metadata is no mapping")
    for key, kinds in {"tags": list, "base_model": (str, list), "license": str, "datasets": (str, list)}.items():
        if key in card and not isinstance(card[key], kinds):
            raise ValueError(f"{key} must be a {kinds}")
    if card.get("license", "mit") not in ("mit", "apache-2.0", "cc-by-4.0", "cc-by-nc-3.0", "other"):
        raise ValueError('"license" must be one of a list')
    if card.get("base_model_relation") not in (None, "adapter", "finetune", "merge", "quantized"):
        raise ValueError("base_model_relation is unknown")
    for entry in card.get("model-index") or []:
        for result in entry["results"]:
            if not {"task", "dataset", "metrics"} <= set(result) or "type" not in result["dataset"]:
                raise ValueError("model-index lacks a task, a dataset or metrics")
    return card


class Store:
    """All repositories and uploaded objects, and who may do what.

    Args:
        users: user name by token; a user may write to the organisations named after the colon, as in "ann:team".
    """

    def __init__(self, users: dict[str, str]) -> None:
        self.users = users
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.lock = threading.RLock()

    def add(self, kind: str, repo_id: str, files: dict[str, bytes], *, private: bool = False) -> Repo:
        """A repository with one commit, without going through the protocol."""
        repo = self.create(kind, repo_id, private=private)
        repo.commit({name: Blob(content, name.endswith(_LARGE)) for name, content in files.items()}, "initial")
        return repo

    def create(self, kind: str, repo_id: str, *, private: bool) -> Repo:
        repo = Repo(kind, repo_id, private)
        repo.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        self.repos[kind, repo_id] = repo
        return repo

    def user(self, token: str | None) -> str | None:
        return self.users[token].partition(":")[0] if token in self.users else None

    def may_write(self, token: str | None, repo_id: str) -> bool:
        names = self.users.get(token or "", "").replace(",", ":").split(":")
        return repo_id.partition("/")[0] in names

    def may_read(self, token: str | None, repo: Repo) -> bool:
        return not repo.private or self.may_write(token, repo.id)


def is_large(path: str, size: int) -> bool:
    """Whether the Hub would keep a file as a large one."""
    return path.endswith(_LARGE) or size > 10_000_000
