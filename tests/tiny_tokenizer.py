"""A byte-level tokenizer made on the spot, so that tests with text need no download."""

from __future__ import annotations

from typing import Any

TEXT = """Question: What is the symbol of the element carbon? Answer: C
Question: In which group of the periodic table is neon? Answer: 18
The people of the village walked to the river in the morning, and the water was cold.
Choices: A. B. C. D. salt, water, oxygen and the noble gases are substances of the chemistry book.
"""


def make_tokenizer(*, pad_token: str | None = "<|pad|>", begin: bool = False) -> Any:
    """A fast tokenizer of about 300 tokens with EOS; with ``begin`` it puts a beginning-of-text token before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|pad|>", "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([TEXT], trainer)
    if begin:
        raw.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 2)])
    special = {"eos_token": "<|end|>", "bos_token": "<|begin|>" if begin else "<|end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special, **({"pad_token": pad_token} if pad_token else {}))
