"""The training loop, for every task, on one process or many.

An update is one step of the optimiser. Everything that happens depends on the settings and the
place in the run alone, so a run that was killed ends, once resumed, with the bits it would have had.
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
from van.engine import state as states
from van.engine.distributed import check_settings, place, spread, started
from van.engine.evaluate import evaluate
from van.engine.job import Job
from van.engine.loader import TrainingOrder, make_loader
from van.engine.optimiser import freeze, gradient_norm, make_optimiser, make_schedule, train_mode
from van.engine.progress import ProgressLine
from van.engine.run_folder import RunFolder, check_run, create_run
from van.engine.stopping import StopRequest, stop_on_signals
from van.errors import CheckpointError, DataError, Interrupted, NonFiniteLoss, UsageError
from van.tasks.base import Batch

MOST_SHOWN = 4
"""Metrics in a line, the headline first; the log has them all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended.

    Args:
        metrics: of the best checkpoint.
        best_update, updates: where the best was, and how many there were.
        seconds: time spent, over all resumptions.
        pictures_per_s: training throughput, evaluation and saving left out.
        unreadable: names and reasons of training pictures that were passed over.
    """

    metrics: dict[str, float]
    best_update: int
    updates: int
    seconds: float
    pictures_per_s: float
    unreadable: dict[str, str]


def fit(job: Job, out: Path, *, resume: bool = False) -> Summary:
    """Train ``job`` into the run folder ``out``, or go on with the run that lies there.

    Raises:
        RunExists: ``out`` holds a run and ``resume`` is off.
        Interrupted: a signal came; the run saved itself.
        NonFiniteLoss: the loss or its gradient is not finite; the last good checkpoint is kept.
        DataError: too many pictures cannot be read.
    """
    running = started(device=job.settings.device, precision=job.settings.precision)
    with running as accelerator, stop_on_signals(accelerator) as stop:
        check_settings(job.settings, accelerator)
        check_run(out, job.recipe, resume=resume)
        accelerator.wait_for_everyone()
        trainer = _Trainer(job, out, accelerator, stop)  # refuses what cannot work before there is a folder
        if accelerator.is_main_process:
            create_run(out, job.recipe)
        accelerator.wait_for_everyone()
        return trainer.run()


class _Trainer:
    """A run in progress."""

    def __init__(self, job: Job, out: Path, accelerator: Accelerator, stop: StopRequest) -> None:
        self.job, self.out, self.accelerator, self.stop = job, out, accelerator, stop
        settings = self.settings = job.settings
        self.updates_per_epoch = len(job.train_set) // settings.batch_size
        if self.updates_per_epoch == 0:
            raise UsageError(
                f"--batch-size is {settings.batch_size} and there are {len(job.train_set)} training pictures; "
                f"lower it to {len(job.train_set)} or less"
            )
        self.updates = settings.epochs * self.updates_per_epoch
        freeze(job.model, settings)
        self.ema = self._moving_average() if settings.ema_decay else None
        self.model = spread(job.model, accelerator, settings)
        self.optimiser = make_optimiser(accelerator.unwrap_model(self.model), settings)
        self.schedule = make_schedule(self.optimiser, settings, self.updates_per_epoch)
        self.stepper = accelerator.prepare_optimizer(self.optimiser)
        self.progress = states.Progress()
        self.metrics: dict[str, float] = {}
        self.unreadable: dict[str, str] = {}
        self.trained_s = 0.0
        self.trained_updates = 0

    def run(self) -> Summary:
        settings = self.settings
        set_seed(settings.seed + self.accelerator.process_index)
        last = self.out / "last.safetensors"
        if last.exists():
            self._restore(last)
        self.schedule.step_update(self.progress.update)
        main = self.accelerator.is_main_process
        self.folder = None
        if main:
            headline = self.job.task.headline
            self.folder = RunFolder(self.out, headline=headline, resumed_at=self.progress.update)
        try:
            with ProgressLine(self.updates, self.progress.update, enabled=main) as self.line:
                for epoch in range(self.progress.update // self.updates_per_epoch, settings.epochs):
                    self._epoch(epoch)
        except BaseException:
            with contextlib.suppress(CheckpointError):  # what stopped the run matters more than its curves
                self._close()
            raise
        self._close()
        return Summary(
            metrics=self.metrics,
            best_update=self.progress.best_update,
            updates=self.updates,
            seconds=self.progress.seconds,
            pictures_per_s=self._pictures_per_s(),
            unreadable=self.unreadable,
        )

    def _moving_average(self) -> ModelEmaV3:
        whole = self.settings.strategy == "ddp"  # torch cannot average many sharded tensors in one call
        ema = ModelEmaV3(self.job.model, decay=self.settings.ema_decay, use_warmup=True, foreach=whole)
        place(ema.module, self.accelerator, self.settings)
        return ema

    def _close(self) -> None:
        if self.folder is not None:
            self.folder.close()

    def _epoch(self, epoch: int) -> None:
        settings = self.settings
        order = TrainingOrder(
            len(self.job.train_set),
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            seed=settings.seed,
            epoch=epoch,
            first_update=self.progress.update - epoch * self.updates_per_epoch,
        )
        loader = make_loader(self.job.train_set, order, self.job.task.collate, workers=settings.workers)
        train_mode(self.model, settings)
        losses: list[Tensor] = []
        began = time.perf_counter()
        for batches in _grouped(loader, settings.accumulate):
            losses.append(self._update(batches))
            self._count(time.perf_counter() - began)
            self.line.advance(self.progress.update, losses[-1].item(), self._pictures_per_s())
            ends_epoch = self.progress.update % self.updates_per_epoch == 0
            if ends_epoch or self.progress.update % settings.log_every == 0:
                self._log_training(losses)
            stopping = self.stop.agreed()
            if ends_epoch:
                self._finish_epoch(epoch)
            elif stopping or self.progress.update % settings.save_every == 0:
                self._save_last()
            if stopping and self.progress.update < self.updates:
                self._stop()
            began = time.perf_counter()

    def _count(self, seconds: float) -> None:
        self.progress.update += 1
        self.progress.seconds += seconds
        self.trained_s += seconds
        self.trained_updates += 1
        self.schedule.step_update(self.progress.update)

    def _pictures_per_s(self) -> float:
        return self.trained_updates * self.settings.batch_size / self.trained_s if self.trained_s else 0.0

    def _update(self, batches: list[Batch]) -> Tensor:
        """One step of the optimiser; returns the mean loss."""
        total = torch.zeros((), device=self.accelerator.device)
        names: list[str] = []
        for micro, loaded in enumerate(batches):
            batch = loaded.to(self.accelerator.device)
            self._note_unreadable(batch)
            names += batch.names
            waits = micro < len(batches) - 1 and self.accelerator.num_processes > 1
            with self.accelerator.no_sync(self.model) if waits else contextlib.nullcontext():
                with self.accelerator.autocast():
                    loss = self.job.task.loss(self.model, batch) / len(batches)
                self._want_finite("loss", loss, names)
                self.accelerator.backward(loss)
            total += loss.detach()
        self.accelerator.unscale_gradients(self.stepper)
        norm = gradient_norm(self.model, self.settings.clip_grad)
        if self.accelerator.scaler is None:  # under fp16 the scaler skips such steps itself
            self._want_finite("gradient", norm, names)
        self.stepper.step()
        self.stepper.zero_grad()
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(self.model), step=self.progress.update)
        return total

    def _want_finite(self, what: str, value: Tensor, names: list[str]) -> None:
        if not torch.isfinite(value).all():
            last = self.out / "last.safetensors"
            kept = f"{last} holds the last good state." if last.exists() else "No checkpoint had been written yet."
            raise NonFiniteLoss(what, self.progress.update + 1, names, kept)

    def _note_unreadable(self, batch: Batch) -> None:
        new = {name: reason for name, reason in batch.unreadable if name not in self.unreadable}
        self.unreadable |= new
        for name, reason in new.items():
            self.line.say(f"passed over {name}: {reason}")
            if self.folder is not None:
                self.folder.log("event", self.progress.update, unreadable=name, reason=reason)
        total, limit = len(self.job.train_set), self.settings.max_unreadable
        if len(self.unreadable) > limit * total or not len(batch):
            listed = "; ".join(f"{name}: {reason}" for name, reason in list(self.unreadable.items())[:8])
            raise DataError(
                f"{len(self.unreadable)} of {total} training pictures cannot be read, more than the share of "
                f"{limit:g} that --set max_unreadable=SHARE allows: {listed}"
            )

    def _log_training(self, losses: list[Tensor]) -> None:
        loss = self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()
        losses.clear()
        if self.folder is not None:
            rate = max(group["lr"] for group in self.optimiser.param_groups)
            values = {"loss": round(loss, 6), "lr": rate, "pictures_per_s": round(self._pictures_per_s(), 1)}
            self.folder.log("train", self.progress.update, **values)

    def _finish_epoch(self, epoch: int) -> None:
        """Evaluate, keep the best, save the place."""
        began = time.perf_counter()
        model = self.model if self.ema is None else self.ema.module
        self._share_buffers()
        found = evaluate(
            self.job.task,
            model,
            self.job.validation_set,
            self.accelerator,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
        )
        self.progress.seconds += time.perf_counter() - began
        metrics = _first(self.job.task.headline, found.metrics)
        headline = metrics[self.job.task.headline]
        if headline > self.progress.best:
            self.progress.best, self.progress.best_update = headline, self.progress.update
            self.metrics = metrics
            whole = states.model_state(model)
            if self.accelerator.is_main_process:
                self.job.checkpoint(whole, metrics).save(self.out / "best.safetensors")
        if self.folder is not None:
            self.folder.log("eval", self.progress.update, epoch=epoch + 1, **metrics, samples=found.samples)
            for name, reason in found.unreadable:
                self.folder.log("event", self.progress.update, unreadable=name, reason=reason)
            self.folder.draw(at_least_s=60)
        text = ", ".join(f"{name} {value:.4f}" for name, value in list(metrics.items())[:MOST_SHOWN])
        unread = f", {len(found.unreadable)} unreadable" if found.unreadable else ""
        self.line.say(f"epoch {epoch + 1}/{self.settings.epochs}: {text} on {found.samples} held out{unread}")
        self._save_last()

    def _share_buffers(self) -> None:
        """Give every process the batch statistics of the first, which are the ones that are saved."""
        if self.accelerator.num_processes > 1:
            models = [self.model] if self.ema is None else [self.model, self.ema.module]
            for buffer in (buffer for model in models for buffer in model.buffers()):
                broadcast(buffer)

    def _save_last(self) -> None:
        self._share_buffers()
        training = states.generator_tensors(self.accelerator.device)
        training = states.prefixed("generators", training)
        training |= states.prefixed("optimiser", states.optimiser_tensors(self.model, self.optimiser))
        if self.ema is not None:
            training |= states.prefixed("ema", states.model_state(self.ema.module))
        values: dict[str, Any] = {"progress": dataclasses.asdict(self.progress), "scaler": None}
        if self.accelerator.scaler is not None:
            values["scaler"] = self.accelerator.scaler.state_dict()
        whole = states.model_state(self.model)
        if self.accelerator.is_main_process:
            checkpoint = self.job.checkpoint(whole, self.metrics, training=training, training_state=values)
            checkpoint.save(self.out / "last.safetensors")
        self.accelerator.wait_for_everyone()

    def _restore(self, path: Path) -> None:
        saved = load_checkpoint(path, with_training=True)
        states.load_model_state(self.model, saved.state)
        tensors = {name: states.without_prefix(name, saved.training) for name in ("generators", "optimiser", "ema")}
        states.load_optimiser_tensors(self.model, self.optimiser, tensors["optimiser"])
        if self.ema is not None:
            states.load_model_state(self.ema.module, tensors["ema"])
        if self.accelerator.scaler is not None and saved.training_state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(saved.training_state["scaler"])
        self.progress = states.Progress(**saved.training_state["progress"])
        self.metrics = dict(saved.metrics)
        states.load_generator_tensors(
            tensors["generators"],
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            device=self.accelerator.device,
        )

    def _stop(self) -> None:
        raise Interrupted(
            f"stopped by {self.stop.signal_name or 'a signal'} after update {self.progress.update} of {self.updates}; "
            f"everything is in {self.out}; repeat the command with --resume to go on"
        )


def _first(headline: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics, the headline in front, where a reader looks."""
    return {headline: metrics[headline], **metrics}


def _grouped(loader: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    group: list[Batch] = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
