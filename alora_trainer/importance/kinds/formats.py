"""The kinds of importance and their storage formats, by name.

A further one is a subclass of `Importance` in a file of its own, registered under its name: ``FORMATS.register(name, format)``,
and ``KINDS.register(name, kind)`` if it is of a kind that is not there yet.
"""

from __future__ import annotations

import torch

from alora_trainer.basics.registry import Registry
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.dense import DenseOmega, DoubleOmega, HalfOmega
from alora_trainer.importance.kinds.ekfac import EKFAC, EkfacOmega, HalfEkfacOmega, uniform_ekfac
from alora_trainer.importance.kinds.elementwise import ELEMENTWISE, Elementwise
from alora_trainer.importance.kinds.factored import FactoredOmega, WideFactoredOmega, uniform
from alora_trainer.importance.kinds.kind import Importance, Kind
from alora_trainer.importance.kinds.kronecker import (
    COVARIANCE,
    KRONECKER,
    CovarianceOmega,
    HalfCovarianceOmega,
    HalfKroneckerOmega,
    KroneckerOmega,
    uniform_covariance,
    uniform_kronecker,
)
from alora_trainer.importance.kinds.logarithmic import LogarithmicOmega

KINDS: Registry[Kind] = Registry("kind of importance")
for _kind in (
    Kind(ELEMENTWISE, uniform),
    Kind(
        KRONECKER,
        uniform_kronecker,
        "R = tr(D' G D S)",
        "The Kronecker factors of the Fisher information (K-FAC): G, the second moments of the log-likelihood's gradients by a "
        "layer's outputs, and S, those of its inputs. A movement costs what it does to outputs that matter, on inputs that "
        "occur.",
    ),
    Kind(
        EKFAC,
        uniform_ekfac,
        "R = sum_ij Omega_ij (U_i' D V_j)^2",
        "The Fisher information's diagonal in the eigenvectors U, V of its Kronecker factors (EK-FAC).",
    ),
    Kind(
        COVARIANCE,
        uniform_covariance,
        "R = c tr(D S D')",
        "The second moments S of the layer's inputs, and one number c for its outputs. A movement costs what it does on inputs "
        "that occur.",
    ),
):
    KINDS.register(_kind.name, _kind)

FORMATS: Registry[type[Importance]] = Registry("storage format")
_ELEMENTWISE_FORMATS = (DenseOmega, HalfOmega, LogarithmicOmega, FactoredOmega, WideFactoredOmega, DoubleOmega)
_BASIS_FORMATS = (
    *(KroneckerOmega, HalfKroneckerOmega),
    *(EkfacOmega, HalfEkfacOmega),
    *(CovarianceOmega, HalfCovarianceOmega),
)
for _format in (*_ELEMENTWISE_FORMATS, *_BASIS_FORMATS):
    FORMATS.register(_format.format, _format)


def storage_format(name: str, setting: str = "storage", *, kind: str | None = None) -> type[Importance]:
    """The format called `name`.

    Args:
        name: as in `FORMATS`.
        setting: what it was given for, for the message.
        kind: the kind of importance that is to be kept; None for any.

    Raises:
        ALoRAError: there is none of that name, or it keeps importance of another kind.
    """
    format = FORMATS.find(name, setting)
    if kind is not None and format.kind != kind:
        names = ", ".join(repr(other) for other, one in FORMATS.items() if one.kind == kind)
        raise ALoRAError(f"{setting}={name!r} keeps {format.kind} importance, and this is {kind}: use one of {names}")
    return format


def listed_formats() -> list[str]:
    """The formats that a plan lists, by name: those to choose from for a training in float32."""
    return [name for name, format in FORMATS.items() if format.listed]


def store(omega: torch.Tensor, format_name: str | None = None) -> Importance:
    """Keep a dense Omega (m, n) in a format of element-wise importance.

    Args:
        omega: non-negative, (m, n).
        format_name: None for one that is as exact as its dtype: float32, or float64.

    Raises:
        ALoRAError: there is no such format, or it keeps importance of another kind.
    """
    if format_name is None:
        format_name = "float64" if omega.dtype == torch.float64 else "float32"
    format = storage_format(format_name, kind=ELEMENTWISE)
    assert issubclass(format, Elementwise)
    return format.encode(omega)
