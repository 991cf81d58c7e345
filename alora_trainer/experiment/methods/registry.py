"""What the compared methods mean. All of them are one training on the domain; they differ in where it starts from, in what
holds it, and a few in how it trains. docs/methods/ has a page on each."""

from __future__ import annotations

from alora_trainer.basics.keys import check_keys
from alora_trainer.experiment.methods.method import Method

# A new adapter over the base as it is, held to the base: theta* = W0.
_FROM_THE_BASE = {"start": "bare", "anchor": "base", "layer_weights": "none"}

# As published: no layer weights, and the model's own parameters; what a recipe says of its LoRA's start is not for these.
_FULL = {
    "full_parameters": True,
    "layer_weights": "none",
    "start": "recorded",
    "anchor": "reference",
    "missing": "error",
    "backend": None,
}

METHODS = {
    method.name: method
    for method in (
        Method("base", "the base model, untrained", starts_from="base"),
        # The paper's own table, and its ablations.
        Method("lora", "LoRA on the domain alone", starts_from="fresh"),
        Method("lora_ab", "LoRA on general text, then on the domain, nothing held", starts_from="recorded"),
        Method("rslora", "rank-stabilised LoRA on the domain alone", starts_from="fresh", lora={"use_rslora": True}),
        Method(
            "ewclora",
            "LoRA on the domain, held to the base weights by their Fisher information",
            starts_from="fresh",
            importance="fisher",
            alora=_FROM_THE_BASE,
        ),
        Method(
            "ewclora_batch",
            "the same with the squared batch gradients of the official code",
            starts_from="fresh",
            importance="fisher_batch",
            alora=_FROM_THE_BASE,
        ),
        Method("alora", "the same as `lora_ab`, important weights held", starts_from="recorded", importance="recorded"),
        Method(
            "alora_no_layer",
            "`alora` with all layer weights 1",
            starts_from="recorded",
            importance="recorded",
            alora={"layer_weights": "none"},
        ),
        Method(
            "alora_no_element",
            "`alora` with each layer's importance spread evenly over it",
            starts_from="recorded",
            importance="even",
        ),
        # Controls.
        Method(
            "l2",
            "`alora` with all importance alike: plain L2 towards the recorded weights",
            starts_from="recorded",
            importance="uniform",
            alora={"layer_weights": "none"},
        ),
        Method(
            "shuffled",
            "`alora` with importance put to random places within each layer",
            starts_from="recorded",
            importance="shuffled",
        ),
        Method("mlp_only", "LoRA on the MLP's layers alone", starts_from="fresh", adapter="mlp_lora"),
        # Rivals that do without importance.
        Method("replay", "LoRA on the domain with some general text mixed in", starts_from="fresh", technique="replay"),
        Method(
            "kl_anchor",
            "LoRA on the domain, distilled from the base model on general text",
            starts_from="fresh",
            technique="kl_anchor",
        ),
        Method(
            "i_lora",
            "LoRA with replay, tied to a moving average of itself, which is the result",
            starts_from="fresh",
            technique="i_lora",
        ),
        Method("lora_pro", "LoRA with LoRA-Pro's gradient correction", starts_from="fresh", technique="lora_pro"),
        Method(
            "si_full",
            "full tuning, held by Synaptic Intelligence recorded in a full tuning on general text",
            starts_from="recorded",
            importance="recorded",
            adapter="full",
            alora=_FULL,
        ),
        Method(
            "ewc_full",
            "full tuning, held to the base weights by their Fisher information",
            starts_from="fresh",
            importance="fisher",
            adapter="full",
            alora=_FULL,
        ),
        Method("corda_kpm", "PEFT's CorDA, knowledge-preserved mode", starts_from="fresh", adapter="corda"),
        Method("osf", "PEFT's orthogonal subspace fine-tuning", starts_from="fresh", adapter="osf"),
    )
}


def get_method(name: str) -> Method:
    """The method of this name.

    Raises:
        ALoRAError: there is none; the message names the nearest one.
    """
    check_keys([name], list(METHODS), "methods")
    return METHODS[name]
