"""The server: the part of the Hub's HTTP interface that its client uses to create, upload, list, download and delete.

Run it in the test's own process (`HubServer` is a context manager), and point clients to it with HF_ENDPOINT. Faults can be
put in: see `HubServer`'s attributes.
"""

from __future__ import annotations

import threading
from collections import Counter
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Any

from tests.artefact.hub_server.handler import Handler
from tests.artefact.hub_server.store import Store


class HubServer:
    """A server on a free port of this machine, for as long as the ``with`` block.

    Args:
        users: user name by token, see `Store`.

    Attributes:
        store: the repositories.
        faults: by file name, the number of bytes after which the connection of its next download is lost.
        flips: names of files of which the next download has one bit another way.
        lengths: by file name, by how many bytes its downloads are longer (or shorter) than the Hub says of the file.
        refusals: by a pattern for addresses, the HTTP status and the headers of every answer.
        portal: an answer of a network's login page, which every request gets.
        upload_fault: after so many more uploads, the connection of every further one is lost.
        served: bytes sent by file name (of downloads), and `received` (of uploads).
    """

    def __init__(self, users: dict[str, str] | None = None) -> None:
        self.store = Store(users or {})
        self.faults: dict[str, int] = {}
        self.flips: set[str] = set()
        self.lengths: dict[str, int] = {}
        self.refusals: dict[str, tuple[int, dict[str, str]]] = {}
        self.portal: bytes | None = None
        self.upload_fault: int | None = None
        self.served: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.requests: list[str] = []
        handler = type("OwnHandler", (Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def reset(self) -> None:
        """Forget everything but the users."""
        self.upload_fault = self.portal = None
        self.store.repos.clear()
        self.store.objects.clear()
        for record in (self.faults, self.flips, self.lengths, self.refusals, self.served, self.received, self.requests):
            record.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def environment(self, cache: Any, token: str | None = None) -> dict[str, str]:
        """What a client's process needs in its environment."""
        values = {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        }
        return values | ({"HF_TOKEN": token} if token else {})

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
