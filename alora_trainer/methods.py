"""What the compared methods mean. All of them are one training on the domain; they differ in where it starts from and in
what holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alora_trainer.errors import ALoRAError
from alora_trainer.settings import check_keys


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: as recipes, folders and results name it.
        description: one line for people.
        starts_from: "base" is the base model as it is, without any training; "fresh" trains a new adapter on the domain;
            "recorded" goes on with the adapter that recording on general text left behind.
        penalty: hold what the recording found important (needs ``starts_from="recorded"``).
    """

    name: str
    description: str
    starts_from: Literal["base", "fresh", "recorded"]
    penalty: bool = False

    def __post_init__(self) -> None:
        if self.penalty and not self.needs_recording:
            raise ALoRAError(f"method {self.name}: a penalty needs starts_from='recorded'")

    @property
    def trains(self) -> bool:
        """Whether there is a training on the domain at all."""
        return self.starts_from != "base"

    @property
    def needs_recording(self) -> bool:
        """Whether stage A, recording on general text, must come first."""
        return self.starts_from == "recorded"


METHODS = {
    method.name: method
    for method in (
        Method("base", "the base model, untrained", starts_from="base"),
        Method("lora", "LoRA on the domain alone", starts_from="fresh"),
        Method("lora_ab", "LoRA on general text, then on the domain, nothing held", starts_from="recorded"),
        Method("alora", "the same, important weights held", starts_from="recorded", penalty=True),
    )
}


def get_method(name: str) -> Method:
    """The method of this name.

    Raises:
        ALoRAError: there is none; the message names the nearest one.
    """
    check_keys([name], list(METHODS), "methods")
    return METHODS[name]
