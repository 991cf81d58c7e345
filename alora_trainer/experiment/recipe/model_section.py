"""The recipe's section `model`: which base model, in which dtype, quantised or not."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.utils import find_adapter_config_file

from alora_trainer.errors import ALoRAError

DTYPES = ("float32", "bfloat16", "float16", "auto")
QUANTIZATIONS = ("nf4", "int8")


@dataclass(frozen=True)
class ModelConfig:
    """The base model.

    Attributes:
        path: a folder (relative to the recipe) or a Hub id.
        revision: of the Hub's repository.
        dtype: to train in; with quantisation, what is computed in.
        quantization: the linear layers' weights by bitsandbytes: "nf4" (4 bits, twice quantised, as QLoRA has it) or "int8".

    Raises:
        ALoRAError: an unknown dtype or quantisation.
    """

    path: str
    revision: str | None = None
    dtype: str = "float32"
    quantization: str | None = None

    def __post_init__(self) -> None:
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ALoRAError(
                f"model.quantization={self.quantization!r} is unknown: use one of {', '.join(QUANTIZATIONS)}, or null"
            )
        if self.dtype not in DTYPES:
            raise ALoRAError(f"model.dtype={self.dtype!r} is unknown: use one of {', '.join(DTYPES)}")


def refuse_adapter(source: str, revision: str | None = None, *, instead: str) -> None:
    """Refuse an adapter where a whole model is meant: transformers would load it onto its base model without a word.

    Args:
        source: a folder or a Hub id; of the Hub, one small file is looked for.
        revision: of the Hub's repository.
        instead: what to do, for the message.

    Raises:
        ALoRAError: there is an adapter_config.json.
    """
    try:
        found = find_adapter_config_file(source, revision=revision)
    except OSError:
        return  # there is no such repository, which whoever loads the model says
    if found is not None:
        raise ALoRAError(f"{source} holds an adapter (adapter_config.json), not a model: {instead}")
