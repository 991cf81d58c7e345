"""How theta* lies in a map's folder, by what it is. Who reads or writes a map asks here, and for nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from alora_trainer.artefact.adapter_file import AdapterStorage
from alora_trainer.artefact.base_theta import BaseStorage
from alora_trainer.artefact.reference_file import ReferenceStorage
from alora_trainer.artefact.theta_storage import ThetaStorage
from alora_trainer.weights.theta import AdapterTheta, BaseTheta, FullTheta, Theta

THETA_FILES: Mapping[type[Theta], ThetaStorage] = {
    AdapterTheta: AdapterStorage(),
    FullTheta: ReferenceStorage(),
    BaseTheta: BaseStorage(),
}
