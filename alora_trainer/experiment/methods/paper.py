"""The paper's own table: the base model, LoRA in its forms, ALoRA and its ablations (arXiv 2501.13669 tables 1 and 2)."""

from __future__ import annotations

from alora_trainer.experiment.methods.method import Method

BASE = Method("base", "the base model, untrained", starts_from="base")
LORA = Method("lora", "LoRA on the domain alone", starts_from="fresh")
LORA_AB = Method("lora_ab", "LoRA on general text, then on the domain, nothing held", starts_from="recorded")
RSLORA = Method("rslora", "rank-stabilised LoRA on the domain alone", starts_from="fresh", lora={"use_rslora": True})
ALORA = Method("alora", "the same as `lora_ab`, important weights held", starts_from="recorded", importance="recorded")
ALORA_BASE = Method(
    "alora_base",
    "`alora` as `ewclora` is: a new adapter over the base model, held to the base weights",
    starts_from="recorded",
    importance="recorded",
    alora={"start": "bare", "anchor": "base"},
)
ALORA_NO_LAYER = Method(
    "alora_no_layer",
    "`alora` with all layer weights 1",
    starts_from="recorded",
    importance="recorded",
    alora={"layer_weights": "none"},
)
ALORA_NO_ELEMENT = Method(
    "alora_no_element",
    "`alora` with each layer's importance spread evenly over it",
    starts_from="recorded",
    importance="even",
)
