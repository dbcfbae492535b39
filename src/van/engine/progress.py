"""The progress of a run: a live line on a terminal, plain lines elsewhere, always on stderr."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressLine:
    """Updates done, loss, pictures a second and the time left.

    Args:
        total: updates of the run.
        done: updates done before this process started.
        enabled: False in all processes but the first.
    """

    def __init__(self, total: int, done: int = 0, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._console = Console(stderr=True, soft_wrap=True)
        self._live = enabled and sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, figures="")

    def __enter__(self) -> "ProgressLine":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, update: int, loss: float, pictures_per_s: float) -> None:
        """Show the place, the latest loss and the speed."""
        self._bar.update(
            self._task, completed=update, figures=f"loss {loss:.3f}, {pictures_per_s:.0f} pictures/s, left"
        )

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False)
