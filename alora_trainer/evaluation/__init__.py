"""Scores by lm-eval: general ability as perplexity, domains as accuracy."""

from __future__ import annotations

from alora_trainer.evaluation.config import EvaluationConfig
from alora_trainer.evaluation.runner import evaluate_model, pooled

__all__ = ["EvaluationConfig", "evaluate_model", "pooled"]
