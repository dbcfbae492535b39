"""The folder of a run: settings, log, TensorBoard events, curves and checkpoints.

::

    settings.json       every resolved setting and the versions it ran with
    log.jsonl           one JSON object a line; kind is train, eval or event
    tensorboard/        the same numbers for TensorBoard
    curves.png          loss, headline metric and learning rate
    best.safetensors    the checkpoint with the best headline metric; use this one
    last.safetensors    the newest state of training; --resume goes on from it
"""

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import timm
import torch
from torch.utils.tensorboard import SummaryWriter

from van.checkpoint import atomic_path, write_text
from van.engine.settings import MAY_CHANGE
from van.errors import CheckpointError, DataError, RunExists, UsageError
from van.results.charts import draw_curves

_OURS = ("settings.json", "log.jsonl", "tensorboard", "curves.png", "best.safetensors", "last.safetensors")


class RunFolder:
    """One run's folder, open for writing.

    Args:
        path: the folder; ``open_run`` checked that it may be used.
        resumed_at: the update that training goes on from; later lines of an old log are dropped.
    """

    def __init__(self, path: Path, *, headline: str, resumed_at: int = 0) -> None:
        self.path = path
        self.best, self.last = path / "best.safetensors", path / "last.safetensors"
        self._headline = headline
        self._log = path / "log.jsonl"
        self.records = [record for record in read_log(self._log) if record["step"] <= resumed_at and resumed_at]
        write_text(self._log, "".join(json.dumps(record) + "\n" for record in self.records))
        self._file = self._log.open("a", encoding="utf-8")
        self._events = SummaryWriter(path / "tensorboard", purge_step=resumed_at + 1 if resumed_at else None)
        self._drawn = time.monotonic()

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Append one record to the log and its numbers to TensorBoard."""
        record = {"kind": kind, "step": step, **values}
        self.records.append(record)
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(f"cannot write {self._log}: {error}; free some space and --resume") from error
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def draw(self, *, at_least_s: float = 0.0) -> None:
        """Write ``curves.png``, unless that happened less than ``at_least_s`` seconds ago."""
        if time.monotonic() - self._drawn >= at_least_s:
            with atomic_path(self.path / "curves.png") as temporary:
                draw_curves(self.records, temporary, headline=self._headline)
            self._drawn = time.monotonic()

    def close(self) -> None:
        """Draw the curves and flush everything; closes even where that fails."""
        try:
            self.draw()
        finally:
            with contextlib.suppress(OSError):  # on a full disk what is buffered cannot be saved anyway
                self._events.close()
            with contextlib.suppress(OSError):
                self._file.close()


def check_run(path: Path, recipe: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse a folder that must not be written to.

    Raises:
        RunExists: it holds a run and ``resume`` is off.
        UsageError: it is a file, or the settings differ from those of the run to resume.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path} is a file; wanted a folder")
    if not resume:
        if any((path / name).exists() for name in _OURS):
            raise RunExists(f"--out {path} already holds a run; go on with it by --resume, or choose another --out")
        return
    if not (path / "settings.json").exists():
        return
    before, now = read_settings(path)["recipe"], json.loads(json.dumps(recipe))
    changed = [name for name in now if name not in MAY_CHANGE and before.get(name) != now[name]]
    if changed:
        listed = ", ".join(f"{name} was {before.get(name)!r} and is now {now[name]!r}" for name in changed)
        raise UsageError(f"--resume goes on with the same settings, but {listed}; leave those flags out")


def create_run(path: Path, recipe: Mapping[str, Any]) -> None:
    """Make the folder and write its settings, unless it has some."""
    if (path / "settings.json").exists():
        return
    versions = {
        "van": importlib.metadata.version("visual-attention-network"),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    versions |= {"accelerate": accelerate.__version__, "python": platform.python_version()}
    settings = {"recipe": recipe, "versions": versions, "machine": platform.machine()}
    write_text(path / "settings.json", json.dumps(settings, indent=2) + "\n")


def read_settings(path: Path) -> dict[str, Any]:
    """What ``create_run`` wrote.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return json.loads((path / "settings.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path / 'settings.json'} cannot be read ({error}); is {path} a run folder?") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
