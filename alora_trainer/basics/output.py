"""What is printed: progress of ours on standard error, and of the libraries only what is an error."""

from __future__ import annotations

import logging
import os
import sys
import warnings


class OlderSpelling(FutureWarning):
    """Something was said as earlier versions wanted it. It is understood, and the message says how it is written now."""


def configure_output() -> None:
    """Progress of ours on standard error, and warnings of older spellings; from libraries only what is an error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("alora_trainer")
    own.handlers = [handler]
    own.setLevel(logging.INFO)
    own.propagate = False
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    for noisy in ("lm_eval", "lm-eval", "peft", "accelerate", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", OlderSpelling)
        # A recipe has no line of Python that is to be changed.
        warnings.showwarning = lambda message, *_, **__: own.warning(str(message))
