"""An adapter's whole movement made smaller: between the base model (0) and what was trained (1)."""

from __future__ import annotations

from torch import nn

from alora_trainer.errors import ALoRAError
from alora_trainer.weights.adapted import adapted_weights


class Shrinking:
    """Sets the movement ``s B A`` of every adapted weight to a share of what it is now, by B alone.

    Args:
        model: with one trainable LoRA adapter.

    Raises:
        ALoRAError: it has none, or one of another kind (see `adapted_weights`); something else trains beside it, which a share
            of the adapter would leave where it is.
    """

    def __init__(self, model: nn.Module) -> None:
        weights = adapted_weights(model)
        # Experts have their factors in common: every parameter once.
        self._parameters = list({id(w.parameter_b): w.parameter_b for w in weights}.values())
        factors = {id(parameter) for weight in weights for parameter in weight.parameters}
        other = next((name for name, p in model.named_parameters() if p.requires_grad and id(p) not in factors), None)
        if other is not None:
            raise ALoRAError(
                f"{other} was trained beside the adapter's factors, and cannot be scaled back to the base with them: leave "
                "modules_to_save, trainable_token_indices and bias out of the LoRA, or do not scale"
            )
        self._whole = [parameter.detach().clone() for parameter in self._parameters]

    def set(self, scale: float) -> None:
        """Make the movement `scale` times what it was when this was made."""
        for parameter, whole in zip(self._parameters, self._whole, strict=True):
            parameter.data.copy_(whole * scale)
