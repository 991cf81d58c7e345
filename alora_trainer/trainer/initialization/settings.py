"""How an adapter's first directions are chosen: the names and numbers that all who ask for it give."""

from __future__ import annotations

from alora_trainer.errors import ALoRAError

DEFAULT, NATURAL_GRADIENT, CONTRASTIVE = "default", "natural_gradient", "contrastive"
SKETCH = "sketch"
KINDS = (NATURAL_GRADIENT, CONTRASTIVE)
MEMORIES = ("device", "cpu", SKETCH)


def check_settings(kind: str, *, items: int, damping: float, memory: str) -> None:
    """Refuse what no adapter can be initialised by; see `initialize_adapter`.

    Raises:
        ALoRAError: naming the setting.
    """
    for name, value, known in (("kind", kind, KINDS), ("memory", memory, MEMORIES)):
        if value not in known:
            raise ALoRAError(f"{name}={value!r} is unknown: use one of {', '.join(map(repr, known))}")
    if kind == CONTRASTIVE and memory == SKETCH:
        raise ALoRAError(
            "a sketch is of gradients, and contrastive directions are found without any: use memory='device' or 'cpu'"
        )
    if not items >= 1:
        raise ALoRAError(f"items={items!r} must be at least 1")
    if not 0 < damping < float("inf"):
        raise ALoRAError(f"damping={damping!r} must be a positive number, a share of the mean eigenvalue")
