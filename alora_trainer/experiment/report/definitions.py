"""What the numbers in results.json mean: they travel with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alora_trainer.experiment.recipe.recipe import Recipe

METRICS = {
    "token_perplexity": "e to the mean negative log-likelihood (nats) a token of the model's own tokenizer (see 'tokenizer'), "
    "pooled over all tokens of the held-out general text; documents are cut into windows, each token predicted once",
    "token_perplexity_base2": "2 to the same mean in nats, which some papers print",
    "word_perplexity": "e to the negative log-likelihood (nats) of the text over its number of words (white space parts them)",
    "byte_perplexity": "e to the negative log-likelihood (nats) of the text over its number of UTF-8 bytes",
    "bits_per_byte": "negative log-likelihood in bits over the number of UTF-8 bytes",
    "kl_to_base": "mean over positions of sum_v p_base(v) (ln p_base(v) - ln p_model(v)), in nats a token",
    "acc": "share of the items whose right choice has the highest log-likelihood of all choices",
    "acc_norm": "the same with log-likelihoods divided by the choices' lengths in characters",
    "acc_stderr": "standard error over items: sample standard deviation over the square root of their number",
    "ece": "expected calibration error: 15 bins of equal width of the softmax over the choices' log-likelihoods",
    "correct": "one bit an item, first item first, as hexadecimal digits",
    "overlap": "items with a run of 13 words in one of their texts that the recording text has, too",
}
SPLITS = {
    "medmcqa": "the validation split is scored, because the labels of the test split are not public; lm-eval's medmcqa "
    "declares validation as its test split",
    "piqa": "the validation split is scored, because the labels of the test split are not public",
}


def definitions(recipe: Recipe) -> dict[str, str]:
    """Metric -> what it is, and what has to be known of the recipe's task."""
    task = recipe.domain.task
    name = task if isinstance(task, str) else str(task.get("name"))
    split = next((text for known, text in SPLITS.items() if name.startswith(known)), None)
    return METRICS if split is None else METRICS | {f"split of {name}": split}
