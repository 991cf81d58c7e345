"""The steps of a recipe of one domain in its folder: where each is, what it depends on, and whether it may be begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run import dependencies
from alora_trainer.experiment.run.stage import Stage
from alora_trainer.importance.recording.measured import Measured
from alora_trainer.weights.parameterization import Parameterization


class Steps:
    """The steps of a recipe of one domain. To look at them writes nothing.

    Args:
        recipe: the recipe.
        folder: the run's.
        variant: names what differs from another recipe in the same folder; None for nothing.
        given: what says which map takes the place of what a method starts from or is held by (of the recording that methods
            share, for None); None where none does.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        variant: str | None,
        given: Callable[[Method | None], dependencies.Given | None],
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self._variant = variant
        self._given = given

    def place(self, method: Method, scale: float | None = None) -> str:
        """The method's folder in the run's, and its name in results.json; `scale` for its finished adapter times that."""
        varied = [self._variant] if self._variant is not None else []
        if scale is not None:
            varied.append(f"scale={scale:g}")
        return f"{method.name}@{','.join(varied)}" if varied else method.name

    def data(self) -> Stage:
        """The files that the run reads."""
        return Stage(self.folder / "data", dependencies.held_out(self.recipe).settings, "data")

    def recording(self, method: Method | None = None) -> Stage:
        """Stage A: the one that methods share, or that of a `method` which records alone."""
        own = method is not None and method.records_alone
        name = f"record_{method.name}" if method is not None and own else "record"
        return Stage(self.folder / name, dependencies.recording(self.recipe, method).settings, "training")

    def measurement(self, measured: Measured, moved: Parameterization = Parameterization.ADAPTER) -> Stage:
        """What is measured at the base weights, of those that LoRA adapts or of the whole model."""
        name = f"{measured.folder}_full" if moved is Parameterization.FULL else measured.folder
        settings = dependencies.measurement(self.recipe, measured, moved).settings
        return Stage(self.folder / name, settings, "training")

    def importance(self, method: Method) -> Stage | None:
        """What this run makes for the method to start from or to be held by; None where there is nothing, or it was given."""
        if self._given(method) is not None:
            return None
        if method.measured is not None:
            return self.measurement(method.measured, method.parameterization)
        return self.recording(method) if method.needs_recording else None

    def overlap(self) -> Stage:
        """The comparison of the recording text with the test items."""
        settings = {"recording": self.recording().settings, "data": self.data().settings}
        return Stage(self.folder / "overlap", settings, "overlap")

    def training(self, method: Method) -> Stage:
        """Stage B of a method."""
        settings = dependencies.training(self.recipe, method, self._given(method)).settings
        return Stage(self.folder / self.place(method), settings, "training")

    def scores(self, name: str, trained: str) -> Stage:
        """The evaluation of what depends on what `trained` is a digest of, in the folder `name`."""
        return Stage(self.folder / name, dependencies.scores([self.recipe], trained).settings, "result")

    def check(
        self,
        methods: Sequence[Method],
        *,
        recording: bool,
        measured: Measured | None,
        scores: bool,
        overwrite: bool,
    ) -> None:
        """Look at all that a command is going to do, before it writes anything.

        Args:
            methods: that it trains.
            recording: whether it makes the recording that methods share.
            measured: what it measures for itself.
            scores: whether it evaluates the methods, too.
            overwrite: what other settings made is made anew.

        Raises:
            ALoRAError: one of the steps was made with other settings, or its folder is not ours.
        """
        used = [self.recording(), self.overlap()] if recording and scores else [self.recording()] if recording else []
        if measured is not None:
            used.append(self.measurement(measured))
        if scores or any(method.trains for method in methods):
            used.append(self.data())
        for method in methods:
            used += [step for step in (self.importance(method), self.training(method)) if step is not None]
        for step in used:
            # What texts have in common is computed from what is at hand, and nothing is lost with it.
            step.check(overwrite=overwrite or step.folder.name == "overlap")
        for method in methods if scores else ():
            self.scores(self.place(method), self.training(method).digest).finished(overwrite=overwrite)
