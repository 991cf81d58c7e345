"""What the Hub answers to its client: accounts, repositories, files and uploads."""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from urllib.parse import parse_qs

from tests.artefact.hub_server.request import Refusal, Request
from tests.artefact.hub_server.store import Blob, Repo, card_metadata, is_large

_ID = r"(?P<id>[^/]+/[^/]+)"
_KIND = r"(?P<kind>model|dataset|space)s"
_REVISION = r"(?P<revision>[^/]+|refs(?:/|%2F)[^?]+)"


class Handler(Request):
    """One request to the Hub."""

    # ---- finding ----

    def _repo(self, kind: str, id: str, *, write: bool = False) -> Repo:
        repo = self.hub.store.repos.get((kind, id))
        if repo is None or not self.hub.store.may_read(self.token, repo):
            # The Hub tells a stranger nothing of a private repository.
            raise Refusal(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        if write and not self.hub.store.may_write(self.token, id):
            raise Refusal(403, None, "You don't have the rights to write to this repository")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    # ---- accounts and repositories ----

    def whoami(self) -> None:
        name = self.hub.store.user(self.token)
        if name is None:
            raise Refusal(401, None, "Invalid username or password.")
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        self._send(200, {"type": "user", "name": name, "fullname": name, "orgs": [], "auth": access})

    def create_repo(self) -> None:
        asked = self._json()
        kind = asked.get("type") or "model"
        owner = asked.get("organization") or self.hub.store.user(self.token)
        if self.token is None or self.hub.store.user(self.token) is None:
            raise Refusal(401, None, "Invalid username or password.")
        repo_id = f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if not self.hub.store.may_write(self.token, repo_id):
            raise Refusal(403, None, f"You don't have the rights to create a model under the namespace {owner!r}")
        with self.hub.store.lock:
            if (kind, repo_id) in self.hub.store.repos:
                self._send(409, {"error": "You already created this model repo", "url": url})
                return
            self.hub.store.create(kind, repo_id, private=asked.get("visibility") == "private" or asked.get("private"))
        self._send(200, {"url": url, "name": repo_id, "id": "0"})

    def delete_repo(self) -> None:
        asked = self._json()
        kind = asked.get("type") or "model"
        repo_id = f"{asked.get('organization') or self.hub.store.user(self.token)}/{asked['name']}"
        self._repo(kind, repo_id, write=True)
        del self.hub.store.repos[kind, repo_id]
        self._send(200, b"OK")

    def create_branch(self, kind: str, id: str, branch: str) -> None:
        repo = self._repo(kind, id, write=True)
        start = self._commit_of(repo, self._json().get("startingPoint", "main"))
        if branch in repo.refs:
            raise Refusal(409, None, "Reference already exists")
        repo.refs[branch] = start
        self._send(201, {})

    def refs(self, kind: str, id: str) -> None:
        repo = self._repo(kind, id)
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in repo.refs.items()]
        self._send(200, {"branches": branches, "converts": [], "tags": []})

    def info(self, kind: str, id: str, revision: str = "main") -> None:
        repo = self._repo(kind, id)
        self._send(200, self._description(repo, self._commit_of(repo, revision)))

    def _description(self, repo: Repo, sha: str) -> dict[str, Any]:
        return {
            "_id": "0",
            "id": repo.id,
            "author": repo.id.partition("/")[0],
            "sha": sha,
            "lastModified": "2026-01-02T03:04:05.000Z",
            "createdAt": "2026-01-02T03:04:05.000Z",
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 7,
            "likes": 0,
            "tags": repo.tags(sha),
            "cardData": repo.card(sha),
            "siblings": [{"rfilename": name} for name in sorted(repo.commits[sha])],
        }

    def list_models(self) -> None:
        wanted = set(self.query.get("filter", []))
        found = []
        for (kind, _), repo in sorted(self.hub.store.repos.items()):
            sha = repo.refs["main"]
            if kind == "model" and wanted <= set(repo.tags(sha)) and self.hub.store.may_read(self.token, repo):
                found.append(self._description(repo, sha))
        start = int(self.query.get("cursor", ["0"])[0])
        limit = min(int(self.query.get("limit", ["1000"])[0]), 2)  # pages of two, so that clients must turn them
        rest = "&".join(f"filter={value}" for value in wanted)
        more = start + limit < len(found)
        link = {"Link": f'<{self.hub.url}/api/models?{rest}&cursor={start + limit}>; rel="next"'} if more else {}
        self._send(200, found[start : start + limit], link)

    # ---- files ----

    def tree(self, kind: str, id: str, revision: str, path: str = "") -> None:
        repo = self._repo(kind, id)
        sha = self._commit_of(repo, revision)
        prefix = path.strip("/") + "/" if path.strip("/") else ""
        inside = {name: blob for name, blob in repo.commits[sha].items() if name.startswith(prefix)}
        if prefix and not inside:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist on {revision}")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = []
        for name, blob in sorted(inside.items()):
            if recursive or "/" not in name[len(prefix) :]:
                entries.append(_entry(name, blob))
        folders = {
            name[: len(prefix)] + name[len(prefix) :].split("/")[0] for name in inside if "/" in name[len(prefix) :]
        }
        entries += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in sorted(folders)]
        self._send(200, entries)

    def paths_info(self, kind: str, id: str, revision: str) -> None:
        repo = self._repo(kind, id)
        files = repo.commits[self._commit_of(repo, revision)]
        asked = self._body().decode()
        try:
            paths = json.loads(asked)["paths"]
        except json.JSONDecodeError:
            paths = parse_qs(asked).get("paths", [])
        found = [_entry(path, files[path]) for path in paths if path in files]
        found += [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
            for path in paths
            if path not in files and any(name.startswith(f"{path}/") for name in files)
        ]
        self._send(200, found)

    def resolve(self, id: str, revision: str, path: str, kind: str = "model") -> None:
        repo = self._repo(kind, id)
        sha = self._commit_of(repo, revision)
        blob = repo.commits[sha].get(path)
        if blob is None:
            self._send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        self._send_file(path, blob, sha)

    def _send_file(self, path: str, blob: Blob, sha: str) -> None:
        start, stop, status = 0, len(blob.content), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is not None:
            start = int(asked.group(1))
            stop = min(int(asked.group(2)) + 1 if asked.group(2) else stop, stop)
            if start >= max(len(blob.content), 1):
                raise Refusal(416, None, "Range not satisfiable")
            status = 206
        body = blob.content[start:stop]
        if self.command != "HEAD":
            body = self._at_fault(path, body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", f'"{blob.etag}"')
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Accept-Ranges", "bytes")
        if blob.large:
            self.send_header("X-Linked-Etag", f'"{blob.etag}"')
            self.send_header("X-Linked-Size", str(len(blob.content)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(blob.content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.faults.pop(path, None)
        self.wfile.write(body if cut is None else body[:cut])
        self.hub.served[path] += len(body) if cut is None else min(cut, len(body))
        if cut is not None:
            self._lose_connection()

    def _at_fault(self, path: str, body: bytes) -> bytes:
        """A body as a bad line or a bad proxy delivers it."""
        if path in self.hub.flips:
            self.hub.flips.discard(path)
            body = body[:-1] + bytes([body[-1] ^ 1])
        more = self.hub.lengths.get(path, 0)
        return body + b" " * more if more >= 0 else body[:more]

    # ---- uploads ----

    def validate_yaml(self) -> None:
        try:
            card_metadata(self._json()["content"])
        except ValueError as error:
            self._send(400, {"errors": [{"message": str(error)}], "warnings": []})
            return
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, kind: str, id: str, revision: str) -> None:
        repo = self._repo(kind, id, write=True)
        files = repo.commits[self._commit_of(repo, revision)]
        answer = []
        for file in self._json()["files"]:
            known = files.get(file["path"])
            mode = "lfs" if is_large(file["path"], file["size"]) else "regular"
            answer.append(
                {
                    "path": file["path"],
                    "uploadMode": mode,
                    "shouldIgnore": False,
                    "oid": known.etag if known else None,
                }
            )
        self._send(200, {"files": answer})

    def lfs_batch(self, id: str, kind: str = "model") -> None:
        self._repo(kind, id, write=True)
        objects = []
        for item in self._json()["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.store.objects:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.url}/_objects/{item['oid']}"},
                    "verify": {"href": f"{self.hub.url}/_verify"},
                }
            objects.append(entry)
        self._send(200, {"transfer": "basic", "objects": objects})

    def put_object(self, oid: str) -> None:
        with self.hub.store.lock:
            refused = self.hub.upload_fault == 0
            if self.hub.upload_fault:
                self.hub.upload_fault -= 1
        if refused:
            self.rfile.read(100)
            self._lose_connection()
            return
        content = self._body()
        with self.hub.store.lock:
            self.hub.received[oid] += len(content)
        if Blob(content, True).sha256 != oid:
            raise Refusal(400, None, "the object's content does not match its id")
        self.hub.store.objects[oid] = content
        self._send(200, b"")

    def verify_object(self) -> None:
        item = self._json()
        content = self.hub.store.objects.get(item["oid"])
        if content is None or len(content) != item["size"]:
            raise Refusal(404, None, "no such object")
        self._send(200, b"")

    def commit(self, kind: str, id: str, revision: str) -> None:
        repo = self._repo(kind, id, write=True)
        lines = [json.loads(line) for line in self._body().splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        with self.hub.store.lock:
            head = self._commit_of(repo, revision)
            parent = header.get("parentCommit")
            if parent is not None and not head.startswith(parent):
                raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[head])
            for line in lines:
                self._apply(files, line["key"], line["value"])
            sha = repo.commit(files, header["summary"], revision)
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{id}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        if key == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            if value["oid"] not in self.hub.store.objects:
                raise Refusal(400, None, f"{value['path']} was not uploaded")
            files[value["path"]] = Blob(self.hub.store.objects[value["oid"]], True)
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
        elif key == "deletedFolder":
            for name in [name for name in files if name.startswith(value["path"].rstrip("/") + "/")]:
                del files[name]


def _entry(name: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(blob.content), "oid": blob.oid}
    if blob.large:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
    return entry


Handler.routes = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create_repo),
    ("DELETE", r"/api/repos/delete", Handler.delete_repo),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("GET", r"/api/models", Handler.list_models),
    ("POST", rf"/api/{_KIND}/{_ID}/preupload/{_REVISION}", Handler.preupload),
    ("POST", rf"/api/{_KIND}/{_ID}/commit/{_REVISION}", Handler.commit),
    ("POST", rf"/api/{_KIND}/{_ID}/branch/(?P<branch>.+)", Handler.create_branch),
    ("POST", rf"/api/{_KIND}/{_ID}/paths-info/{_REVISION}", Handler.paths_info),
    ("GET", rf"/api/{_KIND}/{_ID}/refs", Handler.refs),
    ("GET", rf"/api/{_KIND}/{_ID}/tree/(?P<revision>[^/]+)(?P<path>/.*)?", Handler.tree),
    ("GET", rf"/api/{_KIND}/{_ID}(?:/revision/{_REVISION})?", Handler.info),
    ("POST", rf"/(?:(?P<kind>dataset)s/)?{_ID}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/_objects/(?P<oid>[0-9a-f]{64})", Handler.put_object),
    ("POST", r"/_verify", Handler.verify_object),
    ("GET HEAD", rf"/(?:(?P<kind>dataset)s/)?{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]
