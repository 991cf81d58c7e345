"""A byte-level tokenizer made on the spot, so that tests with text need no download."""

from __future__ import annotations

from typing import Any

TEXT = """Question: What is the symbol of the element carbon? Answer: C
Question: In which group of the periodic table is neon? Answer: 18
The people of the village walked to the river in the morning, and the water was cold.
Choices: A. B. C. D. salt, water, oxygen and the noble gases are substances of the chemistry book.
"""


def make_tokenizer(
    *, pad_token: str | None = "<|pad|>", begin: bool = False, template: str | None = None, text: str = TEXT
) -> Any:
    """A fast tokenizer of about 300 tokens with EOS, learned from `text` word by word, or as a whole if that is another one.

    With ``begin`` it puts a beginning-of-text token before a text; ``template`` says itself what stands around a text, $A.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=text is TEXT)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|pad|>", "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([text], trainer)
    template = "<|begin|> $A" if begin else template
    if template is not None:
        known = [("<|end|>", 0), ("<|pad|>", 1), ("<|begin|>", 2)]
        raw.post_processor = processors.TemplateProcessing(single=template, special_tokens=known)
    special = {"eos_token": "<|end|>", "bos_token": "<|begin|>" if "<|begin|>" in (template or "") else "<|end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special, **({"pad_token": pad_token} if pad_token else {}))
