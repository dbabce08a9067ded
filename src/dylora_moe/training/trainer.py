"""HF's Trainer for one phase of one expert: each of its steps is one update, from the tap upwards.

Knows the loop: optimizer, schedule, evaluation, log and checkpoints. How an update's gradient is
made is `gradient`'s, which phases there are is `expert`'s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, get_scheduler

from dylora_moe.foundation.quiet import quiet
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.training.arguments import arguments, parameter_groups
from dylora_moe.training.between import BetweenEpochs
from dylora_moe.training.callbacks import PhaseCallback
from dylora_moe.training.checkpoints import Checkpoints
from dylora_moe.training.evaluations import check_finite, evaluation_losses
from dylora_moe.training.gradient import Task, UpdateGradient
from dylora_moe.training.kept import Kept, Rng, restore_rng, rng_state
from dylora_moe.training.learnables import Learnables
from dylora_moe.training.meter import operations_per_token
from dylora_moe.training.phases import Phase, scheduler_arguments
from dylora_moe.training.updates import Pass, UpdatePlan
from dylora_moe.training.watchdog import Update, Watchdog, under

_SILENT_AT = 2
"""The step at which every tensor of an expert has a gradient: B's first, A's once B is not zero."""


class ExpertTrainer(Trainer):
    """Trains one phase.

    Args:
        model: expert and gate set to learn already (`Learnables.learning`).
        task: what is learned.
        phase: how.
        key: names the phase in checkpoints.
        plan: the rows of each update.
        seed: of dropout and of the rehearsal's choice.
        kept: counters and best weights.
        checkpoints: where checkpoints go.
        callback: when to evaluate and save; gets this trainer.
        watchdog: looks at every update.
        report: is told the numbers of every log, and the step of this phase.
    """

    # Told to HF: the loss is divided by the whole update's trained tokens already.
    loss_is_scaled_for_ga = True

    optimizer: Any
    lr_scheduler: Any
    control: Any

    def __init__(
        self,
        model: DyLoRAMoE,
        task: Task,
        phase: Phase,
        key: str,
        plan: UpdatePlan,
        *,
        seed: int,
        kept: Kept,
        checkpoints: Checkpoints,
        callback: PhaseCallback,
        watchdog: Watchdog,
        report: Callable[[dict[str, Any], int], None],
    ) -> None:
        # Trainer switches the base's cache off for good; generation wants it as it was.
        use_cache = model.config.use_cache
        with quiet():
            super().__init__(
                model=model,
                args=arguments(phase, plan, checkpoints.folder, model.device, seed),
                callbacks=[watchdog, callback],
            )
        model.config.use_cache = use_cache
        self.remove_callback(PrinterCallback)
        # The base is where it is, whichever of several devices that may be.
        self.accelerator.device_placement = False
        self.task, self.phase, self.key, self.plan = task, phase, key, plan
        self.kept, self.checkpoints = kept, checkpoints
        self.callback, self.watchdog, self._report = callback, watchdog, report
        callback.trainer = self
        self.learnables = Learnables(model, task.expert_id)
        self.gradient = UpdateGradient(model, task, phase, plan.steps, seed, kept.micro)
        self.between = BetweenEpochs(model, self.learnables, phase, plan, kept, seed)
        self._device: torch.device = model.device
        self._lengths, self._targets = task.train.lengths, task.train.targets
        self._operations = operations_per_token(model)
        self._numbers: dict[str, float] = {}
        self._rng: tuple[int, Rng] | None = None

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Makes the gradient of one update; its answer loss as it is, nan and inf included.

        Raises:
            TrainingError: memory does not take one row alone.
        """
        started = time.perf_counter()
        if not model.training:
            model.train()
        passes: Sequence[Pass] = inputs["passes"]
        step: int = self.state.global_step
        self._rng = step, rng_state(self._device)
        if step == 0:
            self.watchdog.base_loss = self.gradient.base_loss(passes)
            self.watchdog.is_fresh = self.learnables.is_fresh
        tensors = self.gradient.make(passes, step)
        # The one wait for the device in an update.
        values = torch.stack([tensor.float() for tensor in tensors.values()]).tolist()
        self._numbers = dict(zip(tensors, values, strict=True))
        rows = [row for one in passes for row in one]
        self.kept.see(self._numbers["loss"])
        self._show(rows, step)
        self.kept.meter.add(
            sum(self._lengths[row] for row in rows),
            sum(self._targets[row] for row in rows),
            self.floating_point_ops(inputs),
            started,
            self._device,
        )
        return tensors["loss"].to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Answer loss of forward passes at the current step's mixture, without the gate's losses.

        Args:
            model: the trainer's own is used.
            inputs: `passes`, rows of each forward pass.
            return_outputs: whether to return the model's outputs too.
            num_items_in_batch: trained tokens to divide by; those of the passes where None.
        """
        passes: Sequence[Pass] = inputs["passes"]
        count = sum(self._targets[row] for rows in passes for row in rows)
        items = count if num_items_in_batch is None else num_items_in_batch
        outputs = [
            self.gradient.pass_output(rows, self.state.global_step, items) for rows in passes
        ]
        loss = torch.stack([output.loss for output in outputs]).sum()
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Operations of one update: the blocks above the tap on real tokens, the head on trained
        ones. Padding, attention's score products and the cached trunk are not counted."""
        rows = [row for one in inputs["passes"] for row in one]
        blocks, head = self._operations
        tokens = sum(self._lengths[row] for row in rows)
        targets = sum(self._targets[row] for row in rows)
        return int(blocks * tokens + head * targets)

    def _show(self, rows: Sequence[int], step: int) -> None:
        """Gives the update's numbers to the watchdog, which looks before the optimizer's step."""
        numbers = self._numbers
        rehearsed = self.phase.train_gate and self.task.rehearsal is not None
        self.watchdog.update = Update(
            rows=rows,
            loss=numbers["loss"],
            parts={key: value for key, value in numbers.items() if key.endswith("_loss")},
            gradient_norms=under("grad_norm/", numbers),
            silent=self.gradient.silent() if step == _SILENT_AT else (),
            usage=under("expert_usage/", numbers) if rehearsed else {},
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The phase's updates in their planned order, as one epoch of HF's loop."""
        updates: Any = [{"passes": update} for update in self.plan.updates]
        return DataLoader(updates, batch_size=1, shuffle=False, collate_fn=itemgetter(0))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with a group for the expert and one for the gate, each with its own rate."""
        if self.optimizer is None:
            groups = parameter_groups(self.phase, self.task.expert_id, self.gradient.groups)
            self.optimizer = torch.optim.AdamW(groups, fused=self._device.type in ("cpu", "cuda"))
        made: torch.optim.Optimizer = self.optimizer
        return made

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The phase's schedule; both rates follow it."""
        if self.lr_scheduler is None:
            chosen = optimizer if optimizer is not None else self.optimizer
            arguments = scheduler_arguments(self.phase, num_training_steps)
            self.lr_scheduler = get_scheduler(optimizer=chosen, **arguments)
            self._created_lr_scheduler = True
        scheduler: torch.optim.lr_scheduler.LRScheduler = self.lr_scheduler
        return scheduler

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The loss on every evaluation set (`evaluations`); then the rank may grow, or blocks
        freeze."""
        if self.state.global_step and self.callback.is_due(0.25):
            # An evaluation may take long: what was trained before it is not to be lost in it.
            self._save_checkpoint(self.model, None)
            self.callback.on_save(self.args, self.state, self.control)
        metrics = evaluation_losses(self.gradient.model, self.task, metric_key_prefix)
        self.log(dict(metrics))
        check_finite(metrics, self.phase, self.state.global_step)
        target = metrics[f"{metric_key_prefix}_{self.task.target}_loss"]
        self._take_note(target, metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _take_note(self, loss: float, metrics: Mapping[str, float]) -> None:
        """Keeps the weights if they are the best so far, and changes what is to change between two
        epochs: both, or nothing that may be saved."""
        step: int = self.state.global_step
        before, numbers = self.kept.best.loss, dict[str, Any]()
        # Nothing to go on from: matrices of two ranks, or an evaluation without its growth.
        self.callback.between_steps = False
        self.kept.best.offer(step, loss, metrics, self.learnables.copy)
        if self.between.is_due(step):
            numbers = self.between.change(step, before, loss, self.optimizer)
            self.gradient.regroup()
            self._operations = operations_per_token(self.gradient.model)
        self.callback.between_steps = True
        if numbers:
            self._report(numbers, step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hands the numbers to the reporter, those of the last update beside HF's own."""
        if "train_runtime" in logs:
            return  # HF's summary: the outcome has its own.
        step: int = self.state.global_step
        if "loss" in logs:
            meter = self.kept.meter
            logs |= {key: value for key, value in self._numbers.items() if key != "loss"}
            logs |= {
                "padding_fraction": self.plan.padding_fraction,
                "tokens": meter.tokens,
                "tokens_per_second": meter.tokens_per_second,
                "total_flos": meter.flops,
                "peak_memory_bytes": meter.peak_memory_bytes,
                "collaboration": self.phase.dense_share(step - 1, self.plan.steps),
            }
        super().log(logs, start_time)
        self._report({**logs, "epoch": self.plan.epoch(step)}, step)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        # Measured and clipped already, group by group: HF would go over every parameter again.
        return math.hypot(*under("grad_norm/", self._numbers).values())

    def rescue(self) -> bool:
        """Saves a checkpoint after the loop was interrupted; False if there is nothing to save.

        In the middle of a step the parameters are still those before it, so with dropout's
        generator put back the state is that of the last whole step. Within the optimizer's own
        step they are not, and before the first step of this process nothing was done yet: then
        the last checkpoint counts.
        """
        if not self.callback.between_steps or self._rng is None or not self.state.global_step:
            return False
        step, rng = self._rng
        if step == self.state.global_step:
            restore_rng(rng, self._device)
        self._save_checkpoint(self.model, None)
        return True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        def fill(folder: Path) -> None:
            self.kept.write(folder, self.learnables)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            self.state.save_to_json(str(folder / "trainer_state.json"))

        self.checkpoints.save(self.key, self.state.global_step, fill)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Nothing: `run` has loaded the weights, since their rank says what the optimizer is of."""
