"""The Triton kernels: a depth-wise convolution, its weight gradient, and the way back through GELU.

Shapes: N pictures, C channels, H rows, W columns, pixels of C neighbouring values (channels_last, any other
strides); taps (kernel_rows, kernel_columns, C) in float32; partial sums (parts, taps + 1, C) in float32, the last
"tap" being the bias. Phases, lanes and rows are those of ``triton_rows.py``.

A *tile* is ``tile_columns`` neighbouring columns of a phase over the rows of a strip, for one lane of
``channel_block`` channels times ``image_block`` pictures. A program keeps its channels and walks over tiles.
Compile-time constants say how much of the neighbourhood there is: ``halo`` columns on either side of the tile (0 when
the tile spans the phase), and ``held`` rows, of which ``before`` lie above the row that is read (``step`` and 0 when
one step reads every row of the phase: then the plane stays in registers). Taps that could only meet padding there are
never written down.
"""
# ruff: noqa: RUF005
# pyrefly: ignore-errors

import triton
import triton.language as tl

from van.ops.triton_rows import (
    convolve_row,
    correlate_row,
    load_row,
    load_rows,
    load_taps,
    locate,
    normal,
    point,
    reach,
    replaced,
    store_row,
    store_sums,
)

VARYING = ["images", "rows", "columns", "strips", "units"]
"""Numbers that differ from call to call: compiling anew for 1 or for multiples of 16 would gain nothing."""


@triton.jit
def spread(sums, inputs, kept, pointer, known, channels: tl.constexpr, kernel_rows: tl.constexpr,
           kernel_columns: tl.constexpr, flip: tl.constexpr, tile_columns: tl.constexpr, step: tl.constexpr,
           halo: tl.constexpr, before: tl.constexpr, held: tl.constexpr, resident: tl.constexpr):  # fmt: skip
    """Add ``step`` rows of input to every row of sums in their reach: by tap row i, input u meets row u + half - i."""
    below: tl.constexpr = kernel_rows // 2 + before
    for i in tl.static_range(kernel_rows):
        taps = kept[i] if resident else load_taps(pointer, i, kernel_rows, kernel_columns, flip, channels, known)
        for u in tl.static_range(step):
            if u + below - i >= 0 and u + below - i < held:
                row = convolve_row(sums[u + below - i], inputs[u], taps, tile_columns, kernel_columns, halo)
                sums = replaced(sums, u + below - i, row)
    return sums


@triton.jit(do_not_specialize=VARYING)
def convolve(
    x, taps, bias, out, images, rows, columns, strips, units, x_image, x_row, out_image, out_row,
    channels: tl.constexpr, x_pixel: tl.constexpr, out_pixel: tl.constexpr, kernel_rows: tl.constexpr,
    kernel_columns: tl.constexpr, dilation: tl.constexpr, flip: tl.constexpr, gelu: tl.constexpr,
    tile_columns: tl.constexpr, step: tl.constexpr, halo: tl.constexpr, before: tl.constexpr, held: tl.constexpr,
    resident: tl.constexpr, channel_block: tl.constexpr, image_block: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """Depth-wise convolution: x, out (N, C, H, W), taps (kernel_rows, kernel_columns, C), bias (C,) or None.

    Sweeps down the rows of a tile with ``held`` rows of sums in registers: each input row is loaded once and added to
    every output row in its reach; then the topmost ``step`` rows are complete, are written, and make room.
    """
    blocks: tl.constexpr = (channels + channel_block - 1) // channel_block
    lane = tl.arange(0, channel_block * image_block)
    channel = tl.program_id(0) % blocks * channel_block + lane % channel_block
    known = channel < channels
    if bias is None:
        start = tl.full([channel_block * image_block], 0.0, tl.float32)
    else:
        start = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    kept = ()
    if resident:
        for i in tl.static_range(kernel_rows):
            kept = kept + (load_taps(taps + channel, i, kernel_rows, kernel_columns, flip, channels, known),)
    for unit in range(tl.program_id(0) // blocks, units, tl.num_programs(0) // blocks):
        image_tile, row_phase, column_phase, phase_rows, first_row, last_row, first = locate(
            unit, rows, columns, strips, tile_columns, dilation
        )
        image = image_tile * image_block + lane // channel_block
        lanes = lane >= 0 if even else known & (image < images)
        left, right = reach(lanes, first, column_phase, columns, dilation)
        column = column_phase + first * dilation
        source = point(x, image, row_phase, column, channel, x_image, x_row, x_pixel)
        target = point(out, image, row_phase, column, channel, out_image, out_row, out_pixel)
        sums = ((start,) * tile_columns,) * held
        low = tl.maximum(first_row - before, 0)
        high = tl.minimum(last_row + before, phase_rows)
        for y in range(low, high, step):
            inputs = load_rows(source, y, phase_rows, left, right, x_row, step, dilation, -halo, tile_columns + halo,
                               x_pixel)  # fmt: skip
            sums = spread(sums, inputs, kept, taps + channel, known, channels, kernel_rows, kernel_columns, flip,
                          tile_columns, step, halo, before, held, resident)  # fmt: skip
            for u in tl.static_range(step):
                r = y + u - before
                store_row(target + tl.cast(r * dilation, tl.int64) * out_row, sums[u], right,
                          (r >= first_row) & (r < last_row), tile_columns, dilation * out_pixel, gelu)  # fmt: skip
            sums = sums[step:] + ((start,) * tile_columns,) * step
        done = low + (high - low + step - 1) // step * step - before
        for u in tl.static_range(before):
            r = done + u
            store_row(target + tl.cast(r * dilation, tl.int64) * out_row, sums[u], right,
                      (r >= first_row) & (r < last_row), tile_columns, dilation * out_pixel, gelu)  # fmt: skip


@triton.jit
def gather(sums, inputs, row, kernel_rows: tl.constexpr, kernel_columns: tl.constexpr, tile_columns: tl.constexpr,
           step: tl.constexpr, halo: tl.constexpr, above: tl.constexpr):  # fmt: skip
    """Add the products of ``step`` rows of x with a row of the gradient ``above`` rows over the first of them."""
    for u in tl.static_range(step):
        if u + above + kernel_rows // 2 >= 0 and u + above + kernel_rows // 2 < kernel_rows:
            taps = correlate_row(sums[u + above + kernel_rows // 2], inputs[u], row, tile_columns, kernel_columns, halo)
            sums = replaced(sums, u + above + kernel_rows // 2, taps)
    return sums


@triton.jit(do_not_specialize=VARYING)
def weight_gradient(
    x, gradient, partial, images, rows, columns, units, x_image, x_row, gradient_image, gradient_row,
    channels: tl.constexpr, x_pixel: tl.constexpr, gradient_pixel: tl.constexpr, kernel_rows: tl.constexpr,
    kernel_columns: tl.constexpr, dilation: tl.constexpr, tile_columns: tl.constexpr, step: tl.constexpr,
    halo: tl.constexpr, before: tl.constexpr, held: tl.constexpr, channel_block: tl.constexpr,
    image_block: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """Sums over pixels of x times the gradient under each tap, and of the gradient alone.

    Every tap keeps its sum in a register through all tiles of a program. ``step`` rows of x are held at a time; the
    rows of the gradient in their reach pass by, and all but the newest of these come from the L1 cache.
    """
    blocks: tl.constexpr = (channels + channel_block - 1) // channel_block
    lane = tl.arange(0, channel_block * image_block)
    channel = tl.program_id(0) % blocks * channel_block + lane % channel_block
    of_bias = tl.full([channel_block * image_block], 0.0, tl.float32)
    sums = ((of_bias,) * kernel_columns,) * kernel_rows
    for unit in range(tl.program_id(0) // blocks, units, tl.num_programs(0) // blocks):
        image_tile, row_phase, column_phase, phase_rows, _, _, first = locate(
            unit, rows, columns, 1, tile_columns, dilation
        )
        image = image_tile * image_block + lane // channel_block
        lanes = lane >= 0 if even else (channel < channels) & (image < images)
        left, right = reach(lanes, first, column_phase, columns, dilation)
        column = column_phase + first * dilation
        source = point(x, image, row_phase, column, channel, x_image, x_row, x_pixel)
        slope = point(gradient, image, row_phase, column, channel, gradient_image, gradient_row, gradient_pixel)
        for y in range(0, phase_rows, step):
            inputs = load_rows(source, y, phase_rows, left, right, x_row, step, dilation, -halo, tile_columns + halo,
                               x_pixel)  # fmt: skip
            for b in tl.static_range(held):
                r = y + b - before
                row = load_row(slope + tl.cast(r * dilation, tl.int64) * gradient_row, left, right,
                               (r >= 0) & (r < phase_rows), 0, tile_columns, dilation * gradient_pixel)  # fmt: skip
                sums = gather(sums, inputs, row, kernel_rows, kernel_columns, tile_columns, step, halo, before - b)
                if b >= before and b < before + step:
                    for t in tl.static_range(tile_columns):
                        of_bias = of_bias + row[t]
    store_sums(partial, sums, of_bias, tl.program_id(0) // blocks, lane, channel, kernel_rows, kernel_columns,
               channels, channel_block, image_block)  # fmt: skip


@triton.jit
def back_through_gelu(values, gradient, tile_columns: tl.constexpr):
    """The gradient before GELU for a row: gradient times P(Z < v) + v exp(-v^2 / 2) / sqrt(2 pi)."""
    out = ()
    for t in tl.static_range(tile_columns):
        below, bell = normal(values[t])
        out = out + (gradient[t] * tl.fma(values[t], bell * 0.3989422804014327, below),)
    return out


@triton.jit(do_not_specialize=VARYING)
def gelu_gradient(
    x, gradient, taps, bias, out, partial, images, rows, columns, units, x_image, x_row, gradient_image, gradient_row,
    out_image, out_row, channels: tl.constexpr, x_pixel: tl.constexpr, gradient_pixel: tl.constexpr,
    out_pixel: tl.constexpr, kernel_rows: tl.constexpr, kernel_columns: tl.constexpr, tile_columns: tl.constexpr,
    halo: tl.constexpr, channel_block: tl.constexpr, image_block: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """The gradient between convolution and GELU (out), and with it the sums of ``weight_gradient``, in one pass.

    ``kernel_rows`` rows of x move down in registers; from them come the convolution once more, in the order of the
    forward pass, and the products for the taps.
    """
    half: tl.constexpr = kernel_rows // 2
    blocks: tl.constexpr = (channels + channel_block - 1) // channel_block
    lane = tl.arange(0, channel_block * image_block)
    channel = tl.program_id(0) % blocks * channel_block + lane % channel_block
    known = channel < channels
    nothing = tl.full([channel_block * image_block], 0.0, tl.float32)
    start = nothing if bias is None else tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    kept = ()
    for i in tl.static_range(kernel_rows):
        kept = kept + (load_taps(taps + channel, i, kernel_rows, kernel_columns, False, channels, known),)
    sums, of_bias = ((nothing,) * kernel_columns,) * kernel_rows, nothing
    for unit in range(tl.program_id(0) // blocks, units, tl.num_programs(0) // blocks):
        image_tile, _, _, _, _, _, first = locate(unit, rows, columns, 1, tile_columns, 1)
        image = image_tile * image_block + lane // channel_block
        lanes = lane >= 0 if even else known & (image < images)
        left, right = reach(lanes, first, 0, columns, 1)
        source = point(x, image, 0, first, channel, x_image, x_row, x_pixel)
        slope = point(gradient, image, 0, first, channel, gradient_image, gradient_row, gradient_pixel)
        target = point(out, image, 0, first, channel, out_image, out_row, out_pixel)
        inputs = ((nothing,) * (tile_columns + 2 * halo),) * half + load_rows(
            source, 0, rows, left, right, x_row, half, 1, -halo, tile_columns + halo, x_pixel
        )
        for y in range(rows):
            inputs = inputs + load_rows(source, y + half, rows, left, right, x_row, 1, 1, -halo, tile_columns + halo,
                                        x_pixel)  # fmt: skip
            values = (start,) * tile_columns
            for i in tl.static_range(kernel_rows):
                values = convolve_row(values, inputs[i], kept[i], tile_columns, kernel_columns, halo)
            row = load_row(
                slope + tl.cast(y, tl.int64) * gradient_row, left, right, y >= 0, 0, tile_columns, gradient_pixel
            )
            row = back_through_gelu(values, row, tile_columns)
            store_row(target + tl.cast(y, tl.int64) * out_row, row, right, y >= 0, tile_columns, out_pixel, False)
            for i in tl.static_range(kernel_rows):
                taps_of_row = correlate_row(sums[i], inputs[i], row, tile_columns, kernel_columns, halo)
                sums = replaced(sums, i, taps_of_row)
            for t in tl.static_range(tile_columns):
                of_bias = of_bias + row[t]
            inputs = inputs[1:]
    store_sums(partial, sums, of_bias, tl.program_id(0) // blocks, lane, channel, kernel_rows, kernel_columns,
               channels, channel_block, image_block)  # fmt: skip
