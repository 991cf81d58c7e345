"""What is printed: progress of ours on standard error, and of the libraries only what is an error."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from alora_trainer.basics.disclosure import redacted
from alora_trainer.basics.printable import printable


class OlderSpelling(FutureWarning):
    """Something was said as earlier versions wanted it. It is understood, and the message says how it is written now."""


class LineFormatter(logging.Formatter):
    """The message alone.

    Of what comes from the environment or from strangers' files, it says no more than a terminal should have.
    """

    def format(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().format(record)))


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to standard error as it is at present, a line above the bars that are drawn, instead of into them."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        drawing = sys.modules.get("tqdm.std")  # not imported for this: without it there is no bar
        if drawing is None:
            super().emit(record)
            return
        with drawing.tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def configure_output() -> None:
    """Progress of ours on standard error, and warnings of older spellings; from libraries only what is an error."""
    handler = _Handler()
    handler.setFormatter(LineFormatter())
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


def quiet_output() -> None:
    """After `configure_output`: no progress, neither lines nor bars; what is printed is results, warnings and errors."""
    logging.getLogger("alora_trainer").setLevel(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported


def tell_loading() -> None:
    """Say that something goes on in the seconds that importing PyTorch takes; nothing where it is there already."""
    if "torch" not in sys.modules:
        logging.getLogger("alora_trainer").info("loading PyTorch and what is built on it")


def say(what: object) -> None:
    """Print a result on standard output, as the terminal of somebody who did not write all of it should have it."""
    print(printable(redacted(str(what))), flush=True)  # a reader that went away is met here
