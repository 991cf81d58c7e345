"""The one exception that stands for a user's mistake."""

from __future__ import annotations


class ALoRAError(ValueError):
    """Something the caller gave cannot be used; the message says what is wrong and what to do, in one line.

    The command line prints the message without a traceback and exits with status 2. Everything else that is raised is a
    fault of ours or of the machine, and keeps its traceback.
    """


class Diverged(ALoRAError):
    """Training has produced NaN or infinity.

    Args:
        what: "the loss", "the penalty", "the gradient", "the weight" or "the importance".
        layer: the weight that shows it first, if one is known.
        where: the step, for the message.
        advice: what to do, for the message.
    """

    def __init__(
        self,
        what: str,
        layer: str | None,
        where: str = "",
        advice: str = "lower the learning rate, or look for bad data",
    ) -> None:
        self.what = what
        self.layer = layer
        self.where = where
        self.advice = advice
        of = f" of {layer}" if layer is not None else ""
        super().__init__(f"{what}{of} is not finite{where}: {advice}")

    def at(self, step: int, checkpoint: str | None) -> Diverged:
        """The same with the optimizer step that it happened in, and the checkpoint to go on from."""
        after = (
            f"; the last good checkpoint is {checkpoint}" if checkpoint else "; there is no good checkpoint before it"
        )
        return Diverged(self.what, self.layer, f" in step {step}{after}", self.advice)
