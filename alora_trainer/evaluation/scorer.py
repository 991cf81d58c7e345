"""lm-eval's `HFLM` around a model at hand. Import it only to evaluate: it brings all of lm-eval along."""

from __future__ import annotations

import inspect
import logging
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, TypeAlias, TypeGuard

import torch
from lm_eval import utils as lm_eval_utils
from lm_eval.models import huggingface as lm_eval_hf
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache

from alora_trainer.basics.causal_model import learned_positions
from alora_trainer.basics.processes import own_share, place, together
from alora_trainer.basics.progress import ShownProgress
from alora_trainer.data.encoding import encode, encode_bare, encode_pairs, put_before, text_start
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.batch_size import largest_batch_size
from alora_trainer.evaluation.config import AUTO

logger = logging.getLogger(__name__)

Request: TypeAlias = tuple[tuple[str, str], list[int], list[int]]  # texts, tokens of the context and the continuation
Answer: TypeAlias = tuple[float, bool]  # log-likelihood of the continuation, and whether it is the greedy one

_LEAST_PREFIX = 16  # a shorter common prefix is not worth a forward pass of its own
# Layers' caches that hold keys and values of every token (or nothing), and so can be repeated for every answer and gone on from
# by several tokens. Those of linear attention, convolutions and state spaces cannot: some models go on from them by one token
# alone, and a hybrid's repeats its keys and values without its state.
_REPEATED_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}


class Scorer(HFLM):
    """`HFLM` that runs a question once for all its answers, shows one progress bar, and keeps its precision.

    The log-softmax is taken in float32 whatever the model's dtype: bfloat16 would leave three digits of a score. In several
    processes (see `processes`) each scores its share of the batches; what lm-eval is given are all answers, in each of them.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int | str,
        max_length: int | None,
        document_tokens: int | None = None,
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=1 if batch_size == AUTO else batch_size,
            max_length=max_length,
            softmax_dtype=torch.float32,
        )
        self._document_tokens = document_tokens
        self._before, self._start = put_before(self.tokenizer), text_start(self.tokenizer)
        self._progress: ShownProgress | None = None
        self._shares, self._is_compared = True, False
        # Long documents are cut into windows here, so the tokenizer's warning about their length would mislead.
        self._max_length = min(self.max_length, learned_positions(model) or sys.maxsize)
        self.tokenizer.model_max_length = sys.maxsize
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        takes_keep = "logits_to_keep" in inspect.signature(base.forward).parameters
        self._prefix_arguments: dict[str, Any] = {"use_cache": True} | ({"logits_to_keep": 1} if takes_keep else {})
        if batch_size == AUTO:
            found = together({largest_batch_size(model, self.max_length, self.device): None})
            self.batch_size_per_gpu = min(found)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **settings: Any,
    ) -> list[int]:
        """As `encode`: lm-eval's own would leave the tokens that some tokenizers put behind a text."""
        bare = add_special_tokens is False
        (ids,) = encode_bare(self.tokenizer, [string]) if bare else encode(self.tokenizer, [string], self._before)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts to generate from, as `encode` has them."""
        rows = [ids[-left_truncate_len:] if left_truncate_len else ids for ids in encode(self.tokenizer, strings)]
        padded = self.tokenizer.pad(
            {"input_ids": rows}, padding="longest", padding_side=padding_side, return_tensors="pt", verbose=False
        )
        return padded["input_ids"], padded["attention_mask"]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        texts = [request.args for request in requests]
        pairs = encode_pairs(self.tokenizer, texts)
        for (_, answer), pair in zip(texts, pairs, strict=True):
            if not pair.continuation:
                raise ALoRAError(
                    f"the answer {answer!r} is no token of its own after its prompt: leave the item out, or let a space or a "
                    "line break part the two"
                )
        encoded = [(text, pair.context, pair.continuation) for text, pair in zip(texts, pairs, strict=True)]
        with self._scoring("answers", len(requests), disable_tqdm) as self._progress:
            return self._loglikelihood_tokens(encoded)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """As HFLM cuts documents into windows, but all windows are known before the first is scored."""
        windows: list[Request] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            own = self.windows(request.args[0])
            windows += [(("", ""), *window) for window in own]
            owners += [owner] * len(own)
        with self._scoring("windows", len(windows), disable_tqdm) as self._progress:
            scored = self._loglikelihood_tokens(windows)
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, scored, strict=True):
            totals[owner] += score
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As HFLM; its bar, which it draws in logs, too, is one of ours."""
        with self._scoring("prompts", len(requests), disable_tqdm) as progress:
            theirs = lm_eval_hf.tqdm
            lm_eval_hf.tqdm = lambda **_: _Counted(progress)
            try:
                answers: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
            finally:
                lm_eval_hf.tqdm = theirs
        return answers

    def _scoring(self, unit: str, count: int, quiet: bool) -> ShownProgress:
        return ShownProgress("evaluating", count, logger, unit=unit, quiet=quiet or place()[0] != 0)

    def windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """A document as (context, continuation) of at most `max_length` tokens each; every token of it is continued to once.

        The first one is continued to from `text_start`, which is not predicted itself.
        """
        rolling = lm_eval_utils.get_rolling_token_windows(
            token_list=self._start[1:] + self.own_tokens(text),
            prefix_token=self._start[0],
            max_seq_len=self.max_length,
            context_len=1,
        )
        windows, given = [], len(self._start) - 1
        for context, continuation in map(lm_eval_utils.make_disjoint_window, rolling):
            if len(continuation) > given:
                windows.append((context + continuation[:given], continuation[given:]))
            given = max(given - len(continuation), 0)
        return windows

    def own_tokens(self, text: str) -> list[int]:
        """A document's tokens without those that the tokenizer adds: what `windows` predicts, where it is scored whole."""
        return self.tok_encode(text)[: self._document_tokens][len(self._before) :]

    def scored_text(self, text: str) -> str | None:
        """The beginning of a document that `document_tokens` leaves to be scored; None where all of it is."""
        limit = self._document_tokens
        ids = self.tok_encode(text)
        if limit is None or len(ids) <= limit:
            return None
        return str(self.tokenizer.decode(ids[len(self._before) : limit]))

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        longest = max((len(answer) for _, _, answer in requests), default=0)
        if longest > self.max_length:
            raise ALoRAError(
                f"an answer of {longest} tokens does not fit evaluation.max_length={self.max_length}: raise it, up to the "
                "model's own limit, or leave the item out"
            )
        own: dict[int, Answer] = {}
        for batch in own_share(self._shared_batches(requests)):
            scored = self._score_batch(batch, requests) if self._is_compared else self._compared(batch, requests)
            if not scored:
                self._shares = False
                break
            own.update(scored)
            self._advance(len(scored))
        answers = together(own)
        rest = [index for index in range(len(requests)) if index not in answers]
        own = {}
        for indices in own_share(self._plain_batches(rest, requests)):
            alone = super()._loglikelihood_tokens([requests[index] for index in indices], disable_tqdm=True)
            own.update(zip(indices, alone, strict=True))
            self._advance(len(indices))
        answers |= together(own)
        return [answers[index] for index in range(len(requests))]

    def _plain_batches(self, indices: list[int], requests: list[Request]) -> Iterator[list[int]]:
        """The batches that HFLM would form: the longest first, and what differs in its last token alone run once."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index in indices:
            _, context, continuation = requests[index]
            groups[tuple(context + continuation[:-1])].append(index)
        ordered = [groups[key] for key in sorted(groups, key=lambda key: (-len(key), key))]
        size = int(self.batch_size)
        for start in range(0, len(ordered), size):
            yield [index for group in ordered[start : start + size] for index in group]

    def _advance(self, count: int) -> None:
        if self._progress is not None:
            self._progress.advance(count)

    def _shared_batches(self, requests: list[Request]) -> Iterator[list[list[int]]]:
        """Batches of groups of requests (by index) with one context each; a group's context is run only once.

        Left to HFLM are single requests, those it has to cut, and one-token answers, which it runs once itself.
        """
        if not self._shares:
            return
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, (_, context, continuation) in enumerate(requests):
            if len(context) > _LEAST_PREFIX and len(context) + len(continuation) <= self.max_length + 1:
                groups[tuple(context)].append(index)
        shared = [
            group for group in groups.values() if len(group) > 1 and any(len(requests[index][2]) > 1 for index in group)
        ]
        # By length, since a batch shares a prefix as long as its shortest context allows, and is padded behind it.
        shared.sort(key=lambda group: -len(requests[group[0]][1]))
        batch: list[list[int]] = []
        for group in shared:
            if batch and sum(map(len, batch)) + len(group) > self.batch_size:
                yield batch
                batch = []
            batch.append(group)
        if batch:
            yield batch

    def _compared(self, batch: list[list[int]], requests: list[Request]) -> dict[int, Answer]:
        """A first batch from `_score_batch`, its longest prompt's answers held against plain forward passes; nothing if it
        fails or differs from them.

        What a model does with several tokens after a cache is nowhere laid down: some fail, some forget a window's beginning.
        """
        try:
            scored = self._score_batch(batch, requests)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # models raise what they like, and can be scored without a cache all the same
            logger.info(
                f"every answer is scored with its whole prompt, since the model's cache cannot be gone on from: {error}"
            )
            return {}
        if not scored:
            return {}
        longest = batch[0]
        plain = super()._loglikelihood_tokens([requests[index] for index in longest], disable_tqdm=True)
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        noise = math.sqrt(torch.finfo(dtype).eps)
        for index, (right, _) in zip(longest, plain, strict=True):
            shared, _ = scored[index]
            if not abs(shared - right) <= noise * (1 + abs(right)):
                logger.info(
                    f"every answer is scored with its whole prompt, since the model's cache gives {shared}, not {right}"
                )
                return {}
        self._is_compared = True
        return scored

    def _score_batch(self, batch: list[list[int]], requests: list[Request]) -> dict[int, Answer]:
        """Score a batch from `_shared_batches`; nothing if the model's cache cannot be shared.

        The contexts' first tokens are run once and their keys and values repeated for the answers. The rest of each
        context and its answers come after them, padded on the right as HFLM pads, which a causal model does not see.
        """
        contexts = [requests[group[0]][1] for group in batch]
        start = min(map(len, contexts)) - 1  # the last token of a context predicts the first one of the answer
        with torch.no_grad():
            prefix = torch.tensor([context[:start] for context in contexts], device=self.device)
            cache = getattr(self.model(prefix, **self._prefix_arguments), "past_key_values", None)
            if not _can_be_repeated(cache):
                return {}
            repeats = [row for row, group in enumerate(batch) for _ in group]
            cache.batch_select_indices(torch.tensor(repeats, device=self.device))
            indices = [index for group in batch for index in group]
            tails = [(requests[index][1][start:] + requests[index][2])[:-1] for index in indices]
            width = max(map(len, tails))
            padded = torch.tensor([tail + [0] * (width - len(tail)) for tail in tails], device=self.device)
            logits = self.model(padded, past_key_values=cache).logits
        scores = torch.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        answers = {}
        for row, index in enumerate(indices):
            continuation = torch.tensor(requests[index][2], device=self.device)
            predicted = scores[row, len(tails[row]) - len(continuation) : len(tails[row])]
            chosen = predicted.gather(1, continuation.unsqueeze(1))
            answers[index] = (float(chosen.sum()), bool((predicted.argmax(1) == continuation).all()))
        return answers


class _Counted:
    """What lm-eval takes for its bar: it counts on one of ours, which whoever made it closes."""

    def __init__(self, progress: ShownProgress) -> None:
        self.update = progress.advance

    def close(self) -> None:
        pass


def _can_be_repeated(cache: Any) -> TypeGuard[DynamicCache]:
    """Whether a cache is all that a model knows of a prefix, in layers that can be repeated; a subclass may hold more."""
    return type(cache) is DynamicCache and all(type(layer).__name__ in _REPEATED_LAYERS for layer in cache.layers)
