"""Building blocks of the Triton kernels: rows of pixels as tuples of registers.

Shapes: a *lane* is one channel of one image, and every tensor here is (lanes,). A row is a tuple of tensors, one per
column; so a pixel is loaded and converted to float32 once and then multiplied by every tap from a register.
A convolution with dilation d never mixes rows or columns that differ modulo d: those with the same remainder are a
*phase*, and within a phase the kernel is not dilated. Columns and rows below are counted within a phase.

Only builtins of ``triton.language`` are called, so that all of it also runs in Triton's interpreter if
``TRITON_INTERPRET=1`` is set when this module is imported. Triton does not support starred tuples; hence the
concatenations.
"""
# ruff: noqa: RUF005
# pyrefly: ignore-errors

import triton
import triton.language as tl


@triton.jit
def locate_tile(tile, rows, columns, strips, tile_columns: tl.constexpr, dilation: tl.constexpr):
    """Return image block, row and column phase, rows of the phase, strip (from, to) and first column of a tile."""
    groups = ((columns + dilation - 1) // dilation + tile_columns - 1) // tile_columns
    first_column = tile % groups * tile_columns
    tile = tile // groups
    column_phase = tile % dilation
    tile = tile // dilation
    strip = tile % strips
    tile = tile // strips
    row_phase = tile % dilation
    phase_rows = (rows - row_phase + dilation - 1) // dilation
    height = (phase_rows + strips - 1) // strips
    last_row = tl.minimum((strip + 1) * height, phase_rows)
    return tile // dilation, row_phase, column_phase, phase_rows, strip * height, last_row, first_column


@triton.jit
def column_limits(lane_mask, first_column, column_phase, columns, dilation: tl.constexpr):
    """Return the columns of the phase before ``first_column`` and from it on, per lane; 0 for masked lanes."""
    right = (columns - column_phase + dilation - 1) // dilation - first_column
    return tl.where(lane_mask, first_column, 0), tl.where(lane_mask, right, 0)


@triton.jit
def row_pointers(tensor, image, row_phase, column, channel, image_stride, row_stride, pixel: tl.constexpr):
    """Return pointers to the first row of a phase; in 64 bits, since a tensor may exceed 2**31 elements."""
    offset = tl.cast(row_phase, tl.int64) * row_stride + tl.cast(column, tl.int64) * pixel
    return tensor + offset + (image.to(tl.int64) * image_stride + channel)


@triton.jit
def load_row(pointer, left, right, inside, begin: tl.constexpr, end: tl.constexpr, stride: tl.constexpr):
    """Load columns ``begin`` to ``end`` of a row as float32; zeros beyond ``left`` and ``right`` or outside."""
    row = ()
    left = tl.where(inside, left, 0)
    right = tl.where(inside, right, 0)
    for q in tl.static_range(begin, end):
        column_mask = left >= -q if q < 0 else right > q
        row = row + (tl.load(pointer + q * stride, mask=column_mask, other=0.0).to(tl.float32),)
    return row


@triton.jit
def load_rows(pointer, y, last, left, right, stride, step: tl.constexpr, dilation: tl.constexpr, begin: tl.constexpr,
              end: tl.constexpr, pixel: tl.constexpr):  # fmt: skip
    """Load ``step`` rows of a phase from row ``y`` on; rows from ``last`` on are zeros."""
    rows = ()
    for u in tl.static_range(step):
        pointers = pointer + tl.cast((y + u) * dilation, tl.int64) * stride
        rows = rows + (load_row(pointers, left, right, y + u < last, begin, end, dilation * pixel),)
    return rows


@triton.jit
def store_row(pointer, row, right, inside, count: tl.constexpr, stride: tl.constexpr, gelu: tl.constexpr):
    """Store a row of sums up to column ``right``; apply GELU first if ``gelu``."""
    right = tl.where(inside, right, 0)
    for t in tl.static_range(count):
        value = row[t]
        if gelu:
            cdf, _ = normal_cdf(value)
            value = value * cdf
        tl.store(pointer + t * stride, value.to(pointer.dtype.element_ty), mask=right > t)


@triton.jit
def normal_cdf(v):
    """Return P(Z < v) of the standard normal distribution, and exp(-v^2 / 2).

    The tail exp(-a^2 / 2) t p(t) with t = 1 / (1 + 0.34 a) has the form of Hastings 1955, sheet 45, with seven
    coefficients refitted: in exact arithmetic the error is less than 2e-8 absolute and 2e-5 relative to the tail.
    It takes half the instructions of erf and keeps the tail, which cancels in 1 + erf. GELU(v) is v P(Z < v).
    """
    u = tl.fma(tl.abs(v), 0.34, 1.0)
    t = tl.rsqrt(u * u)
    density = tl.exp2(v * v * -0.7213475204444817)
    p = tl.fma(t, 0.04375521, -0.19595296)
    p = tl.fma(t, p, 0.25617528)
    p = tl.fma(t, p, -0.02370408)
    p = tl.fma(t, p, 0.15322961)
    p = tl.fma(t, p, 0.13054569)
    p = tl.fma(t, p, 0.13595124)
    tail = p * t * density
    return tl.where(v > 0, 1 - tail, tail), density


@triton.jit
def load_taps(pointer, i: tl.constexpr, rows: tl.constexpr, count: tl.constexpr, flip: tl.constexpr,
              channels: tl.constexpr, channel_mask):  # fmt: skip
    """Load row ``i`` of the taps (rows, count, C), rotated by 180 degrees if ``flip``."""
    taps = ()
    for j in tl.static_range(count):
        tap = (rows - i) * count - 1 - j if flip else i * count + j
        taps = taps + (tl.load(pointer + tap * channels, mask=channel_mask, other=0.0),)
    return taps


@triton.jit
def replace_item(rows, index: tl.constexpr, row):
    """Return ``rows`` with the item at ``index`` replaced by ``row``."""
    return rows[:index] + (row,) + rows[index + 1 :]


@triton.jit
def convolve_row(sums, row, taps, columns: tl.constexpr, count: tl.constexpr, halo: tl.constexpr):
    """Add the products of ``count`` taps and a row with ``halo`` columns on either side to ``columns`` sums."""
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
    """Add the products of a row of x, shifted per tap, and a row of the gradient to the sums of ``count`` taps."""
    out = ()
    for j in tl.static_range(count):
        total = sums[j]
        for t in tl.static_range(columns):
            if t + j - count // 2 >= -halo and t + j - count // 2 < columns + halo:
                total = tl.fma(row[t + j - count // 2 + halo], gradient[t], total)
        out = out + (total,)
    return out


@triton.jit
def store_sums(partial, sums, grad_bias, split, lane, channel, kernel_rows: tl.constexpr, kernel_columns: tl.constexpr,
               channels: tl.constexpr, channel_block: tl.constexpr, image_block: tl.constexpr):  # fmt: skip
    """Store the sums of one program to its own rows of ``partial`` (splits * image_block, taps + 1, C)."""
    row = split * image_block + lane // channel_block
    pointers = partial + row.to(tl.int64) * ((kernel_rows * kernel_columns + 1) * channels) + channel
    for i in tl.static_range(kernel_rows):
        for j in tl.static_range(kernel_columns):
            tl.store(pointers + (i * kernel_columns + j) * channels, sums[i][j], mask=channel < channels)
    tl.store(pointers + kernel_rows * kernel_columns * channels, grad_bias, mask=channel < channels)
