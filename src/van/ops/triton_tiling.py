"""Tilings of the Triton kernels: a default table, a rule for every other shape, and candidates for autotuning.

The table follows from the reasoning below; it is not measured. ``pytest -m slow tests/ops/test_triton_compiled.py``
compiles every entry for compute capabilities 8.0 and 9.0 and checks that no register is spilled. With ``VAN_TUNE=1``
``triton.autotune`` times the entry and its candidates on the current GPU, once per shape and dtype, and keeps the
result in Triton's cache.

Derivation. A program is one warp, so no warp waits for another. It processes 64 lanes, two neighboring channels per
thread: one read is 128 bytes of bfloat16, a whole cache line, and a thread keeps two sums per pixel of the tile. A
thread has 255 registers: the sums take 2 * tile_columns * (kernel_rows - 1 + step) and the input
2 * step * (tile_columns + kernel_columns - 1). Seven columns divide 56, 28, 14 and 7. Where one tile spans the phase
(10 columns of 28, 5 of 14 and 3 of 7 at dilation 3) there is no halo; where one step reads the whole plane (5 x 5,
3 x 3, 7 x 7), products with padding are omitted at compile time. A 3x3 kernel leaves registers for twice the tile, or
for four channels per thread: more bytes in flight, since it is bound by memory.
"""

import dataclasses
import itertools
import math
from typing import Any

MAX_PROGRAMS = 1056
"""Programs that sum a weight gradient: eight for each multiprocessor of an H200. The same on every GPU, because it
determines the order of the sums and so their rounding."""
MAX_REGISTERS = 200
"""Most values per thread, by ``_count_registers``, that compiled code keeps in registers."""
MAX_PLANE_PIXELS = 49
"""Most pixels of a phase that fit into registers as a whole."""
MAX_TILE_COLUMNS = 14
"""Columns of the widest tile; a wider one leaves too few registers for the input."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """The sizes of a kernel launch that affect its speed."""

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
        """Return the rows of the longest phase."""
        return math.ceil(self.rows / self.dilation)

    @property
    def phase_columns(self) -> int:
        """Return the columns of the widest phase."""
        return math.ceil(self.columns / self.dilation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiling:
    """Columns of a tile, rows per step, strips of rows of a phase (0: choose automatically), lanes of a program."""

    tile_columns: int
    step: int = 1
    strips: int = 0
    lanes: int = 64


DEFAULT_TILINGS = {
    # operator, kernel side, dilation, map side: tiling
    ("convolve", 5, 1, 56): Tiling(tile_columns=7, step=2),
    ("convolve", 5, 1, 28): Tiling(tile_columns=7, step=2),
    ("convolve", 5, 1, 14): Tiling(tile_columns=14),
    ("convolve", 5, 1, 7): Tiling(tile_columns=7, step=7),
    ("convolve", 7, 3, 56): Tiling(tile_columns=7, step=2),
    ("convolve", 7, 3, 28): Tiling(tile_columns=10),
    ("convolve", 7, 3, 14): Tiling(tile_columns=5, step=5),
    ("convolve", 5, 3, 7): Tiling(tile_columns=3, step=3),  # the outer taps of 7 x 7 are cropped
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


def select_tiling(problem: Problem) -> Tiling:
    """Return the default tiling of a shape, or search one if the table has none."""
    is_square = problem.rows == problem.columns and problem.kernel_rows == problem.kernel_columns
    key = (problem.operator, problem.kernel_rows, problem.dilation, problem.rows)
    return (DEFAULT_TILINGS.get(key) if is_square else None) or _search_tiling(problem)


def candidate_tilings(problem: Problem) -> list[Tiling]:
    """Return the selected tiling first, then the alternatives for autotuning."""
    widths = {w for w in (5, 7, 10, 14, problem.phase_columns) if w <= min(problem.phase_columns, MAX_TILE_COLUMNS)}
    steps = (1,) if problem.operator == "gelu_gradient" else (1, 2)
    choices = itertools.product(sorted(widths), steps, (64, 128) if problem.operator == "convolve" else (64,))
    tilings = [Tiling(tile_columns=width, step=step, lanes=lanes) for width, step, lanes in choices]
    current = select_tiling(problem)
    return [
        current,
        *(tiling for tiling in tilings if tiling != current and _count_registers(problem, tiling) <= MAX_REGISTERS),
    ]


def _search_tiling(problem: Problem) -> Tiling:
    """Return a tiling that keeps a small plane in registers, else the one with the fewest instructions."""
    if problem.phase_rows * problem.phase_columns <= MAX_PLANE_PIXELS and problem.operator != "gelu_gradient":
        return Tiling(tile_columns=problem.phase_columns, step=problem.phase_rows)
    steps = (1,) if problem.operator == "gelu_gradient" else (1, 2)
    widths = range(1, min(problem.phase_columns, MAX_TILE_COLUMNS) + 1)
    tilings = [Tiling(tile_columns=width, step=step) for width, step in itertools.product(widths, steps)]
    within_budget = [tiling for tiling in tilings if _count_registers(problem, tiling) <= MAX_REGISTERS]
    return min(within_budget or tilings[:1], key=lambda tiling: _count_instructions(problem, tiling))


def _count_registers(problem: Problem, tiling: Tiling) -> int:
    """Return the number of values that one thread holds for its channels."""
    channels_per_thread = tiling.lanes // 32
    taps = problem.kernel_rows * problem.kernel_columns
    columns_read = tiling.tile_columns + problem.kernel_columns - 1
    if problem.operator == "weight_gradient":
        return channels_per_thread * (taps + tiling.step * columns_read + tiling.tile_columns)
    if problem.operator == "gelu_gradient":
        return channels_per_thread * (2 * taps + problem.kernel_rows * columns_read + 2 * tiling.tile_columns)
    sums = tiling.tile_columns * (problem.kernel_rows - 1 + tiling.step)
    return channels_per_thread * (
        sums
        + tiling.step * columns_read
        + (taps if _keeps_weight_in_registers(problem) else 2 * problem.kernel_columns)
    )


def _count_instructions(problem: Problem, tiling: Tiling) -> int:
    """Estimate the instructions of a warp for one phase, fitted to compiled code within 20 %."""
    taps = problem.kernel_rows * problem.kernel_columns
    pixels = tiling.tile_columns * tiling.step
    loaded = tiling.step * (tiling.tile_columns + problem.kernel_columns - 1)
    per_step = 2 * taps * pixels + 7 * pixels + 4 * loaded + taps + 40
    return (
        math.ceil(problem.phase_columns / tiling.tile_columns) * math.ceil(problem.phase_rows / tiling.step) * per_step
    )


def _keeps_weight_in_registers(problem: Problem) -> bool:
    """Return whether the taps stay in registers; those of 7 x 7 are read from the L1 cache at every step."""
    return problem.kernel_rows * problem.kernel_columns <= 25


def kernel_arguments(problem: Problem, tiling: Tiling) -> dict[str, Any]:
    """Return the kernel arguments that follow from a tiling."""
    spans_columns = tiling.tile_columns >= problem.phase_columns
    spans_rows = tiling.step >= problem.phase_rows
    channel_block, image_block = _split_lanes(problem.channels, tiling.lanes)
    image_tiles = math.ceil(problem.images / image_block)
    groups = math.ceil(problem.phase_columns / tiling.tile_columns)
    tiles = image_tiles * problem.dilation**2 * groups
    arguments = {
        "tile_columns": tiling.tile_columns,
        "halo": 0 if spans_columns else problem.kernel_columns // 2,
        "channel_block": channel_block,
        "image_block": image_block,
        "is_even": problem.channels % channel_block == 0 and problem.images % image_block == 0,
        "num_tiles": tiles,
    }
    if problem.operator == "gelu_gradient":
        return arguments
    arguments["step"] = tiling.step
    arguments["rows_above"] = 0 if spans_rows else problem.kernel_rows // 2
    arguments["rows_held"] = tiling.step if spans_rows else problem.kernel_rows - 1 + tiling.step
    if problem.operator == "convolve":
        tile_columns = tiles * math.ceil(problem.channels / channel_block)
        strips = 1 if spans_rows else tiling.strips or _choose_strips(problem, tile_columns)
        arguments |= {
            "taps_in_registers": _keeps_weight_in_registers(problem),
            "strips": strips,
            "num_tiles": tiles * strips,
        }
    return arguments


def launch_grid(problem: Problem, arguments: dict[str, Any]) -> tuple[int, int]:
    """Return the number of channel blocks and the number of programs per block.

    A program processes one tile, several small tiles, or in the gradient kernels a fixed share of all tiles.
    """
    blocks = math.ceil(problem.channels / arguments["channel_block"])
    num_tiles = arguments["num_tiles"]
    if problem.operator != "convolve":
        return blocks, min(num_tiles, max(1, MAX_PROGRAMS // blocks))
    tiles_per_program = 1 if arguments["rows_above"] else min(16, max(1, num_tiles * blocks // (4 * MAX_PROGRAMS)))
    return blocks, math.ceil(num_tiles / tiles_per_program)


def _split_lanes(channels: int, lanes: int) -> tuple[int, int]:
    """Return the channels and images per program: channels first, by a power of two that divides them if possible."""
    divisor = math.gcd(channels, lanes)
    block = divisor if divisor >= 16 else min(lanes, 1 << (channels - 1).bit_length())
    return block, lanes // block


def _choose_strips(problem: Problem, num_tile_columns: int) -> int:
    """Return the number of strips of rows that minimizes the run time.

    More strips fill the GPU better, but each reads its halo again.
    """

    def rows_per_wave(strips: int) -> int:
        margin = problem.kernel_rows - 1 if strips > 1 else 0
        waves = math.ceil(num_tile_columns * strips / MAX_PROGRAMS)
        return waves * (math.ceil(problem.phase_rows / strips) + margin)

    return min(range(1, max(1, problem.phase_rows // 4) + 1), key=rows_per_wave)
