"""A run's trainings on the domain: where each method starts, what holds it, and what it trains with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.run.dependencies import RunParts, watches_probe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alora_trainer.experiment.methods.method import Adapter

from alora_trainer.experiment.methods.method import Method
from alora_trainer.weights.parameterization import Parameterization


class DomainTraining(RunParts):
    """Stage B of one recipe, method by method; a `Run` is one."""

    if TYPE_CHECKING:

        @property
        def tokenizer(self) -> PreTrainedTokenizerBase: ...

        def prepare_data(self) -> dict[str, Any]: ...

    def train_on_domain(self, method: Method, folder: Path) -> dict[str, Any]:
        """Train `method`, saving ``folder/adapter``; what the training took, and how far it moved."""
        from alora_trainer.basics.processes import is_main
        from alora_trainer.data.domain import collator, tokenize_domain
        from alora_trainer.data.tasks import get_task
        from alora_trainer.experiment.run.drift import Start
        from alora_trainer.experiment.run.facts import domain_facts
        from alora_trainer.experiment.run.models import release_memory
        from alora_trainer.experiment.run.observe import learning_curve, probe_history
        from alora_trainer.experiment.run.start import protecting_map
        from alora_trainer.experiment.run.train import train
        from alora_trainer.trainer.publishing import save_protected_adapter

        recipe, options = self.recipe.for_method(method), self.recipe.options(method)
        files = self.prepare_data()
        data = tokenize_domain(
            get_task(recipe.domain.task),
            self.folder / files["train"],
            self.tokenizer,
            max_length=recipe.domain.max_length,
            loss_on=recipe.domain.loss_on,
            too_long=recipe.domain.too_long,
        )
        general = self._rows_of_general_text(method, folder) if method.needs_general_text else None
        collate = collator(self.tokenizer)
        adapter = self.start(method, folder, general, collate)
        probing = method.penalty and watches_probe(recipe)
        trainer = method.make_trainer(
            options=options.own,
            importance=protecting_map(recipe, method, self.importance_folder(method)) if method.importance else None,
            alora=replace(recipe.alora, record=None) if method.penalty else None,
            probe_dataset=self._probe_text(folder) if probing else None,
            general=general,
            model=adapter.model,
            args=recipe.training_arguments("tune", folder / "checkpoints"),
            train_dataset=data,
            data_collator=collate,
        )
        if recipe.evaluation.curve_steps is not None:
            general_test = {name: self.folder / path for name, path in files["general"].items()}
            test = self.folder / files["test"]
            trainer.add_callback(
                learning_curve(
                    recipe, trainer, self.tokenizer, general=general_test, test=test, folder=folder / "curve"
                )
            )
        start = Start(adapter.model)
        outcome = train(trainer) | {"drift": start.drift()}
        if is_main():
            adapter.save(folder / "adapter")
            if method.penalty:
                # What was saved is for the bare base, wherever the training started (`starts.save_protected`).
                save_protected_adapter(trainer, folder / "adapter", data=domain_facts(recipe), over_merged=False)
        if probing:
            outcome["probe"] = probe_history(trainer.state.log_history)
        del trainer, adapter, start
        release_memory()
        return outcome

    def start(self, method: Method, folder: Path, general: Any, collate: Any) -> Adapter:
        """The model that the method's training starts with, and how its adapter is saved."""
        from alora_trainer.experiment.methods.method import Adapter
        from alora_trainer.experiment.run.models import load_base, with_saved_adapter
        from alora_trainer.experiment.run.start import attach_adapter, full_start, protected_start, save_protected

        recipe = self.recipe.for_method(method)
        if method.parameterization is Parameterization.FULL:
            return Adapter.plain(full_start(recipe, self.importance_folder(method)))
        if method.penalty:
            recorded = self.importance_folder(method)
            model = protected_start(recipe, recorded)
            return Adapter(model, lambda target: save_protected(model, recipe, recorded, target))
        base = load_base(recipe)
        if method.needs_recording:
            return Adapter.plain(with_saved_adapter(base, self._map_folder(), trainable=True))
        options, config = self.recipe.options(method), recipe.lora_config()
        return attach_adapter(
            method, options, base, config, seed=recipe.seed, folder=folder, general=general, collate=collate
        )

    def _rows_of_general_text(self, method: Method, folder: Path) -> Any:
        from alora_trainer.experiment.run.general_text import text_to_train

        if self.recipe.general.streaming:
            raise ALoRAError(f"{method.name} draws general text in an order of its own: set general.streaming to false")
        return text_to_train(self.recipe, self.tokenizer, folder)

    def _probe_text(self, folder: Path) -> Any:
        from alora_trainer.experiment.run.general_text import text_to_watch

        recorded = self.folder / "record" if self.importance is None else folder
        return text_to_watch(self.recipe, self.tokenizer, recorded)
