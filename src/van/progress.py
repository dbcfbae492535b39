"""Progress bars of long work, in a terminal or a notebook."""

import sys
from collections.abc import Callable


def show_progress(unit: str) -> Callable[[int, int], None] | None:
    """Return a function of the finished and the total number that shows a progress bar, in a terminal or a notebook.

    It returns None elsewhere, so that logs hold no progress bars.
    """
    if not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        return None
    from tqdm.auto import tqdm

    class Bar(tqdm):
        """A bar without the thread that tqdm starts to redraw bars that have stopped."""

        monitor_interval = 0

    bar = Bar(unit=f" {unit}s", leave=False)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.refresh()  # a run that is shorter than the interval between updates has shown nothing yet
            bar.close()

    return show
