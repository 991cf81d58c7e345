"""Scores by lm-eval: general ability as perplexity, domains as accuracy, and the table of both."""

from __future__ import annotations

from alora_trainer.evaluation.config import EvaluationConfig
from alora_trainer.evaluation.runner import evaluate_model, pooled
from alora_trainer.evaluation.table import format_table

__all__ = ["EvaluationConfig", "evaluate_model", "format_table", "pooled"]
