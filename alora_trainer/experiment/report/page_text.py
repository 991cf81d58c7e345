"""What both kinds of page say in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from alora_trainer.experiment.report.gather import OURS

TABLE_NOTE = (
    "Mean over seeds ± one sample standard deviation over seeds (none with one seed). Bold: the best of those that were tuned; "
    "that something is best does not say that it is better by more than chance."
)
SIGNIFICANCE_NOTE = (
    "Over seeds: difference of means and Welch's t-test, two-sided, variances not assumed equal. Over items: difference of "
    "accuracy over the same items, with a 95 % interval and p by a paired bootstrap over items. P values are not corrected for "
    "the number of comparisons, and a strength chosen by looking at this table is chosen on the test. The two of a pair have "
    "hardly ever forgotten as much: for accuracy at equal forgetting see the figure."
)
ABLATION_NOTE = "What is left of ALoRA when parts of it are taken away (the paper's table 2, and controls beyond it)."
OVERLAP_NOTE = (
    "Test items that share a run of 13 words (letter case and punctuation aside) with the text that importance was recorded "
    "on. Items shorter than that cannot share one."
)
NO_OVERLAP = "The recording text was not compared with the test items: these runs recorded nothing themselves."


def headline(comparison: Mapping[str, Any]) -> str:
    """What was run, in a sentence."""
    model = PurePosixPath(comparison["model"]).name
    seeds = comparison["seeds"]
    many = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})" if len(seeds) > 1 else f"one seed ({seeds[0]})"
    return f"Model {model}, task {comparison['task']}, {many}, recipe {comparison['recipe'].get('name', 'without a name')}."


def findings(comparison: Mapping[str, Any]) -> list[str]:
    """What the table says of ALoRA, in sentences that hold whatever it says."""
    rows = comparison["table"]
    said = []
    for row in rows:
        learned = row["accuracy"] or row["free_loss"]
        if row["method"] != OURS or row["rise"] is None or learned is None:
            continue
        said_of = (
            f"accuracy {learned['mean']:.1f} %"
            if row["accuracy"]
            else f"answer loss {learned['mean']:.3f} nats a token"
        )
        text = f"{row['label']}: general perplexity {row['rise']['mean']:+.1f} % against the base model, {said_of}"
        if row["accuracy_over_lora"] is not None:
            text += (
                f"; against LoRA, perplexity {row['perplexity_over_lora']:+.1f} % and accuracy "
                f"{row['accuracy_over_lora']:+.1f} points"
            )
        said.append(text + ".")
    return said


def made_with(comparison: Mapping[str, Any]) -> str:
    """Versions, device and tokenizer in a line."""
    parts = [f"{key} {value}" for key, value in comparison["environment"].items()]
    tokenizer = comparison.get("tokenizer")
    if tokenizer:
        parts.append(
            f"tokenizer {tokenizer['class']} of {tokenizer['vocab_size']} tokens (sha256 {tokenizer['vocab_sha256'][:12]})"
        )
    return ", ".join(parts)
