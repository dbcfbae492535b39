"""Progress output of a training run on stderr: a progress bar on a terminal, plain lines elsewhere."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBar:
    """A progress bar with finished updates, loss, throughput and remaining time.

    Args:
        total: number of updates of the run.
        done: number of updates finished before this process started.
        enabled: False in all processes but the first, so that each line is printed once.
    """

    def __init__(self, total: int, done: int = 0, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._console = Console(stderr=True, soft_wrap=True)
        self._live = enabled and sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, status="")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, update: int, loss: float, images_per_s: float) -> None:
        """Show the number of finished updates, the latest loss and the throughput."""
        status = f"loss {loss:.3f}, {images_per_s:.0f} images/s, remaining"
        self._bar.update(self._task, completed=update, status=status)

    def log(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False)
