"""What there is to say of a run: read from its folder, measured on its held-out pictures, timed on this machine."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from van.engine.distributed import started
from van.engine.evaluate import Evaluation, evaluate
from van.engine.run_folder import read_log, read_settings
from van.errors import DataError, VanError
from van.models.load import Loaded, in_channels_last, load
from van.report.held_out import EveryNth, HeldOut, find_held_out
from van.report.mistakes import Watched
from van.report.speed import Speed, count_macs, measure, seen_size
from van.report.views import Shown, show
from van.tasks.base import Task
from van.tasks.build import make_task

HEADLINES = ("top1", "mask_ap", "box_ap", "mean_iou", "pq")
"""The metrics that pick a best checkpoint, one for each task; of outlines before boxes, as both are measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to gather.

    Args:
        data: where the held-out pictures are, if not where the settings say.
        limit: most pictures to measure on; all if 0.
        mistakes: how many of the worst answers to show.
        speed: time the network.
        device: cpu, cuda, mps or auto.
        batch_size: pictures at once; by the task if None.
        say: told what is going on.
    """

    data: Path | None = None
    limit: int = 0
    mistakes: int = 12
    speed: bool = True
    device: str = "auto"
    batch_size: int | None = None
    say: Callable[[str], object] = lambda _: None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """The file of the best checkpoint."""

    path: Path
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """The network in it, and what one picture of ``size`` (rows, columns) costs; ``macs`` None where uncounted."""

    loaded: Loaded
    task: Task
    parameters: int
    size: tuple[int, int]
    macs: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """An evaluation of the best checkpoint: on which pictures, how many there are, what came out."""

    source: str
    available: int
    found: Evaluation
    mistakes: tuple[Shown, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a page shows; what is None or empty is missing for one of the reasons in ``gaps``."""

    run: Path
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    records: list[dict[str, Any]]
    gaps: tuple[str, ...]
    notes: tuple[str, ...] = ()
    checkpoint: CheckpointFile | None = None
    network: Network | None = None
    measured: Measured | None = None
    speed: Speed | None = None

    @property
    def headline(self) -> str | None:
        """The name of the metric that the run was about, if it can be told."""
        return _logged_headline(self.records) if self.network is None else self.network.task.headline

    def to_dict(self) -> dict[str, Any]:
        """Plain values without pictures, as JSON can hold them: what is no number is null."""
        plain: dict[str, Any] = {
            "run": str(self.run),
            "recipe": dict(self.recipe),
            "versions": dict(self.versions),
            "checkpoint": self.checkpoint and dataclasses.asdict(self.checkpoint) | {"path": str(self.checkpoint.path)},
            "network": self.network and _network_dict(self.network),
            "data": None,
            "metrics": None,
            "speed": self.speed and self.speed.to_dict(),
            "evaluations": [record for record in self.records if record["kind"] == "eval"],
            "missing": list(self.gaps),
            "notes": list(self.notes),
        }
        if self.measured is not None:
            found = self.measured.found
            plain |= {
                "data": self.measured.source,
                "samples": found.samples,
                "available": self.measured.available,
                "metrics": found.metrics,
                "per_class": found.details["per_class"],
                "unreadable": [{"picture": name, "reason": reason} for name, reason in found.unreadable],
                "mistakes": [shown.to_dict() for shown in self.measured.mistakes],
            }
        return _plain(plain)


def gather(run: Path, wanted: Wanted) -> Facts:
    """Read, measure and time what there is of the run.

    Raises:
        DataError: ``run`` is no run folder, or ``wanted.data`` does not hold what its network can be measured on.
        UsageError: the device is not here.
    """
    settings = read_settings(run)
    recipe = settings.get("recipe") if isinstance(settings, dict) else None
    if not isinstance(recipe, dict):
        raise DataError(f"{run / 'settings.json'} holds no recipe, so {run} is no run folder; wanted one of van train")
    records = [record for record in read_log(run / "log.jsonl") if _is_record(record)]
    gathering = _Gathering(run, recipe, records, wanted)
    gathering.go()
    return Facts(
        run=run,
        recipe=recipe,
        versions={**settings.get("versions", {}), "machine": settings.get("machine", "")},
        records=records,
        gaps=tuple(gathering.gaps),
        notes=tuple(gathering.notes),
        checkpoint=gathering.checkpoint,
        network=gathering.network,
        measured=gathering.measured,
        speed=gathering.speed,
    )


class _Gathering:
    """The steps, each of which may fail for itself and then leaves a line in ``gaps``."""

    def __init__(self, run: Path, recipe: Mapping[str, Any], records: list[dict[str, Any]], wanted: Wanted) -> None:
        self.run, self.recipe, self.records, self.wanted = run, recipe, records, wanted
        self.gaps: list[str] = []
        self.notes: list[str] = []
        self.checkpoint: CheckpointFile | None = None
        self.network: Network | None = None
        self.measured: Measured | None = None
        self.speed: Speed | None = None

    def go(self) -> None:
        """Take the steps, as far as they lead."""
        with started(device=self.wanted.device) as accelerator:
            best = self.run / "best.safetensors"
            if not best.exists():
                self.gaps.append(_no_checkpoint(best, self.records))
                return
            self.checkpoint = CheckpointFile(path=best, bytes=best.stat().st_size, sha256=_sha256(best))
            try:
                loaded = load(best)
                loaded.want_answers()
            except VanError as error:
                self.gaps.append(f"The checkpoint cannot be used, so nothing could be measured: {error}")
                return
            held_out = self._find(loaded)
            self.network = self._describe(loaded, held_out)
            if held_out is not None:
                self._measure(self.network, held_out, accelerator)
            if self.wanted.speed:
                self._time(self.network, accelerator.device)

    def _find(self, loaded: Loaded) -> HeldOut | None:
        self.wanted.say("looking for the held-out pictures")
        try:
            return find_held_out(self.run, self.recipe, loaded, data=self.wanted.data, tell=self.notes.append)
        except VanError as error:
            if self.wanted.data is not None:
                raise
            self.gaps.append(
                "The held-out pictures were not found, so there is nothing measured here: no figures of each class, "
                f"no mistakes. {_sentence(error)} Give their folder by --data."
            )
            return None

    def _describe(self, loaded: Loaded, held_out: HeldOut | None) -> Network:
        self.wanted.say("counting")
        task = make_task(loaded.task, loaded.labels, loaded.task_options)
        size, macs = seen_size(loaded, _typical_size(held_out)), None
        try:
            macs = count_macs(loaded, task, size)
        except (VanError, RuntimeError, ValueError) as error:
            self.gaps.append(f"The multiply-accumulates could not be counted: {_sentence(error)}")
        parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
        return Network(loaded=loaded, task=task, parameters=parameters, size=size, macs=macs)

    def _measure(self, network: Network, held_out: HeldOut, accelerator: Any) -> None:
        samples = held_out.samples
        self._compare_counts(len(samples))
        count = min(self.wanted.limit or len(samples), len(samples))
        loaded = network.loaded
        classifies = loaded.task == "classify"
        self.wanted.say(f"measuring on {count:,} pictures")
        try:
            found = evaluate(
                Watched(network.task, most=self.wanted.mistakes),
                in_channels_last(loaded.model.eval(), accelerator.device),
                EveryNth(samples, count),
                accelerator,
                batch_size=self.wanted.batch_size or (64 if classifies else 4),
                on_batch=self._measured,
            )
        except VanError as error:
            self.gaps.append(f"The network could not be measured: {_sentence(error)}")
            return
        if not all(math.isfinite(value) for value in found.metrics.values()):
            self.notes.append("The network answers with NaN or infinity, so these figures mean nothing; look at it.")
        self.wanted.say(f"explaining {len(found.details['mistakes'])} answers")
        shown, missing = show(found.details["mistakes"], samples, loaded, device=accelerator.device)
        if missing:
            self.gaps.append(f"There is no Grad-CAM: {missing}")
        self.measured = Measured(source=held_out.source, available=len(samples), found=found, mistakes=shown)

    def _measured(self, done: int, total: int) -> None:
        self.wanted.say(f"measured batch {done} of {total}")

    def _compare_counts(self, found: int) -> None:
        before = self.recipe.get("validation_pictures")
        if isinstance(before, int) and before != found:
            self.notes.append(
                f"{found:,} pictures were found to measure on; when the run began it held out {before:,}. "
                "So these figures are not those of training."
            )

    def _time(self, network: Network, device: torch.device) -> None:
        self.wanted.say("timing")
        several = 16 if network.loaded.task == "classify" else 4
        try:
            self.speed = measure(network.loaded, network.task, network.size, device, batches=(1, several))
        except (VanError, RuntimeError) as error:
            self.gaps.append(f"The network could not be timed: {_sentence(error)}")


def _logged_headline(records: list[dict[str, Any]]) -> str | None:
    """The metric that the evaluations of a log are about."""
    logged = {name for record in records if record["kind"] == "eval" for name in record}
    return next((name for name in HEADLINES if name in logged), None)


def _no_checkpoint(best: Path, records: list[dict[str, Any]]) -> str:
    """Why there is none: too early, or gone."""
    name = _logged_headline(records)
    if name is not None and any(math.isfinite(record.get(name, math.nan)) for record in records):
        return f"{best} is missing, though the log has evaluations: put it back, and make this page again."
    return (
        "There is no best checkpoint yet: no evaluation of this run has given a number so far. The page shows what "
        "the log has; make it again when training is further."
    )


def _typical_size(held_out: HeldOut | None) -> tuple[int, int] | None:
    """Rows and columns of the first held-out picture that can be read, where the network sees whole pictures."""
    if held_out is None:
        return None
    for index in range(min(8, len(held_out.samples))):
        sample = held_out.samples[index]
        if "size" in sample:
            return sample["size"]
    return None


def _network_dict(network: Network) -> dict[str, Any]:
    loaded = network.loaded
    return {
        "model": loaded.name,
        "options": dict(loaded.options),
        "task": loaded.task,
        "classes": len(loaded.labels),
        "parameters": network.parameters,
        "macs": network.macs,
        "rows": network.size[0],
        "columns": network.size[1],
        "preprocess": loaded.preprocess.to_dict(),
        "metrics_when_saved": dict(loaded.metrics),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("kind"), str)


def _sentence(error: Exception) -> str:
    """The first line of an error, ended by a full stop."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"{line}."


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value
