"""How the Triton kernels cut a map into tiles: a shipped table, a rule for every other shape, and a tuner.

The table was chosen by reasoning, not by timing: no speed here is measured. Its evidence is the compiler's:
``pytest -m slow tests/ops/test_triton_compiled.py`` builds every entry for compute capabilities 8.0 and 9.0 and asks
that no register is spilled. ``VAN_TUNE=1`` lets ``triton.autotune`` time the entry against its neighbours on the GPU
at hand, once for each shape and dtype, and keep the answer in Triton's cache.

Where the numbers come from. A program is one warp, so nothing ever waits for another warp. It serves 64 lanes, two
neighbouring channels in each thread: it reads 128 bytes of bfloat16 at a time, one whole line of the cache, and a
thread keeps two sums for each pixel of the tile that is under way. There are 255 registers to a thread: of sums it
holds 2 * tile_columns * (kernel_rows - 1 + step), of input 2 * step * (tile_columns + kernel_columns - 1). Seven
columns divide 56, 28, 14 and 7. Where one tile spans the phase (10 columns of 28, 5 of 14 and 3 of 7 at dilation 3)
there is no halo to read; where one step reads the plane (5 x 5, 3 x 3, 7 x 7), taps outside of it do not even exist
in the code. A 3x3 kernel leaves room for twice the tile, or for four channels in a thread: more bytes on their way from
memory, which is what bounds it.
"""

import dataclasses
import itertools
import math
from typing import Any

PROGRAMS = 1056
"""Programs that sum a weight gradient: eight for each multiprocessor of an H200. A fixed number, on every
machine, since it decides the order of the sums and so their last bits."""
REGISTERS = 200
"""Values for a thread, by ``_registers``, up to which compiled code holds nearly all of them in registers."""
LARGEST_PLANE = 49
"""Pixels of a phase that are kept in registers altogether."""
WIDEST = 14
"""Columns of the widest tile; beyond, a row of sums crowds out its input."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What a kernel is asked to do, as far as its speed depends on it."""

    operator: str
    images: int
    channels: int
    rows: int
    columns: int
    kernel_rows: int
    kernel_columns: int
    dilation: int = 1

    @property
    def phase_rows(self) -> int:
        """Rows of the longest phase."""
        return math.ceil(self.rows / self.dilation)

    @property
    def phase_columns(self) -> int:
        """Columns of the widest phase."""
        return math.ceil(self.columns / self.dilation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiling:
    """Columns of a tile, rows read in one step, strips of a phase's rows (0: as many as pay), lanes of a program."""

    tile_columns: int
    step: int = 1
    strips: int = 0
    lanes: int = 64


SHIPPED = {
    # operator, kernel side, dilation, map side: tiling
    ("convolve", 5, 1, 56): Tiling(tile_columns=7, step=2),
    ("convolve", 5, 1, 28): Tiling(tile_columns=7, step=2),
    ("convolve", 5, 1, 14): Tiling(tile_columns=14),
    ("convolve", 5, 1, 7): Tiling(tile_columns=7, step=7),
    ("convolve", 7, 3, 56): Tiling(tile_columns=7, step=2),
    ("convolve", 7, 3, 28): Tiling(tile_columns=10),
    ("convolve", 7, 3, 14): Tiling(tile_columns=5, step=5),
    ("convolve", 5, 3, 7): Tiling(tile_columns=3, step=3),  # the outer taps of 7 x 7 are cut off before
    ("convolve", 3, 1, 56): Tiling(tile_columns=14),
    ("convolve", 3, 1, 28): Tiling(tile_columns=14),
    ("convolve", 3, 1, 14): Tiling(tile_columns=14),
    ("convolve", 3, 1, 7): Tiling(tile_columns=7, lanes=128),
    ("weight_gradient", 5, 1, 56): Tiling(tile_columns=7, step=2),
    ("weight_gradient", 5, 1, 28): Tiling(tile_columns=7, step=2),
    ("weight_gradient", 5, 1, 14): Tiling(tile_columns=14),
    ("weight_gradient", 5, 1, 7): Tiling(tile_columns=7, step=7),
    ("weight_gradient", 7, 3, 56): Tiling(tile_columns=7, step=2),
    ("weight_gradient", 7, 3, 28): Tiling(tile_columns=10),
    ("weight_gradient", 7, 3, 14): Tiling(tile_columns=5, step=5),
    ("weight_gradient", 5, 3, 7): Tiling(tile_columns=3, step=3),
    ("gelu_gradient", 3, 1, 56): Tiling(tile_columns=7),
    ("gelu_gradient", 3, 1, 28): Tiling(tile_columns=7),
    ("gelu_gradient", 3, 1, 14): Tiling(tile_columns=7),
    ("gelu_gradient", 3, 1, 7): Tiling(tile_columns=7),
}


def tiling_for(problem: Problem) -> Tiling:
    """The shipped tiling, or one by rule for a shape that is not in the table."""
    square = problem.rows == problem.columns and problem.kernel_rows == problem.kernel_columns
    name = (problem.operator, problem.kernel_rows, problem.dilation, problem.rows)
    return (SHIPPED.get(name) if square else None) or _by_rule(problem)


def neighbours(problem: Problem) -> list[Tiling]:
    """The tiling in use and a few others worth timing against it."""
    widths = {w for w in (5, 7, 10, 14, problem.phase_columns) if w <= min(problem.phase_columns, WIDEST)}
    steps = (1,) if problem.operator == "gelu_gradient" else (1, 2)
    choices = itertools.product(sorted(widths), steps, (64, 128) if problem.operator == "convolve" else (64,))
    tilings = [Tiling(tile_columns=width, step=step, lanes=lanes) for width, step, lanes in choices]
    own = tiling_for(problem)
    return [own, *(tiling for tiling in tilings if tiling != own and _registers(problem, tiling) <= REGISTERS)]


def _by_rule(problem: Problem) -> Tiling:
    """Keep the plane in registers if it is small; else take the tile that runs the fewest instructions."""
    if problem.phase_rows * problem.phase_columns <= LARGEST_PLANE and problem.operator != "gelu_gradient":
        return Tiling(tile_columns=problem.phase_columns, step=problem.phase_rows)
    steps = (1,) if problem.operator == "gelu_gradient" else (1, 2)
    widths = range(1, min(problem.phase_columns, WIDEST) + 1)
    tilings = [Tiling(tile_columns=width, step=step) for width, step in itertools.product(widths, steps)]
    fitting = [tiling for tiling in tilings if _registers(problem, tiling) <= REGISTERS]
    return min(fitting or tilings[:1], key=lambda tiling: _instructions(problem, tiling))


def _registers(problem: Problem, tiling: Tiling) -> int:
    """Values that one thread holds for its channels."""
    each = tiling.lanes // 32
    taps = problem.kernel_rows * problem.kernel_columns
    read = tiling.tile_columns + problem.kernel_columns - 1
    if problem.operator == "weight_gradient":
        return each * (taps + tiling.step * read + tiling.tile_columns)
    if problem.operator == "gelu_gradient":
        return each * (2 * taps + problem.kernel_rows * read + 2 * tiling.tile_columns)
    sums = tiling.tile_columns * (problem.kernel_rows - 1 + tiling.step)
    return each * (sums + tiling.step * read + (taps if _resident(problem) else 2 * problem.kernel_columns))


def _instructions(problem: Problem, tiling: Tiling) -> int:
    """What a warp issues for all rows and columns of a phase, as read off compiled code, within a fifth."""
    taps = problem.kernel_rows * problem.kernel_columns
    pixels = tiling.tile_columns * tiling.step
    loaded = tiling.step * (tiling.tile_columns + problem.kernel_columns - 1)
    once = 2 * taps * pixels + 7 * pixels + 4 * loaded + taps + 40
    return math.ceil(problem.phase_columns / tiling.tile_columns) * math.ceil(problem.phase_rows / tiling.step) * once


def _resident(problem: Problem) -> bool:
    """Whether the taps stay in registers; those of 7 x 7 come from the L1 cache for every step."""
    return problem.kernel_rows * problem.kernel_columns <= 25


def settings(problem: Problem, tiling: Tiling) -> dict[str, Any]:
    """The arguments of a kernel that follow from its tiling."""
    whole = tiling.tile_columns >= problem.phase_columns
    plane = tiling.step >= problem.phase_rows
    channel_block, image_block = _lanes(problem.channels, tiling.lanes)
    image_tiles = math.ceil(problem.images / image_block)
    groups = math.ceil(problem.phase_columns / tiling.tile_columns)
    tiles = image_tiles * problem.dilation**2 * groups
    chosen = {
        "tile_columns": tiling.tile_columns,
        "halo": 0 if whole else problem.kernel_columns // 2,
        "channel_block": channel_block,
        "image_block": image_block,
        "even": problem.channels % channel_block == 0 and problem.images % image_block == 0,
        "units": tiles,
    }
    if problem.operator == "gelu_gradient":
        return chosen
    chosen["step"] = tiling.step
    chosen["before"] = 0 if plane else problem.kernel_rows // 2
    chosen["held"] = tiling.step if plane else problem.kernel_rows - 1 + tiling.step
    if problem.operator == "convolve":
        strips = 1 if plane else tiling.strips or _strips(problem, tiles * math.ceil(problem.channels / channel_block))
        chosen |= {"resident": _resident(problem), "strips": strips, "units": tiles * strips}
    return chosen


def programs(problem: Problem, chosen: dict[str, Any]) -> tuple[int, int]:
    """Blocks of channels, and programs for each: one to a tile, or to a few small ones, or as many as sum apart."""
    blocks = math.ceil(problem.channels / chosen["channel_block"])
    units = chosen["units"]
    if problem.operator != "convolve":
        return blocks, min(units, max(1, PROGRAMS // blocks))
    share = 1 if chosen["before"] else min(16, max(1, units * blocks // (4 * PROGRAMS)))
    return blocks, math.ceil(units / share)


def _lanes(channels: int, lanes: int) -> tuple[int, int]:
    """Channels and pictures that make up the lanes: channels first, in a power of two that divides them if it can."""
    divisor = math.gcd(channels, lanes)
    block = divisor if divisor >= 16 else min(lanes, 1 << (channels - 1).bit_length())
    return block, lanes // block


def _strips(problem: Problem, columns_of_tiles: int) -> int:
    """Strips of rows that end soonest: more of them fill the GPU, and each reads its margin again."""

    def rows_in_turn(strips: int) -> int:
        margin = problem.kernel_rows - 1 if strips > 1 else 0
        turns = math.ceil(columns_of_tiles * strips / PROGRAMS)
        return turns * (math.ceil(problem.phase_rows / strips) + margin)

    return min(range(1, max(1, problem.phase_rows // 4) + 1), key=rows_in_turn)
