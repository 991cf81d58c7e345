"""PEFT's CorDA in its knowledge-preserved mode: what matters least for general text is trained (docs/methods/corda_kpm.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from transformers import PreTrainedModel

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import AdapterInputs
from alora_trainer.experiment.methods.starts import TakenOut, all_linear


@dataclass(frozen=True)
class CordaOptions:
    """Of `corda_kpm`.

    Attributes:
        samples: blocks of general text that the layers' inputs are gathered from.
    """

    samples: int = 256

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ALoRAError(f"samples={self.samples!r} must be at least 1")


@dataclass(frozen=True)
class Corda(TakenOut):
    """CorDA takes a part of each weight out of the base and trains it as the adapter."""

    options_class = CordaOptions
    needs_general_text = True

    def started(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Any:
        options, general, batch_of = inputs.options, inputs.general, inputs.collate
        assert batch_of is not None
        config.init_lora_weights = "corda"
        config.corda_config = CordaConfig(corda_method="kpm")
        if config.target_modules == "all-linear":
            # preprocess_corda does not know PEFT's own abbreviation.
            config.target_modules = all_linear(base)
        rows = min(options.samples, len(general))

        def read_general_text() -> None:
            for number in range(rows):  # one at a time: the hooks of PEFT expect it
                base(input_ids=batch_of([general[number]])["input_ids"].to(base.device))

        preprocess_corda(base, config, run_model=read_general_text)
        return get_peft_model(base, config)


CORDA_KPM = Corda("corda_kpm", "PEFT's CorDA, knowledge-preserved mode", starts_from="fresh")
