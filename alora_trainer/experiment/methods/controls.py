"""What a sceptic compares with: the same recording and penalty, with what is claimed to matter taken away."""

from __future__ import annotations

from alora_trainer.experiment.methods.method import Method

L2 = Method(
    "l2",
    "`alora` with all importance alike: plain L2 towards the recorded weights",
    starts_from="recorded",
    importance="uniform",
    alora={"layer_weights": "none"},
)
SHUFFLED = Method(
    "shuffled",
    "`alora` with importance put to random places within each layer",
    starts_from="recorded",
    importance="shuffled",
)
