"""All methods, each from the file that it is in; docs/methods/ has a page on each.

All of them are one training on the domain; they differ in where it starts from, in what holds it, and a few in how it trains.
A package of its own adds one with ``METHODS.register`` (see docs/contributing.md).
"""

from __future__ import annotations

from alora_trainer.basics.registry import Registry
from alora_trainer.experiment.methods.asft import ASFT_METHOD
from alora_trainer.experiment.methods.base_kl import KL_DOMAIN
from alora_trainer.experiment.methods.clora import CLORA
from alora_trainer.experiment.methods.controls import L2, SHUFFLED
from alora_trainer.experiment.methods.corda import CORDA_KPM
from alora_trainer.experiment.methods.curvature import COVARIANCE, EKFAC, KFAC
from alora_trainer.experiment.methods.eva import EVA
from alora_trainer.experiment.methods.ewc import EWCLORA, EWCLORA_BATCH, EWCLORA_FACTORED, EWCLORA_TRUE
from alora_trainer.experiment.methods.finch import FINCH
from alora_trainer.experiment.methods.first_directions import (
    KFAC_CONTRASTIVE,
    KFAC_NATURAL,
    LORA_CONTRASTIVE,
    LORA_CONTRASTIVE_FROZEN,
    LORA_FROZEN,
    LORA_NATURAL,
    LORA_NATURAL_FROZEN,
)
from alora_trainer.experiment.methods.full_tuning import EWC_FULL, SI_FULL
from alora_trainer.experiment.methods.i_lora import I_LORA
from alora_trainer.experiment.methods.intruders import REDUCE_INTRUDERS
from alora_trainer.experiment.methods.kl_anchor import KL_ANCHOR
from alora_trainer.experiment.methods.l2_init import L2_INIT
from alora_trainer.experiment.methods.lalora import LALORA
from alora_trainer.experiment.methods.lora_ga import LORA_GA
from alora_trainer.experiment.methods.lora_null import LORA_NULL, LORA_NULL_FROZEN
from alora_trainer.experiment.methods.lora_pro import LORA_PRO
from alora_trainer.experiment.methods.method import Method
from alora_trainer.experiment.methods.mlp_only import KFAC_MLP, MLP_ONLY
from alora_trainer.experiment.methods.oplora import OPLORA
from alora_trainer.experiment.methods.osf import OSF
from alora_trainer.experiment.methods.paper import (
    ALORA,
    ALORA_BASE,
    ALORA_NO_ELEMENT,
    ALORA_NO_LAYER,
    BASE,
    LORA,
    LORA_AB,
    RSLORA,
)
from alora_trainer.experiment.methods.replay import KFAC_REPLAY, PADDING, REPLAY
from alora_trainer.experiment.methods.sc_lora import SC_LORA
from alora_trainer.experiment.methods.scaled import KFAC_SCALED, SCALED
from alora_trainer.experiment.methods.self_replay import SELF_KL, SELF_REPLAY
from alora_trainer.experiment.methods.weight_starts import MICA, OLORA, ORTHOGONAL, PISSA

# In the order of tables and reports, which tell methods apart by their place.
METHODS: Registry[Method] = Registry("method")
for _method in (
    *(BASE, LORA, LORA_AB, RSLORA, EWCLORA, EWCLORA_TRUE, EWCLORA_BATCH, EWCLORA_FACTORED, KFAC, EKFAC, COVARIANCE),
    *(LORA_FROZEN, LORA_NATURAL, LORA_NATURAL_FROZEN, LORA_CONTRASTIVE, LORA_CONTRASTIVE_FROZEN),
    *(KFAC_NATURAL, KFAC_CONTRASTIVE),
    *(ALORA, ALORA_NO_LAYER, ALORA_NO_ELEMENT),
    *(L2, SHUFFLED, MLP_ONLY, REPLAY, KL_ANCHOR, I_LORA, LORA_PRO, SI_FULL, EWC_FULL, CORDA_KPM, OSF),
    *(LORA_NULL, LORA_NULL_FROZEN, LORA_GA, MICA, PISSA, OLORA, ORTHOGONAL, EVA, SC_LORA, OPLORA, CLORA),
    *(SCALED, KFAC_SCALED, PADDING, SELF_REPLAY, SELF_KL, KL_DOMAIN, ASFT_METHOD, L2_INIT, ALORA_BASE),
    *(KFAC_REPLAY, KFAC_MLP, FINCH, REDUCE_INTRUDERS, LALORA),
):
    METHODS.register(_method.name, _method)


def get_method(name: str) -> Method:
    """The method of this name.

    Raises:
        ALoRAError: there is none; the message names the nearest one.
    """
    return METHODS.find(name, "methods")
