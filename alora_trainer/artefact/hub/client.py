"""The HTTP client that `huggingface_hub` speaks with: httpx2 since its version 2, httpx before."""

from __future__ import annotations

from huggingface_hub.errors import HfHubHTTPError

# What all errors of that client are, by name: the client itself is imported nowhere in this package.
HTTPError: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
