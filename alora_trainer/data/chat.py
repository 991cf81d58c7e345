"""Chat data: conversations as the model's own chat template writes them, the last answer being what is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alora_trainer.data.sources import check_keys
from alora_trainer.errors import ALoRAError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_KEYS = ("name", "messages")


def is_chat(spec: Any) -> bool:
    """Whether a task's specification is one of conversations."""
    return isinstance(spec, Mapping) and "messages" in spec


def check_chat_spec(spec: Mapping[str, Any]) -> tuple[str, str]:
    """(name, column of the messages); raises ALoRAError for anything else than these two."""
    check_keys(spec, CHAT_KEYS, "the task")
    for key in CHAT_KEYS:
        if not isinstance(spec.get(key), str) or not spec[key]:
            raise ALoRAError(f"the task needs {key!r}, a string")
    return spec["name"], spec["messages"]


def render_chat(messages: Any, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, str]:
    """The text up to the last answer, and that answer with what ends it.

    Args:
        messages: ``{"role", "content"}`` in their order; the last one must be the assistant's.
        tokenizer: with a chat template. A beginning-of-text token that the tokenizer puts there itself is left out of the text.

    Raises:
        ALoRAError: there is no template, or the conversation does not fit it.
    """
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise ALoRAError("chat data needs a tokenizer with a chat template: choose an instruction-tuned model")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) < 2:
        raise ALoRAError("its messages are no list of at least two turns")
    turns = [dict(message) for message in messages]
    if turns[-1].get("role") != "assistant":
        raise ALoRAError(f"its last message is by {turns[-1].get('role')!r}, not by the assistant")
    if not isinstance(turns[-1].get("content"), str) or not turns[-1]["content"].strip():
        raise ALoRAError("its last message has no text in 'content'")
    try:
        prompt = str(tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # templates raise what they like: jinja's errors, and ValueErrors of their own
        raise ALoRAError(f"it does not fit the chat template: {str(error).strip().splitlines()[0]}") from error
    if not whole.startswith(prompt) or not whole[len(prompt) :].strip():
        raise ALoRAError("the chat template does not write the last answer after what came before it")
    begin = tokenizer.bos_token
    if begin and prompt.startswith(begin) and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return prompt[len(begin) :], whole[len(prompt) :]
    return prompt, whole[len(prompt) :]
