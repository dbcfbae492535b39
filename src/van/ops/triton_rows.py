"""What the Triton kernels are made of: rows of pixels as tuples of registers.

Shapes: a *lane* stands for one channel of one picture, and every tensor here is (lanes,). A row is a tuple of them, one
for each column; so a pixel is loaded and widened to float32 once and then meets every tap from a register.
A convolution dilated by d never mixes rows or columns that differ modulo d: those of one remainder are a *phase*, and
within a phase the kernel is not dilated. Columns and rows below count within a phase.

Only builtins of ``triton.language`` are called, so that all of it runs in Triton's interpreter, too, whenever
``TRITON_INTERPRET=1`` is set when this module is imported. Triton reads no starred tuples; hence the sums of tuples.
"""
# ruff: noqa: RUF005
# pyrefly: ignore-errors

import triton
import triton.language as tl


@triton.jit
def locate(unit, rows, columns, strips, tile_columns: tl.constexpr, dilation: tl.constexpr):
    """The place of tile ``unit``: picture block, phase, rows of the phase, strip (from, to), first column."""
    groups = ((columns + dilation - 1) // dilation + tile_columns - 1) // tile_columns
    first_column = unit % groups * tile_columns
    unit = unit // groups
    column_phase = unit % dilation
    unit = unit // dilation
    strip = unit % strips
    unit = unit // strips
    row_phase = unit % dilation
    phase_rows = (rows - row_phase + dilation - 1) // dilation
    height = (phase_rows + strips - 1) // strips
    last_row = tl.minimum((strip + 1) * height, phase_rows)
    return unit // dilation, row_phase, column_phase, phase_rows, strip * height, last_row, first_column


@triton.jit
def reach(lanes, first_column, column_phase, columns, dilation: tl.constexpr):
    """How many columns of the phase a lane has left of the first one and from it on; none where there is no lane."""
    right = (columns - column_phase + dilation - 1) // dilation - first_column
    return tl.where(lanes, first_column, 0), tl.where(lanes, right, 0)


@triton.jit
def point(tensor, image, row_phase, column, channel, image_stride, row_stride, pixel: tl.constexpr):
    """Pointers to the first row of a phase; in 64 bits, since a tensor may pass 2**31 elements."""
    start = tl.cast(row_phase, tl.int64) * row_stride + tl.cast(column, tl.int64) * pixel
    return tensor + start + (image.to(tl.int64) * image_stride + channel)


@triton.jit
def load_row(pointer, left, right, inside, begin: tl.constexpr, end: tl.constexpr, stride: tl.constexpr):
    """Columns ``begin`` to ``end`` of a row as float32: zeros beyond ``left`` and ``right``, and if not ``inside``."""
    row = ()
    left = tl.where(inside, left, 0)
    right = tl.where(inside, right, 0)
    for q in tl.static_range(begin, end):
        known = left >= -q if q < 0 else right > q
        row = row + (tl.load(pointer + q * stride, mask=known, other=0.0).to(tl.float32),)
    return row


@triton.jit
def load_rows(pointer, y, last, left, right, stride, step: tl.constexpr, dilation: tl.constexpr, begin: tl.constexpr,
              end: tl.constexpr, pixel: tl.constexpr):  # fmt: skip
    """``step`` rows of a phase from row ``y`` on; those from ``last`` on are zeros."""
    rows = ()
    for u in tl.static_range(step):
        here = pointer + tl.cast((y + u) * dilation, tl.int64) * stride
        rows = rows + (load_row(here, left, right, y + u < last, begin, end, dilation * pixel),)
    return rows


@triton.jit
def store_row(pointer, row, right, inside, count: tl.constexpr, stride: tl.constexpr, gelu: tl.constexpr):
    """Write a row of sums, through GELU if asked, up to column ``right``."""
    right = tl.where(inside, right, 0)
    for t in tl.static_range(count):
        value = row[t]
        if gelu:
            below, _ = normal(value)
            value = value * below
        tl.store(pointer + t * stride, value.to(pointer.dtype.element_ty), mask=right > t)


@triton.jit
def normal(v):
    """P(Z < v) of the normal distribution, and exp(-v^2 / 2).

    The tail exp(-a^2 / 2) t p(t) with t = 1 / (1 + 0.34 a) has the form of Hastings 1955, sheet 45, with seven
    coefficients fitted anew: in exact arithmetic they are off by less than 2e-8, and by less than 2e-5 of the tail.
    That is half the instructions of erf, and keeps the tail that 1 + erf cancels. GELU(v) is v P(Z < v).
    """
    u = tl.fma(tl.abs(v), 0.34, 1.0)
    t = tl.rsqrt(u * u)
    bell = tl.exp2(v * v * -0.7213475204444817)
    p = tl.fma(t, 0.04375521, -0.19595296)
    p = tl.fma(t, p, 0.25617528)
    p = tl.fma(t, p, -0.02370408)
    p = tl.fma(t, p, 0.15322961)
    p = tl.fma(t, p, 0.13054569)
    p = tl.fma(t, p, 0.13595124)
    tail = p * t * bell
    return tl.where(v > 0, 1 - tail, tail), bell


@triton.jit
def load_taps(pointer, i: tl.constexpr, rows: tl.constexpr, count: tl.constexpr, flip: tl.constexpr,
              channels: tl.constexpr, known):  # fmt: skip
    """Row ``i`` of the taps (rows, count, C), or of the taps turned by 180 degrees."""
    taps = ()
    for j in tl.static_range(count):
        tap = (rows - i) * count - 1 - j if flip else i * count + j
        taps = taps + (tl.load(pointer + tap * channels, mask=known, other=0.0),)
    return taps


@triton.jit
def replaced(rows, index: tl.constexpr, row):
    """``rows`` with another row at ``index``."""
    return rows[:index] + (row,) + rows[index + 1 :]


@triton.jit
def convolve_row(sums, row, taps, columns: tl.constexpr, count: tl.constexpr, halo: tl.constexpr):
    """Add to ``columns`` sums what ``count`` taps see of a row with ``halo`` columns on either side."""
    out = ()
    for t in tl.static_range(columns):
        total = sums[t]
        for j in tl.static_range(count):
            if t + j - count // 2 >= -halo and t + j - count // 2 < columns + halo:
                total = tl.fma(row[t + j - count // 2 + halo], taps[j], total)
        out = out + (total,)
    return out


@triton.jit
def correlate_row(sums, row, gradient, columns: tl.constexpr, count: tl.constexpr, halo: tl.constexpr):
    """Add to the sums of ``count`` taps the products of a row of x and a row of the gradient under each tap."""
    out = ()
    for j in tl.static_range(count):
        total = sums[j]
        for t in tl.static_range(columns):
            if t + j - count // 2 >= -halo and t + j - count // 2 < columns + halo:
                total = tl.fma(row[t + j - count // 2 + halo], gradient[t], total)
        out = out + (total,)
    return out


@triton.jit
def store_sums(partial, sums, of_bias, split, lane, channel, kernel_rows: tl.constexpr, kernel_columns: tl.constexpr,
               channels: tl.constexpr, channel_block: tl.constexpr, image_block: tl.constexpr):  # fmt: skip
    """Write one program's sums to rows of its own in ``partial`` (splits * image_block, taps + 1, C)."""
    row = split * image_block + lane // channel_block
    here = partial + row.to(tl.int64) * ((kernel_rows * kernel_columns + 1) * channels) + channel
    for i in tl.static_range(kernel_rows):
        for j in tl.static_range(kernel_columns):
            tl.store(here + (i * kernel_columns + j) * channels, sums[i][j], mask=channel < channels)
    tl.store(here + kernel_rows * kernel_columns * channels, of_bias, mask=channel < channels)
