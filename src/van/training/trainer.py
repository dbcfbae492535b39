"""The training loop of every task, in one process or several.

An update is one step of the optimizer. Every update depends only on the settings and the progress of
the run, so a killed and resumed run ends with the same bits as an uninterrupted one.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from timm.utils import ModelEmaV3
from torch import Tensor

from van.checkpoint import load_checkpoint
from van.errors import CheckpointError, DataError, Interrupted, NonFiniteLoss, UsageError
from van.tasks.base import Batch
from van.training import state as states
from van.training.distributed import accelerator_context, check_distributed_settings, to_device, wrap_distributed
from van.training.evaluate import evaluate
from van.training.loader import TrainBatchSampler, make_loader
from van.training.optimizer import freeze, gradient_norm, make_optimizer, make_schedule, train_mode
from van.training.progress import ProgressBar
from van.training.run import TrainingRun
from van.training.run_folder import RunFolder, check_run, create_run
from van.training.stopping import StopRequest, stop_on_signals

MAX_METRICS_SHOWN = 4
"""Number of metrics in a progress line, the monitored one first; the log has all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of a finished run.

    Args:
        metrics: metrics of the best checkpoint, the monitored one first.
        best_update, updates: the update of the best checkpoint, and the number of updates.
        seconds: training and evaluation time, over all resumed sessions.
        images_per_s: training throughput, without evaluation and checkpoint writing.
        unreadable: names and reasons of training images that were skipped.
    """

    metrics: dict[str, float]
    best_update: int
    updates: int
    seconds: float
    images_per_s: float
    unreadable: dict[str, str]


def fit(run: TrainingRun, out: Path, *, resume: bool = False) -> Summary:
    """Train ``run`` into the run folder ``out``, or resume the run in that folder.

    Raises:
        RunExists: ``out`` contains a run and ``resume`` is off.
        Interrupted: a signal was received; the run saved a checkpoint first.
        NonFiniteLoss: the loss or its gradient is not finite; the last finite checkpoint is kept.
        DataError: too many images cannot be read.
        UsageError: the settings do not fit the data, the device or the run to resume.
    """
    context = accelerator_context(device=run.settings.device, precision=run.settings.precision)
    with context as accelerator, stop_on_signals(accelerator) as stop:
        check_distributed_settings(run.settings, accelerator)
        check_run(out, run.recipe, resume=resume)
        accelerator.wait_for_everyone()
        trainer = _Trainer(run, out, accelerator, stop)  # validates the settings before the folder is created
        if accelerator.is_main_process:
            create_run(out, run.recipe)
        accelerator.wait_for_everyone()
        return trainer.train()


class _Trainer:
    """The state and the steps of a run in progress."""

    def __init__(self, run: TrainingRun, out: Path, accelerator: Accelerator, stop: StopRequest) -> None:
        self.run, self.out, self.accelerator, self.stop = run, out, accelerator, stop
        settings = self.settings = run.settings
        self.updates_per_epoch = len(run.train_dataset) // settings.batch_size
        if self.updates_per_epoch == 0:
            raise UsageError(
                f"--batch-size: expected at most {len(run.train_dataset)}, the number of training images, "
                f"got {settings.batch_size}"
            )
        self.updates = settings.epochs * self.updates_per_epoch
        freeze(run.model, settings)
        self.ema = self._make_ema() if settings.ema_decay else None
        self.model = wrap_distributed(run.model, accelerator, settings)
        self.optimizer = make_optimizer(accelerator.unwrap_model(self.model), settings)
        self.schedule = make_schedule(self.optimizer, settings, self.updates_per_epoch)
        self.wrapped_optimizer = accelerator.prepare_optimizer(self.optimizer)
        self.progress = states.Progress()
        self.metrics: dict[str, float] = {}
        self.unreadable: dict[str, str] = {}
        # of this session only, so that the throughput of a resumed run is that of the current machine
        self.session_s = 0.0
        self.session_updates = 0

    def train(self) -> Summary:
        """Restore the last checkpoint if there is one, train the remaining epochs, and return the summary."""
        settings = self.settings
        set_seed(settings.seed + self.accelerator.process_index)
        last = self.out / "last.safetensors"
        if last.exists():
            self._restore(last)
        self.schedule.step_update(self.progress.update)
        is_main = self.accelerator.is_main_process
        self.folder = None
        if is_main:
            self.folder = RunFolder(self.out, monitor=self.run.task.monitor, resumed_at=self.progress.update)
        try:
            with ProgressBar(self.updates, self.progress.update, enabled=is_main) as self.progress_bar:
                for epoch in range(self.progress.update // self.updates_per_epoch, settings.epochs):
                    self._train_epoch(epoch)
        except BaseException:
            with contextlib.suppress(CheckpointError):  # the error that stopped the run must not be replaced
                self._close()
            raise
        self._close()
        return Summary(
            metrics=self.metrics,
            best_update=self.progress.best_update,
            updates=self.updates,
            seconds=self.progress.seconds,
            images_per_s=self._images_per_s(),
            unreadable=self.unreadable,
        )

    def _make_ema(self) -> ModelEmaV3:
        foreach = self.settings.strategy == "ddp"  # torch cannot average many sharded tensors in one call
        ema = ModelEmaV3(self.run.model, decay=self.settings.ema_decay, use_warmup=True, foreach=foreach)
        to_device(ema.module, self.accelerator, self.settings)
        return ema

    def _close(self) -> None:
        if self.folder is not None:
            self.folder.close()

    def _train_epoch(self, epoch: int) -> None:
        settings = self.settings
        sampler = TrainBatchSampler(
            len(self.run.train_dataset),
            batch_size=settings.batch_size,
            grad_accum_steps=settings.grad_accum_steps,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            seed=settings.seed,
            epoch=epoch,
            first_update=self.progress.update - epoch * self.updates_per_epoch,
        )
        loader = make_loader(self.run.train_dataset, sampler, self.run.task.collate, workers=settings.workers)
        train_mode(self.model, settings)
        losses: list[Tensor] = []
        started_at = time.perf_counter()
        for batches in _group(loader, settings.grad_accum_steps):
            losses.append(self._update(batches))
            self._count_update(time.perf_counter() - started_at)
            self.progress_bar.advance(self.progress.update, losses[-1].item(), self._images_per_s())
            epoch_ends = self.progress.update % self.updates_per_epoch == 0
            if epoch_ends or self.progress.update % settings.log_every == 0:
                self._log_training(losses)
            stopping = self.stop.should_stop()
            if epoch_ends:
                self._finish_epoch(epoch)
            elif stopping or self.progress.update % settings.save_every == 0:
                self._save_last()
            if stopping and self.progress.update < self.updates:
                self._raise_interrupted()
            started_at = time.perf_counter()

    def _count_update(self, seconds: float) -> None:
        self.progress.update += 1
        self.progress.seconds += seconds
        self.session_s += seconds
        self.session_updates += 1
        self.schedule.step_update(self.progress.update)

    def _images_per_s(self) -> float:
        return self.session_updates * self.settings.batch_size / self.session_s if self.session_s else 0.0

    def _update(self, batches: list[Batch]) -> Tensor:
        """Make one optimizer update from the micro-batches and return their mean loss."""
        total = torch.zeros((), device=self.accelerator.device)
        names: list[str] = []
        for micro, loaded in enumerate(batches):
            batch = loaded.to(self.accelerator.device)
            self._record_unreadable(batch)
            names += batch.names
            # gradients are reduced over the processes once, with the last micro-batch
            skip_reduce = micro < len(batches) - 1 and self.accelerator.num_processes > 1
            with self.accelerator.no_sync(self.model) if skip_reduce else contextlib.nullcontext():
                with self.accelerator.autocast():
                    loss = self.run.task.loss(self.model, batch) / len(batches)
                self._check_finite("loss", loss, names)
                self.accelerator.backward(loss)
            total += loss.detach()
        self.accelerator.unscale_gradients(self.wrapped_optimizer)
        norm = gradient_norm(self.model, self.settings.clip_grad)
        if self.accelerator.scaler is None:  # under fp16 the scaler skips such steps itself
            self._check_finite("gradient", norm, names)
        self.wrapped_optimizer.step()
        self.wrapped_optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(self.model), step=self.progress.update)
        return total

    def _check_finite(self, quantity: str, value: Tensor, names: list[str]) -> None:
        if not torch.isfinite(value).all():
            last = self.out / "last.safetensors"
            kept = f"{last} is the last checkpoint before it." if last.exists() else "No checkpoint was written before."
            raise NonFiniteLoss(quantity, self.progress.update + 1, names, kept)

    def _record_unreadable(self, batch: Batch) -> None:
        """Log newly skipped images and stop if they are too many."""
        new = {name: reason for name, reason in batch.unreadable if name not in self.unreadable}
        self.unreadable |= new
        for name, reason in new.items():
            self.progress_bar.log(f"skipped {name}: {reason}")
            self._log_unreadable(name, reason)
        total, limit = len(self.run.train_dataset), self.settings.max_unreadable
        if len(self.unreadable) > limit * total or not len(batch):
            listed = "; ".join(f"{name}: {reason}" for name, reason in list(self.unreadable.items())[:8])
            raise DataError(
                f"{len(self.unreadable)} of {total} training images cannot be read; expected at most a fraction of "
                f"{limit:g} (--max-unreadable FRACTION): {listed}"
            )

    def _log_unreadable(self, name: str, reason: str) -> None:
        if self.folder is not None:
            self.folder.log("event", self.progress.update, event="unreadable_image", image=name, reason=reason)

    def _log_training(self, losses: list[Tensor]) -> None:
        loss = self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()
        losses.clear()
        if self.folder is not None:
            lr = max(group["lr"] for group in self.optimizer.param_groups)
            values = {"loss": round(loss, 6), "lr": lr, "images_per_s": round(self._images_per_s(), 1)}
            self.folder.log("train", self.progress.update, **values)

    def _finish_epoch(self, epoch: int) -> None:
        """Evaluate on the validation set, save the best checkpoint if it improved, and save the training state."""
        started_at = time.perf_counter()
        model = self.model if self.ema is None else self.ema.module
        self._broadcast_buffers()
        evaluation = evaluate(
            self.run.task,
            model,
            self.run.val_dataset,
            self.accelerator,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
        )
        self.progress.seconds += time.perf_counter() - started_at
        metrics = _monitor_first(self.run.task.monitor, evaluation.metrics)
        monitored = metrics[self.run.task.monitor]
        if monitored > self.progress.best:
            self.progress.best, self.progress.best_update = monitored, self.progress.update
            self.metrics = metrics
            state = states.model_state(model)  # a collective call: every process takes part
            if self.accelerator.is_main_process:
                self.run.checkpoint(state, metrics).save(self.out / "best.safetensors")
        if self.folder is not None:
            self.folder.log("eval", self.progress.update, epoch=epoch + 1, **metrics, samples=evaluation.samples)
            for name, reason in evaluation.unreadable:
                self._log_unreadable(name, reason)
            self.folder.write_curves(min_interval_s=60)
        text = ", ".join(f"{name} {value:.4f}" for name, value in list(metrics.items())[:MAX_METRICS_SHOWN])
        unreadable = f", {len(evaluation.unreadable)} unreadable" if evaluation.unreadable else ""
        self.progress_bar.log(
            f"epoch {epoch + 1}/{self.settings.epochs}: {text} on {evaluation.samples} validation images{unreadable}"
        )
        self._save_last()

    def _broadcast_buffers(self) -> None:
        """Copy the batch statistics of the first process, which are the ones that are saved, to all others."""
        if self.accelerator.num_processes > 1:
            models = [self.model] if self.ema is None else [self.model, self.ema.module]
            for buffer in (buffer for model in models for buffer in model.buffers()):
                broadcast(buffer)

    def _save_last(self) -> None:
        self._broadcast_buffers()
        training = states.add_prefix("generators", states.generator_tensors(self.accelerator.device))
        training |= states.add_prefix("optimizer", states.optimizer_tensors(self.model, self.optimizer))
        if self.ema is not None:
            training |= states.add_prefix("ema", states.model_state(self.ema.module))
        values: dict[str, Any] = {"progress": dataclasses.asdict(self.progress), "scaler": None}
        if self.accelerator.scaler is not None:
            values["scaler"] = self.accelerator.scaler.state_dict()
        state = states.model_state(self.model)
        if self.accelerator.is_main_process:
            checkpoint = self.run.checkpoint(state, self.metrics, training=training, training_state=values)
            checkpoint.save(self.out / "last.safetensors")
        self.accelerator.wait_for_everyone()

    def _restore(self, path: Path) -> None:
        saved = load_checkpoint(path, with_training=True)
        states.load_model_state(self.model, saved.state)
        tensors = {name: states.strip_prefix(name, saved.training) for name in ("generators", "optimizer", "ema")}
        states.load_optimizer_tensors(self.model, self.optimizer, tensors["optimizer"])
        if self.ema is not None:
            states.load_model_state(self.ema.module, tensors["ema"])
        if self.accelerator.scaler is not None and saved.training_state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(saved.training_state["scaler"])
        self.progress = states.Progress(**saved.training_state["progress"])
        self.metrics = dict(saved.metrics)
        # last, because loading the states above may draw from the generators
        states.load_generator_tensors(
            tensors["generators"],
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            device=self.accelerator.device,
        )

    def _raise_interrupted(self) -> None:
        raise Interrupted(
            f"stopped by {self.stop.signal_name or 'a signal'} after update {self.progress.update} of {self.updates}; "
            f"the training state is saved in {self.out}; repeat the command with --resume to continue"
        )


def _monitor_first(monitor: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics with the monitored one first, as progress lines and tables show it."""
    return {monitor: metrics[monitor], **metrics}


def _group(loader: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of ``size`` consecutive batches."""
    group: list[Batch] = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
