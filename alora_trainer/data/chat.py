"""Chat data: conversations as the model's own chat template writes them, the last answer being what is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from alora_trainer.data.encoding import put_before
from alora_trainer.data.records import check_characters, shown
from alora_trainer.data.sources import check_keys
from alora_trainer.errors import ALoRAError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_KEYS = ("name", "messages")
# Who speaks in ShareGPT's `from`, as chat templates call them. What else is found there (function calls, observations) is
# written in as many ways as there are data sets.
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}
# Those that all templates know; others are the template's to take or to refuse.
_ROLES = ("user", "assistant", "system")


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
        messages: the turns in their order, ``{"role", "content"}`` or ``{"from", "value"}`` (ShareGPT); the last one must be
            the assistant's. A content in parts, ``{"type": "text", "text": ...}``, is the parts one after the other.
        tokenizer: with a chat template. A beginning-of-text token that the tokenizer puts there itself is left out of the text.

    Raises:
        ALoRAError: there is no template, or the conversation does not fit it.
    """
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise ALoRAError("chat data needs a tokenizer with a chat template: choose an instruction-tuned model")
    turns = _turns(messages)
    prompt, whole = _written(turns, tokenizer)
    if not whole.startswith(prompt) or not whole[len(prompt) :].strip():
        raise ALoRAError("the chat template does not write the last answer after what came before it")
    check_characters(whole, "its conversation")
    begin = tokenizer.bos_token
    if begin and prompt.startswith(begin) and put_before(tokenizer)[:1] == [tokenizer.bos_token_id]:
        return prompt[len(begin) :], whole[len(prompt) :]
    return prompt, whole[len(prompt) :]


def written_plainly(messages: Any) -> tuple[str, str]:
    """The same for a model without a chat template: every turn after its speaker's name, as in ``User: ...``, a line apart.

    Raises:
        ALoRAError: it is no conversation that ends with an answer of the assistant's.
    """
    turns = _turns(messages)
    said = [f"{turn['role'].capitalize()}: {turn.get('content') or ''}".rstrip() for turn in turns[:-1]]
    return check_characters("\n\n".join([*said, "Assistant:"]), "its conversation"), f" {turns[-1]['content'].strip()}"


def _turns(messages: Any) -> list[dict[str, Any]]:
    """The turns of a conversation that ends with an answer of the assistant's."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) < 2:
        raise ALoRAError("its messages are no list of at least two turns")
    turns = [_turn(message, number) for number, message in enumerate(messages, start=1)]
    if turns[-1]["role"] != "assistant":
        raise ALoRAError(f"its last message is by {turns[-1]['role']!r}, not by the assistant")
    if not isinstance(turns[-1].get("content"), str) or not turns[-1]["content"].strip():
        raise ALoRAError("its last message has no text in 'content'")
    return turns


def _written(turns: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The conversation up to the last answer, and the whole of it."""
    try:
        prompt = str(tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True))
        return prompt, str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # templates raise what they like: jinja's errors, and ValueErrors of their own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ALoRAError(f"it does not fit the chat template: {reason[0]}") from error


def _turn(message: Any, number: int) -> dict[str, Any]:
    """A message as chat templates know it: ``role``, ``content``, and what else it has."""
    what = f"its message {number}"
    if not isinstance(message, Mapping):
        raise ALoRAError(f"{what} is {shown(message)}, not an object with role and content")
    # A null is a key that is not there, as in the newer versions of transformers: templates write it as a word.
    turn = {key: value for key, value in message.items() if value is not None}
    if "role" not in turn and "from" in turn:
        turn["role"], turn["content"] = _speaker(turn.pop("from"), what), turn.pop("value", None)
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str):
        raise ALoRAError(f"{what} has the role {shown(role)}: a role is a word, such as user or assistant")
    meant = get_close_matches(role, _ROLES, n=1, cutoff=0.8) if role.lower() not in _ROLES else []
    if meant:
        raise ALoRAError(f"{what} has the role {shown(role)}: did you mean {meant[0]}?")
    if content is None and turn.get("tool_calls"):
        return turn
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part(part, what) for part in content)
    if not isinstance(content, str):
        raise ALoRAError(f"{what} has no text: its content is {shown(content)}")
    return turn | {"content": check_characters(content, what)}


def _speaker(name: Any, what: str) -> str:
    role = SHAREGPT_ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise ALoRAError(f"{what} is from {shown(name)}: those known are {', '.join(SHAREGPT_ROLES)}")
    return role


def _part(part: Any, what: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = f"of type {shown(part.get('type'))}" if isinstance(part, Mapping) else shown(part)
        raise ALoRAError(f"{what} has a part {kind}: only text can be learned, {{type: text, text: ...}}")
    return str(part["text"])
