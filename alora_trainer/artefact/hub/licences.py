"""Licences and base models as the Hub states them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from json import JSONDecodeError

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from alora_trainer.artefact.cards.facts import Licences
from alora_trainer.artefact.hub.client import HTTPError
from alora_trainer.basics.hub_ids import is_hub_id

logger = logging.getLogger(__name__)


def look_up(base_model: str | None, texts: Iterable[str], stated: str | None, token: str | bool | None) -> Licences:
    """The licences in the cards of a base model and of data sets; None for what the Hub does not say or give.

    Args:
        base_model: its Hub id, or a folder, whose licence nobody knows.
        texts: from `cards.facts.licensed_texts`.
        stated: the licence that whoever publishes states.
    """
    return Licences(
        stated=stated,
        base=_licence(base_model, "model", token) if base_model is not None and is_hub_id(base_model) else None,
        data={name: _licence(name, "dataset", token) if is_hub_id(name) else None for name in texts},
    )


def _licence(repo_id: str, kind: str, token: str | bool | None) -> str | None:
    try:
        card = getattr(HfApi(token=token).repo_info(repo_id, repo_type=kind), "card_data", None)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, HTTPError, JSONDecodeError) as error:
        logger.warning(
            f"the licence of {repo_id} is not known: the Hub does not give its card ({type(error).__name__})"
        )
        return None
    licence = card.get("license") if card is not None else None
    return licence if isinstance(licence, str) else None
