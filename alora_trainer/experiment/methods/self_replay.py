"""Replay without a corpus: on text that is sampled from the base model, by cross-entropy or by distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from alora_trainer.data.self_text import SelfTextConfig
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.general_text import GeneralTextMethod, GeneralTextOptions
from alora_trainer.experiment.methods.kl_anchor import KLAnchorOptions, KLAnchorTrainer
from alora_trainer.experiment.methods.replay import ReplayTrainer


@dataclass(frozen=True)
class SampledText(GeneralTextOptions):
    """How general text is sampled from the base model for one method, before its training.

    Attributes:
        tokens, length, top_p: as of `SelfTextConfig`.
        sampling_temperature: of the sampling; 1 is the model's own distribution.
        prompts: what the text continues, a batch each in turn; without any, it begins at the beginning-of-text token.

    Raises:
        ALoRAError: a number is out of range, or a prompt is none.
    """

    tokens: int = 100_000
    length: int = 256
    sampling_temperature: float = 1.0
    top_p: float = 0.95
    prompts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            _ = self.sampling
        except ALoRAError as error:
            raise ALoRAError(str(error).removeprefix("general.self_text.")) from error
        if not isinstance(self.prompts, list) or not all(isinstance(one, str) and one.strip() for one in self.prompts):
            raise ALoRAError(f"prompts={self.prompts!r} must be a list of texts to continue")

    @property
    def sampling(self) -> SelfTextConfig:
        """The same as the sampler wants it."""
        return SelfTextConfig(self.tokens, self.length, self.sampling_temperature, self.top_p)


@dataclass(frozen=True)
class SelfReplayOptions(SampledText):
    """Of `self_replay`."""


@dataclass(frozen=True)
class SelfKLOptions(SampledText, KLAnchorOptions):
    """Of `self_kl`: how text is sampled, and how it is distilled on."""


@dataclass(frozen=True)
class SelfReplay(GeneralTextMethod):
    """Sees text of the base model's own, and no other."""

    options_class: ClassVar[type[SampledText]] = SelfReplayOptions
    trainer_class = ReplayTrainer
    samples_text = True

    def own_text(self, options: SampledText) -> tuple[SelfTextConfig, Sequence[str]]:
        return options.sampling, options.prompts


@dataclass(frozen=True)
class SelfKL(SelfReplay):
    """Stays near the base model's predictions on that text."""

    options_class = SelfKLOptions
    trainer_class = KLAnchorTrainer
    compares_with_base = True


SELF_REPLAY = SelfReplay(
    "self_replay", "LoRA on the domain with text mixed in that the base model says itself", starts_from="fresh"
)
SELF_KL = SelfKL(
    "self_kl", "LoRA on the domain, distilled from the base model on text that it says itself", starts_from="fresh"
)
