"""What goes wrong with the Hub, in a line that says what to do, and never with a token in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import errors

from alora_trainer.artefact.hub.client import HTTPError
from alora_trainer.basics.keys import absent
from alora_trainer.errors import ALoRAError

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9_-]+|(?i:bearer)\s+\S+")
_NO_ANSWER = (HTTPError, ConnectionError, TimeoutError)
_NO_HUB = (
    "what answers in the Hub's place is none: a network's login page or a proxy, perhaps (open the Hub's page in a browser), "
    "or HF_ENDPOINT names something else"
)


@contextmanager
def hub_errors(repo_id: str, revision: str | None, doing: str, *, or_path: bool = False) -> Iterator[None]:
    """Turn the errors of `huggingface_hub` (whose uploads fail with a RuntimeError) into ALoRAErrors.

    Args:
        repo_id, revision: what is asked for.
        doing: what for, as in "cannot be {doing}".
        or_path: whether a folder could have stood in the id's place: that there is none is then told, too.
    """
    at = f" at revision {revision}" if revision else ""
    here = absent(repo_id) if or_path else ""
    try:
        yield
    except errors.GatedRepoError as error:
        raise ALoRAError(
            f"{repo_id} cannot be {doing}: access to it must be asked for on its page, and a token set (`hf auth login`)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ALoRAError(
            f"{repo_id} cannot be {doing}: the Hub gives no such repository. Correct the name or, if it is private, log in "
            f"with a token that may read it (`hf auth login`, or HF_TOKEN){here}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ALoRAError(f"{repo_id} cannot be {doing}: it has no revision {revision}") from error
    except errors.HFValidationError as error:
        raise ALoRAError(f"{repo_id!r} is no Hub id, which is organisation/name: {_first_line(error)}") from error
    except errors.SafetensorsParsingError as error:
        raise ALoRAError(f"{repo_id}{at} cannot be {doing}: it is damaged ({_first_line(error)})") from error
    except (ValueError, OSError, RuntimeError, errors.EntryNotFoundError, HTTPError) as error:
        reason = None if isinstance(error, ALoRAError) else _reason(error)
        if reason is None:
            raise
        raise ALoRAError(f"{repo_id}{at} cannot be {doing}: {reason}{here}") from error


def without_tokens(text: str) -> str:
    """A text with every access token in it blotted out."""
    return _TOKEN.sub("<token>", text)


def is_wrong_length(error: OSError) -> bool:
    """Whether the client says that a file came longer or shorter than the Hub had announced it."""
    return str(error).startswith("Consistency check failed")


def _reason(error: BaseException) -> str | None:
    """What went wrong, and what to do; None for what has nothing to do with the Hub.

    The client reports much as "not in the cache", or as an error of its own; why, the error's cause says.
    """
    text = str(error)
    if "Invalid metadata in README.md" in text:
        lines = [line.strip() for line in text.splitlines()[1:]]
        return f"the Hub refuses the card ({without_tokens(' '.join(lines))})"
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if response is not None:
            return _http_reason(cause, response)
        if isinstance(cause, (json.JSONDecodeError, errors.FileMetadataError)):
            return _NO_HUB
    if isinstance(error, (errors.LocalEntryNotFoundError, *_NO_ANSWER)):
        return _unreachable(error)
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, (HTTPError, OSError)):
        return (
            f"the connection was lost. {without_tokens(text)} The repository is as it was; run it again: what has arrived is "
            "not sent twice"
        )
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in _causes(error)):
        return _unreachable(error)
    if isinstance(error, OSError) and is_wrong_length(error):
        return (
            f"what came is not as long as the Hub says ({_first_line(error).partition(': ')[2].rstrip('.')}): run it again, "
            "over another network perhaps"
        )
    return _first_line(error) if isinstance(error, (OSError, errors.EntryNotFoundError)) else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _unreachable(error: BaseException) -> str:
    return (
        f"the Hub cannot be reached ({_first_line(error)}), and not all that is needed is in the cache. Go online "
        "(HF_HUB_OFFLINE must not be set), and run it again: what has arrived is not fetched twice"
    )


def _http_reason(error: BaseException, response: Any) -> str:
    status = response.status_code
    if status in (401, 403):
        return (
            f"the token that is set may not do that, or none is set (HTTP {status}): log in with one that may "
            "(`hf auth login`)"
        )
    if status == 412:
        return "somebody changed the repository at the same time: run it again"
    if status == 429:
        wait = response.headers.get("Retry-After", "")
        how_long = f"{wait} s" if wait.isdecimal() else "some minutes"
        return f"the Hub was asked too often (HTTP 429): wait {how_long}, and run it again"
    if status >= 500:
        return f"the Hub itself is in trouble (HTTP {status}): run it again later"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_tokens(lines[0] if lines else type(error).__name__)
