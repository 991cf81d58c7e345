"""The whole plan of a recipe: memory, work, time, disk and upload of every stage."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import psutil
import torch

from alora_trainer.data.tasks import get_task
from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.recipe.plan.along_a_basis import AlongABasis
from alora_trainer.experiment.recipe.plan.amounts import (
    Amount,
    domain_items,
    evaluation_tokens,
    training_amount,
    watched_tokens,
)
from alora_trainer.experiment.recipe.plan.curvature import CurvatureModel
from alora_trainer.experiment.recipe.plan.devices import Device
from alora_trainer.experiment.recipe.plan.first_directions import ChoosingModel
from alora_trainer.experiment.recipe.plan.general_amounts import GeneralText, general_text
from alora_trainer.experiment.recipe.plan.memory import Memory, MemoryModel, Pass, Variant
from alora_trainer.experiment.recipe.plan.models import build_model, model_config
from alora_trainer.experiment.recipe.plan.sharding import Sharding
from alora_trainer.experiment.recipe.plan.whole_plan import Plan, StagePlan
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.importance.kinds.ekfac import EKFAC
from alora_trainer.importance.recording.measured import Measured
from alora_trainer.trainer.initialization.settings import DEFAULT
from alora_trainer.weights.parameterization import Parameterization

# Bytes that one token of packed general text takes in host memory: ids and labels as int32.
_TOKEN_BYTES = 8


def plan_recipe(
    recipe: Recipe,
    device: Device,
    *,
    config_file: str | Path | None = None,
    length: int | None = None,
    sharding: Sharding | None = None,
    memory: MemoryModel | None = None,
    general: GeneralText | None = None,
) -> Plan:
    """Plan all stages of a recipe on one device, or on several alike.

    Args:
        recipe: checked by `load_recipe`.
        device: where it is to run.
        config_file: a config.json of the model, if it is neither local nor in the table.
        length: tokens of a domain item, at most; None is the recipe's ``domain.max_length``.
        sharding: how many devices train together, and how; None for one.
        memory: of an earlier plan of the same model, LoRA and training: what a step takes is not traced again.
        general: how much general text there will be, where that is not there yet; None counts what there is.

    Raises:
        ALoRAError: the model's configuration is not at hand, or the LoRA does not fit it.
    """
    memory = memory or _memory_of(recipe, device, config_file)
    return _Planner(recipe, device, memory, general or general_text(recipe), length, sharding or Sharding()).plan()


def _memory_of(recipe: Recipe, device: Device, config_file: str | Path | None) -> MemoryModel:
    planned = build_model(recipe, model_config(recipe, config_file))
    arguments = recipe.training_arguments("tune", ".", anywhere=True)
    return MemoryModel(
        planned,
        optimizer=str(getattr(arguments.optim, "value", arguments.optim)),
        autocast=torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None,
        host=device.host,
    )


class _Planner:
    def __init__(
        self,
        recipe: Recipe,
        device: Device,
        memory: MemoryModel,
        general: GeneralText,
        length: int | None,
        sharding: Sharding,
    ) -> None:
        self.recipe, self.device, self.memory, self.general = recipe, device, memory, general
        self.length, self.sharding = length, sharding
        self.variant = Variant(
            checkpointing=bool(recipe.tune.get("gradient_checkpointing", False)),
            omega_device=recipe.alora.omega_device,
            storage=recipe.alora.storage or recipe.map.storage or "float32",
            quantization=recipe.model.quantization,
        )
        # This process has the same libraries in it as the run will have.
        self.libraries = psutil.Process().memory_info().rss

    def plan(self) -> Plan:
        recipe = self.recipe
        stages: list[StagePlan] = []
        if recipe.needs_recording:
            stages.append(self._record())
        stages += [self._curvature(one) if one.is_curvature else self._fisher(one) for one in self._measured]
        domains = recipe.each_domain()
        for method in recipe.methods:
            if method.trains and method.parameterization is Parameterization.ADAPTER:
                stages += self._choose(domains[0], method)
                stages += [self._tune(each, method) for each in domains]
        stages.append(self._evaluate(domains))
        omega, factors = self._recorded_bytes(recipe.map.storage or "float32"), self.memory.factor_bytes
        recorded = {"importance map": omega + factors} if recipe.needs_recording else {}
        measured = {one: self._map_bytes(one) for one in self._measured}
        return Plan(
            recipe,
            self.device,
            self.sharding,
            self.variant,
            self.memory,
            stages,
            download_bytes=self.memory.planned.download_bytes,
            path_bytes=self._path_bytes,
            map_bytes=measured,
            disk_bytes=self._disk(omega),
            upload_bytes=recorded | {f"{one.name} map": held for one, held in measured.items()} | {"adapter": factors},
        )

    def _record(self) -> StagePlan:
        length = self.recipe.general.block_length
        amount = self._training(self.recipe, "record", self.general.blocks(length), length)
        variant = Variant(**(vars(self.variant) | {"checkpointing": self._checkpoints("record")}))
        shape = Pass(amount.batch_size, amount.length)
        once, along = self._path_bytes, self._along
        # w is read and written once a step (or once in fold_every), its two factors of rank 2 r are multiplied out.
        moved = 2 * once / self.recipe.alora.fold_every
        flops = 2.0 * self._rank * once
        if along is not None:
            # The factors of the gradient and of the movement are turned, and what they have in the rest is found.
            flops += 16 * self._rank * along.directions_bytes / 4
        return self._stage(
            "record", amount, shape, variant, lambda s, v: self.memory.recording(s, v, along), moved, flops,
            host=once + (self.general.train or 0) * _TOKEN_BYTES,
        )  # fmt: skip

    @cached_property
    def _along(self) -> AlongABasis | None:
        """Whose directions the recording goes along; None for the weights' own elements."""
        place = self.recipe.alora.basis
        return None if place is None else AlongABasis(place, self.memory.planned.weights)

    @property
    def _path_bytes(self) -> int:
        """w, in float32."""
        return self.memory.omega_bytes("float32") if self._along is None else self._along.path_bytes

    def _recorded_bytes(self, storage: str) -> int:
        """The map that is recorded; along directions it has one format."""
        return self.memory.omega_bytes(storage) if self._along is None else self._along.map_bytes

    @property
    def _measured(self) -> list[Measured]:
        """What is measured at the base weights, each once."""
        adapted = [one for one in self.recipe.methods if one.parameterization is Parameterization.ADAPTER]
        wanted = [method.measured for method in adapted] + [self.recipe.measured]
        return list(dict.fromkeys(one for one in wanted if one is not None))

    @cached_property
    def _curvatures(self) -> CurvatureModel:
        return CurvatureModel(self.memory, self.recipe.curvature)

    def _curvature(self, measured: Measured) -> StagePlan:
        settings, kind = self.recipe.curvature, measured.kind
        blocks = self.general.blocks(length := self.recipe.general.block_length, settings.tokens)
        passes = None if blocks is None else -(-blocks // settings.batch_size)
        passes_each = (2 if kind == EKFAC else 1) * settings.parts
        amount = Amount(blocks, passes, 1, settings.batch_size, length)
        shape = Pass(settings.batch_size, length)
        each = 0.0 if not passes or blocks is None else self._curvatures.flops(kind, blocks * length) / passes
        each += (passes_each * settings.draws - 1) * self.memory.trace(shape, False).flops
        return self._stage(
            f"measure {measured.name}", amount, shape, self.variant, self._curvatures.measuring(kind),
            0, each, host=self._curvatures.map_bytes(kind), whole_model=True,
        )  # fmt: skip

    def _fisher(self, measured: Measured) -> StagePlan:
        settings = self.recipe.fisher
        blocks = self.general.blocks(self.recipe.general.block_length)
        samples = settings.samples if blocks is None else min(blocks, settings.samples)
        passes = -(-samples // settings.batch_size)
        amount = Amount(samples, passes, 1, settings.batch_size, self.recipe.general.block_length)
        shape = Pass(settings.batch_size, amount.length)
        once = self.memory.omega_bytes("float32")
        outer = 2 * self.memory.adapted_elements * settings.batch_size * amount.length
        return self._stage(
            f"measure {measured.name}", amount, shape, self.variant,
            lambda s, v: self.memory.fisher(s, settings.batch_size), 2 * once, outer, host=once, whole_model=True,
        )  # fmt: skip

    def _choose(self, first: Recipe, method: Method) -> list[StagePlan]:
        """The choice of a fresh adapter's first directions, where they are not PEFT's."""
        recipe, measured = first.for_method(method), method.measured
        if recipe.alora.init_adapter == DEFAULT or measured is None or not measured.is_curvature:
            return []
        amount = self._training(recipe, "tune", domain_items(first)[0], self.length or first.domain.max_length)
        items = min(recipe.alora.init_items, domain_items(first)[0] or recipe.alora.init_items)
        batches = -(-items // amount.batch_size)
        omega = self._curvatures.map_bytes(measured.kind)
        model = ChoosingModel(self.memory, self._curvatures, recipe.alora, omega)
        shape = Pass(amount.batch_size, amount.length)
        back, forward = model.passes
        each = model.flops(items * amount.length) / batches
        # A step's work is counted once; a pass forward alone is a third of one forward and back.
        each += (back + forward / 3 - 1) * self.memory.trace(shape, False).flops
        planned = Amount(items, batches, 1, amount.batch_size, amount.length)
        stage = self._stage(
            f"choose {method.name}", planned, shape, self.variant, model.peak, 0, each, host=omega, whole_model=True
        )
        return [stage]

    def _tune(self, each: Recipe, method: Method) -> StagePlan:
        """Stage B of one method on the domain of `each`."""
        recipe = each.for_method(method)
        name = f"tune {method.name}" + (f" on {get_task(each.domain.task).name}" if self.recipe.domains else "")
        amount = self._training(recipe, "tune", domain_items(each)[0], self.length or each.domain.max_length)
        own, block = self.recipe.options(method).own, recipe.general.block_length
        extra = method.general_rows(own, amount.batch_size)
        amount = amount.shortened(method.share_of_steps(own, amount.batch_size, amount.length, block))
        length = max(amount.length, block) if extra else amount.length
        shape = Pass(amount.batch_size + extra, length)
        if not method.penalty:
            return self._stage(name, amount, shape, self.variant, self.memory.plain, 0, 0)
        watched = self._watching(recipe, method, amount)
        bases = self._in_a_basis(method)
        if bases is not None:
            # Each direction meets the drift's thin factors, twice and in both ways.
            products = 16 * self._rank * bases / 4 + watched
            return self._stage(
                name, amount, shape, self.variant, partial(self.memory.held_in_basis, omega=bases), bases, products,
                host=bases,
            )  # fmt: skip
        # The penalty reads Omega once a step and multiplies a drift of rank 2 r out, and its products with A and B.
        flops = 8 * self._rank * self.memory.adapted_elements + watched
        omega = self.memory.omega_bytes(self.variant.storage)
        return self._stage(
            name,
            amount,
            shape,
            self.variant,
            self.memory.protecting,
            omega,
            flops,
            host=omega,
        )

    def _watching(self, recipe: Recipe, method: Method, amount: Amount) -> float:
        """Operations a step of the looks at general text, which every device has its share of."""
        if not amount.steps:
            return 0.0
        tokens = watched_tokens(recipe, method, amount.steps)
        return self._forward_flops * tokens / amount.steps / self.sharding.gpus if tokens else 0.0

    @cached_property
    def _scoring(self) -> Pass:
        """What an evaluation passes through the model at a time."""
        settings = self.recipe.evaluation
        size = settings.batch_size if isinstance(settings.batch_size, int) else 16
        longest = max(each.domain.max_length for each in self.recipe.each_domain())
        return Pass(size, settings.max_length or longest, train=False)

    @cached_property
    def _forward_flops(self) -> float:
        """Operations of a token's pass forward, in an evaluation."""
        shape = self._scoring
        return self.memory.trace(shape, False).flops / (shape.batch_size * shape.length)

    def _in_a_basis(self, method: Method) -> int | None:
        """Bytes of the importance that holds a method's training, if it is in a basis."""
        if method.measured is None:
            return self._along.map_bytes if self._along is not None and method.needs_recording else None
        return self._curvatures.map_bytes(method.measured.kind) if method.measured.is_curvature else None

    def _stage(
        self,
        name: str,
        amount: Amount,
        shape: Pass,
        variant: Variant,
        peak: Callable[[Pass, Variant], Memory],
        moved_bytes: float,
        extra_flops: float,
        *,
        host: int = 0,
        whole_model: bool = False,
    ) -> StagePlan:
        """One stage; `whole_model` for one that needs the model whole on each device, whatever the engine."""
        sharding = self.sharding.with_whole_model if whole_model else self.sharding

        def each(chosen: Variant) -> Memory:
            return sharding.each(peak(shape, chosen), self.memory.planned.model)

        held = each(variant)
        host_bytes = self.libraries + host + (held.total if self.device.host else 0)
        if amount.steps is None:
            return StagePlan(name, held, host_bytes, amount, None, None, each)
        step = amount.micro_batches * self.memory.trace(shape, variant.checkpointing).flops + extra_flops
        device = self.device
        seconds = step / (device.flops * device.efficiency) + moved_bytes / device.bytes_per_second
        return StagePlan(name, held, host_bytes, amount, step * amount.steps, seconds * amount.steps, each)

    def _evaluate(self, domains: list[Recipe]) -> StagePlan:
        """All evaluations: one a method, and with several domains one before the first and after each of them."""
        settings, shape = self.recipe.evaluation, self._scoring
        held = self.memory.evaluation(shape, self.variant)
        each = [evaluation_tokens(domain, domain_items(domain)[1], self.general.test) for domain in domains]
        known = [tokens for tokens in each if tokens is not None]
        flops = None
        if len(known) == len(domains):
            tokens = sum(known) * (len(domains) + 1 if len(domains) > 1 else 1)
            scaled = len(settings.scales) * sum(method.can_be_scaled for method in self.recipe.methods)
            flops = self._forward_flops * tokens * (len(self.recipe.methods) + scaled)
        seconds = None if flops is None else flops / (self.device.flops * self.device.efficiency)
        host = self.libraries + (held.total if self.device.host else 0)
        return StagePlan("evaluate", held, host, None, flops, seconds, lambda v: self.memory.evaluation(shape, v))

    def _training(self, recipe: Recipe, section: str, items: int | None, length: int) -> Amount:
        """What each of the devices does."""
        return training_amount(recipe, section, items, length, processes=self.sharding.gpus)

    @property
    def _rank(self) -> int:
        return max(weight.rank for weight in self.memory.planned.weights)

    def _checkpoints(self, section: str) -> bool:
        return bool(getattr(self.recipe, section).get("gradient_checkpointing", False))

    def _map_bytes(self, measured: Measured) -> int:
        if measured.is_curvature:
            return self._curvatures.map_bytes(measured.kind)
        return self.memory.omega_bytes(self.recipe.fisher.storage)

    def _disk(self, omega: int) -> int:
        """Maps, adapters, and the checkpoints that are kept of every training (the recording's hold w)."""
        factors = self.memory.factor_bytes
        total = 0
        checkpoint = 3 * factors
        if self.recipe.needs_recording:
            kept = self.recipe.training_arguments("record", ".", anywhere=True).save_total_limit or 1
            total += omega + factors + kept * (checkpoint + self._path_bytes + factors)
        total += sum(self._map_bytes(one) + factors for one in self._measured)
        kept = self.recipe.training_arguments("tune", ".", anywhere=True).save_total_limit or 1
        total += sum(factors + kept * checkpoint for method in self.recipe.methods if method.trains)
        return total
