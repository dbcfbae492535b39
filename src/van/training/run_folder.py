"""The folder of a run: settings, log, TensorBoard events, curves and checkpoints.

::

    settings.json       every resolved setting and the package versions
    log.jsonl           one JSON object per line; kind is train, eval or event
    tensorboard/        the same values for TensorBoard
    curves.png          loss, monitored metric and learning rate
    best.safetensors    the checkpoint with the best monitored metric; use this one
    last.safetensors    the latest training state; --resume continues from it
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
from van.errors import CheckpointError, DataError, RunExists, UsageError
from van.training.settings import MAY_CHANGE
from van.visualization.charts import draw_training_curves

RUN_FILES = ("settings.json", "log.jsonl", "tensorboard", "curves.png", "best.safetensors", "last.safetensors")


class RunFolder:
    """A run folder opened for writing.

    Args:
        path: the folder; ``check_run`` has accepted it.
        monitor: the metric that ``curves.png`` shows, such as ``top1``.
        resumed_at: the update after which training continues; later records of an existing log are dropped.
    """

    def __init__(self, path: Path, *, monitor: str, resumed_at: int = 0) -> None:
        self.path = path
        self._monitor = monitor
        self._log = path / "log.jsonl"
        self.records = [record for record in read_log(self._log) if record["step"] <= resumed_at and resumed_at]
        write_text(self._log, "".join(json.dumps(record) + "\n" for record in self.records))
        self._file = self._log.open("a", encoding="utf-8")
        self._events = SummaryWriter(path / "tensorboard", purge_step=resumed_at + 1 if resumed_at else None)
        self._drawn_at = time.monotonic()

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Append one record to the log and its numeric values to TensorBoard.

        Raises:
            CheckpointError: the log cannot be written.
        """
        record = {"kind": kind, "step": step, **values}
        self.records.append(record)
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(f"{self._log}: cannot write: {error}; free disk space and use --resume") from error
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def write_curves(self, *, min_interval_s: float = 0.0) -> None:
        """Write ``curves.png``, unless it was written less than ``min_interval_s`` seconds ago."""
        if time.monotonic() - self._drawn_at >= min_interval_s:
            with atomic_path(self.path / "curves.png") as temporary:
                draw_training_curves(self.records, temporary, monitor=self._monitor)
            self._drawn_at = time.monotonic()

    def close(self) -> None:
        """Write the curves, then flush and close the log and the TensorBoard events, even if the curves fail."""
        try:
            self.write_curves()
        finally:
            with contextlib.suppress(OSError):  # on a full disk the buffered events cannot be saved anyway
                self._events.close()
            with contextlib.suppress(OSError):
                self._file.close()


def check_run(path: Path, recipe: Mapping[str, Any], *, resume: bool) -> None:
    """Check that a run may be written to the folder ``path``.

    Raises:
        RunExists: the folder contains a run and ``resume`` is off.
        UsageError: ``path`` is a file, or the settings differ from those of the run to resume.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out: expected a folder, got a file: {path}")
    if not resume:
        if any((path / name).exists() for name in RUN_FILES):
            raise RunExists(
                f"--out {path} already contains a run; use --resume to continue it, or choose another --out"
            )
        return
    if not (path / "settings.json").exists():
        return
    before, now = read_settings(path)["recipe"], json.loads(json.dumps(recipe))
    changed = [name for name in now if name not in MAY_CHANGE and before.get(name) != now[name]]
    if changed:
        listed = ", ".join(f"{name}: expected {before.get(name)!r}, got {now[name]!r}" for name in changed)
        raise UsageError(f"--resume: the settings differ from those of {path}: {listed}; omit those flags")


def create_run(path: Path, recipe: Mapping[str, Any]) -> None:
    """Create the folder and write ``settings.json``, unless it exists already."""
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
    """Read the ``settings.json`` of a run folder.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads((path / "settings.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path / 'settings.json'}: cannot be read ({error}); expected {path} to be a run folder"
        ) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the records of a log; an incomplete last line, left by a crash, is ignored."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
