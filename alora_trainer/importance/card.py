"""The model card of an importance map, and the per-layer table beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alora_trainer.importance.map import ImportanceMap

_BODY = """# Importance map for {base}

How much every element of {count} adapted weights mattered for the text that it was recorded on: the Synaptic Intelligence
importance of arXiv 2501.13669 (eq. 13-15), recorded by `alora_trainer` while a LoRA adapter was tuned. Use it to tune the
same base model on a domain while holding what is important. This has nothing to do with PEFT's "Activated LoRA".

```python
from alora_trainer import ALoRAConfig, ALoRATrainer, ImportanceMap

importance = ImportanceMap.from_pretrained("{source}")
trainer = ALoRATrainer(model, args, train_dataset=domain, importance=importance, alora=ALoRAConfig(lam=0.3))
```

`model` is `PeftModel.from_pretrained(base, "{source}", is_trainable=True)`: the folder is an ordinary PEFT adapter, too (the
weights theta* at which importance was measured).

| | |
|---|---|
| base model | {base} |
| estimator | {estimator}, xi = {xi} |
| steps, tokens | {steps:,}, {tokens:,} |
| optimizer, learning rate | {optimizer}, {learning_rate} |
| data | {data} |
| seed | {seed} |
| importance | {elements:,} elements, mean {mean:.4g} |
"""


def layer_table(importance: ImportanceMap) -> dict[str, dict[str, float | None]]:
    """``||Omega_l||_2``, its natural logarithm (None for zero) and the mean, by weight name."""
    return {
        name: {
            "norm": norm,
            "log_norm": math.log(norm) if norm > 0 else None,
            "mean": importance.total([name]) / math.prod(importance.stored(name).shape),
        }
        for name, norm in importance.layer_norms.items()
    }


def model_card(importance: ImportanceMap, picture: str | None = None) -> str:
    """The README.md of the artefact: metadata for the Hub, and what a reader must know to use and judge the map."""
    from huggingface_hub import ModelCardData

    info = importance.info
    base = info.base_model
    on_hub = base is not None and base.count("/") == 1 and not base.startswith((".", "/")) and not Path(base).exists()
    metadata: dict[str, Any] = {"library_name": "peft", "tags": ["importance-map", "synaptic-intelligence", "lora"]}
    if on_hub:
        metadata |= {"base_model": base, "base_model_relation": "adapter"}
    body = _BODY.format(
        base=base or "an unnamed base model",
        source="FOLDER_OR_HUB_ID",
        count=len(importance),
        estimator=info.estimator,
        xi=info.xi,
        steps=info.steps,
        tokens=info.tokens,
        optimizer=info.optimizer,
        learning_rate=info.learning_rate,
        data=", ".join(f"{key}: {value}" for key, value in info.data.items()) or "not described",
        seed=info.seed,
        elements=importance.elements,
        mean=importance.mean,
    )
    if picture is not None:
        body += f"\n![Logarithm of the importance's norm, by layer and kind of weight]({picture})\n"
    return f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{body}"
