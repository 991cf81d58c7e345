"""Make the small base model of the demo: a byte-level BPE tokenizer and a Llama of about 2.5 million parameters.

    python -m alora_trainer.experiment.demo.build --output_dir model --minutes 25

It is trained on the pretraining part of :mod:`alora_trainer.experiment.demo.corpus` alone. The learning rate falls to zero over
the given time, so a run fits its time-box on whatever machine; with ``--steps`` it falls over the steps instead and the
run can be repeated exactly.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.demo import corpus

VOCABULARY = 2048
CONTEXT = 256
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
MAX_FOLDER_BYTES = 6_000_000
# Prose is scarce beside code; seen this many times for each time the code is, it still takes up only a third.
REPEATS = {"docstrings": 2, "topics": 3, "code": 1}


@dataclass(frozen=True)
class Pretraining:
    """What decides the outcome, apart from the corpus; ``steps`` wins over ``minutes``."""

    minutes: float = 25.0
    steps: int | None = None
    batch_size: int = 8
    learning_rate: float = 3e-3
    warmup: float = 0.02
    weight_decay: float = 0.1
    seed: int = 0
    threads: int = 1


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of :data:`VOCABULARY` entries, so that any text can be encoded and none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained Llama, in float32."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=6,
            num_key_value_heads=3,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pack(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """All texts, each followed by the end-of-text token, cut into rows: int64 (blocks, :data:`CONTEXT`)."""
    stream: list[int] = []
    for start in range(0, len(texts), 1000):
        for encoded in tokenizer(list(texts[start : start + 1000]), verbose=False)["input_ids"]:
            stream.extend(encoded)
            stream.append(int(tokenizer.eos_token_id))
    return torch.tensor(stream[: len(stream) // CONTEXT * CONTEXT], dtype=torch.long).view(-1, CONTEXT)


def _batches(blocks: dict[str, torch.Tensor], batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches without end; in each epoch the blocks of each subset occur as often as :data:`REPEATS` says."""
    generator = torch.Generator().manual_seed(seed)
    epoch = torch.cat([rows for subset, rows in blocks.items() for _ in range(REPEATS[subset])])
    if len(epoch) < batch_size:
        raise ALoRAError(f"the text gives {len(epoch)} blocks of {CONTEXT} tokens, less than a batch of {batch_size}")
    while True:
        for rows in torch.randperm(len(epoch), generator=generator).split(batch_size):
            if len(rows) == batch_size:
                yield epoch[rows]


def pretrain(model: LlamaForCausalLM, blocks: dict[str, torch.Tensor], settings: Pretraining) -> dict[str, Any]:
    """Train in place with AdamW, linear warm-up and cosine decay to zero; returns steps, tokens, seconds and loss."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
    model.train()
    started = time.monotonic()
    step, recent = 0, 0.0
    for batch in _batches(blocks, settings.batch_size, settings.seed):
        minutes = (time.monotonic() - started) / 60
        progress = step / settings.steps if settings.steps else minutes / settings.minutes
        if progress >= 1:
            break
        decay = 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(decay, progress / settings.warmup)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        step += 1
        if step % 100 == 0:
            print(f"step {step}  {100 * progress:.0f} %  loss {recent:.3f}", flush=True)
    model.eval()
    seconds = time.monotonic() - started
    return {"steps": step, "tokens": step * settings.batch_size * CONTEXT, "seconds": seconds, "loss": recent}


def perplexity(model: LlamaForCausalLM, blocks: torch.Tensor) -> float:
    """Token perplexity e^(nats per token) over packed blocks of (blocks, context) tokens."""
    total, count = 0.0, 0
    with torch.no_grad():
        for rows in blocks.split(16):
            total += model(input_ids=rows, labels=rows).loss.item() * len(rows)
            count += len(rows)
    return math.exp(total / count)


def build(output_dir: Path, settings: Pretraining) -> dict[str, Any]:
    """Train tokenizer and model, save them in bf16 to ``output_dir`` with a model card, and return the measurements."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    documents = corpus.documents()
    texts = {
        (subset, split): [text.text for text in documents if (text.subset, text.split) == (subset, split)]
        for subset in corpus.SUBSETS
        for split in corpus.SPLITS
    }
    tokenizer = train_tokenizer([text for subset in corpus.SUBSETS for text in texts[subset, "pretrain"]])
    blocks = {subset: pack(texts[subset, "pretrain"], tokenizer) for subset in corpus.SUBSETS}
    print({subset: rows.numel() for subset, rows in blocks.items()}, "tokens", flush=True)
    model = new_model(tokenizer)
    facts = pretrain(model, blocks, settings)
    output_dir.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    saved = LlamaForCausalLM.from_pretrained(output_dir, dtype=torch.float32)
    facts["parameters"] = saved.num_parameters()
    facts["unique_tokens"] = sum(rows.numel() for rows in blocks.values())
    facts["perplexity"] = {
        subset: perplexity(saved, pack(texts[subset, "test"], tokenizer)) for subset in corpus.SUBSETS
    }
    (output_dir / "README.md").write_text(_card(facts, settings), encoding="utf-8")
    size = sum(path.stat().st_size for path in output_dir.iterdir())
    if size > MAX_FOLDER_BYTES:
        raise ALoRAError(f"{output_dir} takes {size} bytes, more than {MAX_FOLDER_BYTES}; make the model smaller")
    return facts


def _card(facts: dict[str, Any], settings: Pretraining) -> str:
    length = f"--minutes {settings.minutes:g}" if settings.steps is None else f"--steps {settings.steps}"
    rows = "\n".join(f"| {subset} | {value:.1f} |" for subset, value in facts["perplexity"].items())
    return f"""# The demo's base model

A Llama of {facts["parameters"] / 1e6:.2f} million parameters (hidden 192, 5 layers, 6 heads, 3 key/value heads, tied
embeddings, context {CONTEXT}, byte-level BPE of {VOCABULARY} tokens), bf16. It knows nothing worth knowing: it is there
so that `alora demo` can show, in minutes and without a download, what tuning does to a pretrained model.

Text: docstrings, help topics (`pydoc_data.topics`) and source code of the standard library of Python
{platform.python_version()}, the pretraining part only (whole modules and topics, chosen by a hash of their names; see
`../corpus.py`): {facts["unique_tokens"] / 1e6:.2f} million tokens, prose taken two or three times as often as code.

Training: {facts["steps"]} steps of {settings.batch_size} x {CONTEXT} tokens ({facts["tokens"] / 1e6:.1f} million),
AdamW, learning rate {settings.learning_rate:g} decaying to zero, weight decay {settings.weight_decay:g}, seed
{settings.seed}, {facts["seconds"] / 60:.0f} minutes with {settings.threads} CPU thread(s). Made by:

    python -m alora_trainer.experiment.demo.build --output_dir model {length} --seed {settings.seed}

Token perplexity on the test part (modules and topics that occur neither here nor in the demo's general training text):

| subset | perplexity |
|---|---|
{rows}

Licence: the weights derive from Python's standard library and its documentation, (c) Python Software Foundation, used
under the PSF License Version 2; the program that made them is part of alora-trainer (Apache-2.0).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: ``python -m alora_trainer.experiment.demo.build --output_dir DIR``."""
    defaults = Pretraining()
    parser = argparse.ArgumentParser(
        prog="python -m alora_trainer.experiment.demo.build", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="the time-box of the training itself")
    parser.add_argument("--steps", type=int, default=None, help="train this many steps instead; repeatable exactly")
    parser.add_argument("--batch_size", type=int, default=defaults.batch_size)
    parser.add_argument("--learning_rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=defaults.threads)
    print(build(**_settings(parser.parse_args(argv))))
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    values = dict(vars(arguments))
    return {"output_dir": values.pop("output_dir"), "settings": Pretraining(**values)}


if __name__ == "__main__":
    raise SystemExit(main())
