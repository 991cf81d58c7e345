"""What one evaluation of one model finds: its general ability, and its accuracy in tasks.

An evaluation makes these numbers; reports, gates, figures and model cards read them. The names of the fields are those of
results.json, and stand nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from alora_trainer.basics.json_record import JSONRecord


def _defined(text: str) -> Any:
    """A field, None if it was not measured, with what its number is: this text travels with the results."""
    return field(default=None, metadata={"definition": text})


@dataclass(frozen=True)
class KLToBase(JSONRecord):
    """Mean KL(base || model) of the next token's distribution.

    Attributes:
        nats_per_token: the mean over positions, in nats.
        tokens: how many positions.
        subsets: the same for each subset of the general text.
        top_changed: at which share of the positions the most likely token is another than the base model's; None in results
            that are older than this.
    """

    nats_per_token: float
    tokens: int
    subsets: Mapping[str, KLToBase] | None = None
    top_changed: float | None = None


@dataclass(frozen=True)
class GeneralScore(JSONRecord):
    """General ability, measured on held-out general text; every field is None where nothing was measured.

    Attributes:
        token_cross_entropy: mean negative log-likelihood in nats a token of the model's own tokenizer.
        token_perplexity: e to it.
        token_perplexity_base2: 2 to it.
        word_perplexity, byte_perplexity, bits_per_byte: of the same log-likelihood, over words and UTF-8 bytes.
        tokens, words, bytes: of the text.
        subsets: the same for each subset of the text.
        kl_to_base: how far the predictions have gone from the base model's.
        tasks: lm-eval's own metrics of the tasks that stand for general ability, by task.
    """

    token_cross_entropy: float | None = None
    token_perplexity: float | None = _defined(
        "e to the mean negative log-likelihood (nats) a token of the model's own tokenizer (see 'tokenizer'), pooled over all "
        "tokens of the held-out general text; documents are cut into windows, each token predicted once"
    )
    token_perplexity_base2: float | None = _defined("2 to the same mean in nats, which some papers print")
    word_perplexity: float | None = _defined(
        "e to the negative log-likelihood (nats) of the text over its number of words (white space parts them)"
    )
    byte_perplexity: float | None = _defined(
        "e to the negative log-likelihood (nats) of the text over its number of UTF-8 bytes"
    )
    bits_per_byte: float | None = _defined("negative log-likelihood in bits over the number of UTF-8 bytes")
    tokens: int | None = None
    words: int | None = None
    bytes: int | None = None
    subsets: Mapping[str, GeneralScore] | None = None
    kl_to_base: KLToBase | None = _defined(
        "mean over positions of sum_v p_base(v) (ln p_base(v) - ln p_model(v)), in nats a token"
    )
    tasks: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def loss(self) -> float | None:
        """General loss, in nats a token: what a budget is a share of. Earlier results have its exponential alone."""
        if self.token_cross_entropy is not None or not self.token_perplexity:
            return self.token_cross_entropy
        return math.log(self.token_perplexity)


@dataclass(frozen=True)
class TaskScore(JSONRecord):
    """Accuracy in one task, or the loss of its free answers; a field is None where nothing was measured, a standard error
    nan where there is none.

    Attributes:
        items: how many were scored.
        acc, acc_stderr: share of right answers, and its standard error over items.
        acc_norm, acc_norm_stderr: the same with length-normalised choices.
        answer_loss: of free answers, their mean negative log-likelihood in nats a token.
        answer_perplexity: e to it.
        answer_tokens: of all answers together.
        perplexity, perplexity_stderr: of a free answer as a whole, as lm-eval has it: it grows with the answer's length.
        ece: expected calibration error.
        choice_cross_entropy, choice_cross_entropy_stderr: of the right choice among all, and its standard error over items.
        chance: share of right answers that guessing gives.
        correct: which items were answered rightly, packed (see `evaluation.items.pack_correct`).
        items_digest: tells whether two evaluations asked the same items in the same order.
        source: the data set that the task's items are of, where it is one of the Hub: ``hub``, ``name``, ``split``.
    """

    items: int | None = None
    acc: float | None = _defined("share of the items whose right choice has the highest log-likelihood of all choices")
    acc_stderr: float | None = _defined(
        "standard error over items: sample standard deviation over the square root of their number"
    )
    acc_norm: float | None = _defined("as acc, with log-likelihoods divided by the choices' lengths in characters")
    acc_norm_stderr: float | None = None
    answer_loss: float | None = _defined(
        "mean negative log-likelihood (nats) a token of the right answers, pooled over the tokens of all answers"
    )
    answer_perplexity: float | None = _defined("e to answer_loss")
    answer_tokens: int | None = None
    perplexity: float | None = None
    perplexity_stderr: float | None = None
    ece: float | None = _defined(
        "expected calibration error: 15 bins of equal width of the softmax over the choices' log-likelihoods"
    )
    choice_cross_entropy: float | None = _defined(
        "mean over items, in nats, of -ln of the right choice's share in the softmax over the choices' log-likelihoods"
    )
    choice_cross_entropy_stderr: float | None = None
    chance: float | None = _defined("mean over items of one over the number of its choices")
    correct: str | None = _defined("one bit an item, first item first, as hexadecimal digits")
    items_digest: str | None = None
    source: Mapping[str, str] | None = None

    @property
    def is_free(self) -> bool:
        """Whether the answers are free text, of which an accuracy says next to nothing: which loss they have is what counts."""
        return self.answer_loss is not None


@dataclass(frozen=True)
class Score(JSONRecord):
    """What one evaluation of one model found.

    Attributes:
        general: on general text.
        tasks: by the task's name.
        tokenizer: ``class``, ``vocab_size`` and ``vocab_sha256``: what a perplexity by token depends on.
    """

    general: GeneralScore = GeneralScore()
    tasks: Mapping[str, TaskScore] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] | None = None


def metric_definitions() -> dict[str, str]:
    """Metric -> what it is, for all that have a definition, general ability first."""
    return {
        one.name: one.metadata["definition"]
        for kind in (GeneralScore, TaskScore)
        for one in fields(kind)
        if "definition" in one.metadata
    }
