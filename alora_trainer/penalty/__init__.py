"""The quadratic penalty ``lambda sum_l w_l sum_k Omega_k (theta_k - theta*_k)**2`` (arXiv 2501.13669 eq. 16-18)."""

from __future__ import annotations

from alora_trainer.penalty.quadratic import QuadraticPenalty

__all__ = ["QuadraticPenalty"]
