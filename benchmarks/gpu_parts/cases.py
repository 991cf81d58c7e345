"""What is right: one error beside one tolerance a case, and a part that fails where any is above."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from gpu_parts.schedule import Budget, Figures, NotRight, Unsuitable


class Cases:
    """Comparisons of one part, put into its figures one after the other.

    A case that raises counts as wrong, and the next one is made all the same.

    Args:
        figures: of the part.
        budget: no case is begun when it is over.
    """

    def __init__(self, figures: Figures, budget: Budget) -> None:
        self.figures = figures
        self._budget = budget

    def compare(self, name: str, tolerance: float, error: Callable[[], Any], **about: Any) -> None:
        """One case.

        Args:
            name: of the case.
            tolerance: the largest error that is right.
            error: computes it, or several by what they are of; `Unsuitable` says why the case has no sense here.
            about: what else is to be said of it.
        """
        if self._budget.left() <= 0:
            self.figures[name] = {"skipped": "the budget is over"} | about
            return
        try:
            found = error()
        except Unsuitable as reason:
            self.figures[name] = {"skipped": str(reason)} | about
            return
        except Exception as fault:
            self.figures[name] = {"error": None, "raised": f"{type(fault).__name__}: {str(fault)[:400]}"} | about
            return
        errors = list(found.values()) if isinstance(found, dict) else [found]
        right = all(math.isfinite(one) and one <= tolerance for one in errors)
        self.figures[name] = {"error": found, "tolerance": tolerance, "right": right} | about

    def note(self, name: str, **about: Any) -> None:
        """Something to know that is neither right nor wrong."""
        self.figures[name] = {"note": about}

    def finish(self) -> None:
        """Raises `NotRight` if a case is wrong."""
        wrong = [name for name, case in self.figures.items() if "error" in case and not case.get("right")]
        if wrong:
            raise NotRight(f"{len(wrong)} cases are above their tolerance: {'; '.join(wrong)}")


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The Frobenius norm of the difference over that of what is expected, in float64."""
    expected = expected.detach().double()
    difference = (got.detach().to(expected.device).double() - expected).norm()
    return float(difference / expected.norm().clamp_min(1e-300))
