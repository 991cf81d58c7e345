"""How an adapter's first directions are chosen: the names and numbers that all who ask for it give."""

from __future__ import annotations

from alora_trainer.errors import ALoRAError

DEFAULT, NATURAL_GRADIENT, CONTRASTIVE = "default", "natural_gradient", "contrastive"
# What each of the two would be without one of its two texts, to compare with.
GRADIENT, NULL_SPACE = "gradient", "null_space"
SKETCH = "sketch"
KINDS = (NATURAL_GRADIENT, CONTRASTIVE, GRADIENT, NULL_SPACE)
BY_GRADIENT = (NATURAL_GRADIENT, GRADIENT)
MEMORIES = ("device", "cpu", SKETCH)


def check_settings(kind: str, *, items: int, damping: float, memory: str) -> None:
    """Refuse what no adapter can be initialised by; see `initialize_adapter`.

    Raises:
        ALoRAError: naming the setting.
    """
    for name, value, known in (("kind", kind, KINDS), ("memory", memory, MEMORIES)):
        if value not in known:
            raise ALoRAError(f"{name}={value!r} is unknown: use one of {', '.join(map(repr, known))}")
    if kind not in BY_GRADIENT and memory == SKETCH:
        raise ALoRAError(
            f"a sketch is of gradients, and {kind} directions are found without any: use memory='device' or 'cpu'"
        )
    if not items >= 1:
        raise ALoRAError(f"items={items!r} must be at least 1")
    if not 0 < damping < float("inf"):
        raise ALoRAError(f"damping={damping!r} must be a positive number, a share of the mean eigenvalue")
