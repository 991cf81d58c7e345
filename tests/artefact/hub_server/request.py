"""One HTTP request: reading it, finding who answers it, and sending an answer or a refusal as the Hub does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit


class Refusal(Exception):
    """An HTTP error, with the Hub's own code for it."""

    def __init__(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


class Request(BaseHTTPRequestHandler):
    """`hub` is the server, `routes` say which method answers which address."""

    hub: Any
    routes: ClassVar[list[tuple[str, str, Callable[..., None]]]] = []
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer's body waits 40 ms for the client to acknowledge its headers

    def log_message(self, format: str, *arguments: Any) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    # ---- the frame ----

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        try:
            if self.hub.portal is not None:
                self._body()
                self._send(200, self.hub.portal, {"Content-Type": "text/html"})
                return
            for pattern, (status, headers) in self.hub.refusals.items():
                if re.search(pattern, url.path):
                    raise Refusal(status, None, "refused", headers)
            for method, pattern, handle in self.routes:
                match = re.fullmatch(pattern, url.path)
                if match is not None and self.command in method:
                    found = match.groupdict()
                    handle(self, **{name: unquote(value) for name, value in found.items() if value is not None})
                    return
            raise Refusal(404, None, f"no such address: {self.command} {url.path}")
        except Refusal as refusal:
            self._body()  # a connection that is kept must not have the rest of this request in it
            headers = refusal.headers | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self._send(refusal.status, {"error": str(refusal)}, headers | {"X-Error-Message": str(refusal)})

    @property
    def token(self) -> str | None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if kind.lower() == "bearer" else None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            del self.headers["Transfer-Encoding"]
            return b"".join(chunks)
        length = int(self.headers.get("Content-Length") or 0)
        del self.headers["Content-Length"]
        return self.rfile.read(length)

    def _json(self) -> Any:
        return json.loads(self._body() or b"{}")

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _lose_connection(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()
