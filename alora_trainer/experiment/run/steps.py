"""The steps of a recipe of one domain in its folder: where each is, what it depends on, and whether it may be begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run import dependencies
from alora_trainer.experiment.run.stage import Stage
from alora_trainer.weights.parameterization import Parameterization


class Steps:
    """The steps of a recipe of one domain. To look at them writes nothing.

    Args:
        recipe: the recipe.
        folder: the run's.
        variant: names what differs from another recipe in the same folder; None for nothing.
        given: what says which map takes the place of the recording; None where none does.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, *, variant: str | None, given: Callable[[], dependencies.Given | None]
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self._variant = variant
        self._given = given

    def place(self, method: Method) -> str:
        """The method's folder in the run's, and its name in results.json."""
        return method.name if self._variant is None else f"{method.name}@{self._variant}"

    def data(self) -> Stage:
        """The files that the run reads."""
        return Stage(self.folder / "data", dependencies.held_out(self.recipe).settings, "data")

    def recording(self, method: Method | None = None) -> Stage:
        """Stage A: the one that methods share, or that of a `method` which records alone."""
        own = method is not None and method.records_alone
        name = f"record_{method.name}" if method is not None and own else "record"
        return Stage(self.folder / name, dependencies.recording(self.recipe, method).settings, "training")

    def fisher(self, method: Method) -> Stage:
        """The Fisher information that the method holds by."""
        assert method.importance is not None
        full = method.parameterization is Parameterization.FULL
        name = f"{method.importance}_full" if full else method.importance
        return Stage(self.folder / name, dependencies.fisher_information(self.recipe, method).settings, "training")

    def importance(self, method: Method) -> Stage | None:
        """What this run makes for the method to start from or to be held by; None where there is nothing, or it was given."""
        if method.fisher_kind is not None:
            return self.fisher(method)
        if method.needs_recording and (method.records_alone or self._given() is None):
            return self.recording(method)
        return None

    def overlap(self) -> Stage:
        """The comparison of the recording text with the test items."""
        settings = {"recording": self.recording().settings, "data": self.data().settings}
        return Stage(self.folder / "overlap", settings, "overlap")

    def training(self, method: Method) -> Stage:
        """Stage B of a method."""
        settings = dependencies.training(self.recipe, method, self._given()).settings
        return Stage(self.folder / self.place(method), settings, "training")

    def scores(self, name: str, trained: str) -> Stage:
        """The evaluation of what depends on what `trained` is a digest of, in the folder `name`."""
        return Stage(self.folder / name, dependencies.scores([self.recipe], trained).settings, "result")

    def check(self, methods: Sequence[Method], *, recording: bool, scores: bool, overwrite: bool) -> None:
        """Look at all that a command is going to do, before it writes anything.

        Args:
            methods: that it trains.
            recording: whether it makes the recording that methods share.
            scores: whether it evaluates the methods, too.
            overwrite: what other settings made is made anew.

        Raises:
            ALoRAError: one of the steps was made with other settings, or its folder is not ours.
        """
        used = [self.recording(), self.overlap()] if recording and scores else [self.recording()] if recording else []
        if scores or any(method.trains for method in methods):
            used.append(self.data())
        for method in methods:
            used += [step for step in (self.importance(method), self.training(method)) if step is not None]
        for step in used:
            # What texts have in common is computed from what is at hand, and nothing is lost with it.
            step.check(overwrite=overwrite or step.folder.name == "overlap")
        for method in methods if scores else ():
            self.scores(self.place(method), self.training(method).digest).finished(overwrite=overwrite)
