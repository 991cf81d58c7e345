"""What goes wrong with the Hub, in a line that says what to do, and never with a token in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import errors

from alora_trainer.errors import ALoRAError

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9_-]+|(?i:bearer)\s+\S+")


@contextmanager
def hub_errors(repo_id: str, revision: str | None, doing: str) -> Iterator[None]:
    """Turn the errors of `huggingface_hub` (whose uploads fail with a RuntimeError) into ALoRAErrors.

    Args:
        repo_id, revision: what is asked for.
        doing: what for, as in "cannot be {doing}".
    """
    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except errors.GatedRepoError as error:
        raise ALoRAError(
            f"{repo_id} cannot be {doing}: access to it must be asked for on its page, and a token set (`hf auth login`)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ALoRAError(
            f"{repo_id} cannot be {doing}: the Hub gives no such repository. Correct the name or, if it is private, log in "
            "with a token that may read it (`hf auth login`, or HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ALoRAError(f"{repo_id} cannot be {doing}: it has no revision {revision}") from error
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise ALoRAError(_unreachable(repo_id, at, doing, error)) from error
        raise ALoRAError(f"{repo_id}{at} cannot be {doing}: {_first_line(error)}") from error
    except errors.HFValidationError as error:
        raise ALoRAError(f"{repo_id!r} is no Hub id, which is organisation/name: {_first_line(error)}") from error
    except (errors.OfflineModeIsEnabled, errors.IncompleteSnapshotError) as error:
        raise ALoRAError(_unreachable(repo_id, at, doing, error)) from error
    except errors.SafetensorsParsingError as error:
        raise ALoRAError(f"{repo_id}{at} cannot be {doing}: it is damaged ({_first_line(error)})") from error
    except errors.HfHubHTTPError as error:
        raise ALoRAError(f"{repo_id}{at} cannot be {doing}: {_http_reason(error)}") from error
    except ValueError as error:
        if isinstance(error, ALoRAError) or "Invalid metadata in README.md" not in str(error):
            raise
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise ALoRAError(f"{repo_id} cannot be {doing}: the Hub refuses the card ({without_tokens(reason)})") from error
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        raise ALoRAError(_unreachable(repo_id, at, doing, error)) from error
    except RuntimeError as error:
        if not isinstance(error.__cause__, (httpx2.HTTPError, OSError)):
            raise
        raise ALoRAError(
            f"{repo_id}{at} cannot be {doing}: the connection was lost. {without_tokens(str(error))} The repository is as it "
            "was; run it again: what has arrived is not sent twice"
        ) from error


def without_tokens(text: str) -> str:
    """A text with every access token in it blotted out."""
    return _TOKEN.sub("<token>", text)


def _unreachable(repo_id: str, at: str, doing: str, error: Exception) -> str:
    return (
        f"{repo_id}{at} cannot be {doing}: the Hub cannot be reached ({_first_line(error)}), and not all that is needed is in "
        "the cache. Go online (HF_HUB_OFFLINE must not be set), and run it again: what has arrived is not fetched twice"
    )


def _http_reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the token that is set may not do that (HTTP {status}): log in with another one (`hf auth login`)"
    if status == 412:
        return "somebody changed the repository at the same time: run it again"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_tokens(lines[0] if lines else type(error).__name__)
