"""The Triton kernels: a depth-wise convolution, its weight gradient, and the backward pass of GELU.

Shapes: N images, C channels, H rows, W columns, pixels of C neighboring values (channel stride 1, any other
strides); taps (kernel_rows, kernel_columns, C) in float32; partial sums (splits, taps + 1, C) in float32, the last
"tap" being the bias. Phases, lanes and rows are those of ``triton_rows.py``.

A *tile* is ``tile_columns`` neighboring columns of a phase over the rows of a strip, for the lanes of
``channel_block`` channels times ``image_block`` images. A program keeps its channels and iterates over tiles.
Compile-time constants describe the neighborhood: ``halo`` columns on either side of the tile (0 when the tile spans
the phase), and ``rows_held`` rows in registers, of which ``rows_above`` lie above the row that is read (``step`` and 0
when one step reads every row of the phase: then the plane stays in registers). Products with padding are omitted.
"""
# ruff: noqa: RUF005
# pyrefly: ignore-errors

import triton
import triton.language as tl

from van.ops.triton_rows import (
    column_limits,
    convolve_row,
    correlate_row,
    load_row,
    load_rows,
    load_taps,
    locate_tile,
    normal_cdf,
    replace_item,
    row_pointers,
    store_row,
    store_sums,
)

DO_NOT_SPECIALIZE = ["images", "rows", "columns", "strips", "num_tiles"]
"""Arguments that vary between calls; specializing on 1 or on multiples of 16 would only recompile."""


@triton.jit
def accumulate_rows(
    sums, inputs, all_taps, pointer, channel_mask, channels: tl.constexpr, kernel_rows: tl.constexpr,
    kernel_columns: tl.constexpr, flip: tl.constexpr, tile_columns: tl.constexpr, step: tl.constexpr,
    halo: tl.constexpr, rows_above: tl.constexpr, rows_held: tl.constexpr, taps_in_registers: tl.constexpr,
):  # fmt: skip
    """Add ``step`` input rows to every row of sums that they affect: tap row i maps input u to row u + half - i."""
    below: tl.constexpr = kernel_rows // 2 + rows_above
    for i in tl.static_range(kernel_rows):
        if taps_in_registers:
            taps = all_taps[i]
        else:
            taps = load_taps(pointer, i, kernel_rows, kernel_columns, flip, channels, channel_mask)
        for u in tl.static_range(step):
            if u + below - i >= 0 and u + below - i < rows_held:
                row = convolve_row(sums[u + below - i], inputs[u], taps, tile_columns, kernel_columns, halo)
                sums = replace_item(sums, u + below - i, row)
    return sums


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def convolve(
    x, taps, bias, out, images, rows, columns, strips, num_tiles, x_image, x_row, out_image, out_row,
    channels: tl.constexpr, x_pixel: tl.constexpr, out_pixel: tl.constexpr, kernel_rows: tl.constexpr,
    kernel_columns: tl.constexpr, dilation: tl.constexpr, flip: tl.constexpr, gelu: tl.constexpr,
    tile_columns: tl.constexpr, step: tl.constexpr, halo: tl.constexpr, rows_above: tl.constexpr,
    rows_held: tl.constexpr, taps_in_registers: tl.constexpr, channel_block: tl.constexpr,
    image_block: tl.constexpr, is_even: tl.constexpr,
):  # fmt: skip
    """Apply a depth-wise convolution: x, out (N, C, H, W), taps (kernel_rows, kernel_columns, C), bias (C,) or None.

    Sweeps down the rows of a tile with ``rows_held`` rows of sums in registers: each input row is loaded once and
    added to every output row that it affects. Then the topmost ``step`` rows are complete and are stored.
    """
    blocks: tl.constexpr = (channels + channel_block - 1) // channel_block
    lane = tl.arange(0, channel_block * image_block)
    channel = tl.program_id(0) % blocks * channel_block + lane % channel_block
    channel_mask = channel < channels
    if bias is None:
        initial = tl.full([channel_block * image_block], 0.0, tl.float32)
    else:
        initial = tl.load(bias + channel, mask=channel_mask, other=0.0).to(tl.float32)
    all_taps = ()
    if taps_in_registers:
        for i in tl.static_range(kernel_rows):
            all_taps = all_taps + (
                load_taps(taps + channel, i, kernel_rows, kernel_columns, flip, channels, channel_mask),
            )
    for tile in range(tl.program_id(0) // blocks, num_tiles, tl.num_programs(0) // blocks):
        image_tile, row_phase, column_phase, phase_rows, first_row, last_row, first = locate_tile(
            tile, rows, columns, strips, tile_columns, dilation
        )
        image = image_tile * image_block + lane // channel_block
        lane_mask = lane >= 0 if is_even else channel_mask & (image < images)
        left, right = column_limits(lane_mask, first, column_phase, columns, dilation)
        column = column_phase + first * dilation
        x_source = row_pointers(x, image, row_phase, column, channel, x_image, x_row, x_pixel)
        out_target = row_pointers(out, image, row_phase, column, channel, out_image, out_row, out_pixel)
        sums = ((initial,) * tile_columns,) * rows_held
        low = tl.maximum(first_row - rows_above, 0)
        high = tl.minimum(last_row + rows_above, phase_rows)
        for y in range(low, high, step):
            inputs = load_rows(
                x_source, y, phase_rows, left, right, x_row, step, dilation, -halo, tile_columns + halo, x_pixel
            )
            sums = accumulate_rows(
                sums, inputs, all_taps, taps + channel, channel_mask, channels, kernel_rows, kernel_columns, flip,
                tile_columns, step, halo, rows_above, rows_held, taps_in_registers,
            )  # fmt: skip
            for u in tl.static_range(step):
                r = y + u - rows_above
                pointers = out_target + tl.cast(r * dilation, tl.int64) * out_row
                inside = (r >= first_row) & (r < last_row)
                store_row(pointers, sums[u], right, inside, tile_columns, dilation * out_pixel, gelu)
            sums = sums[step:] + ((initial,) * tile_columns,) * step
        done = low + (high - low + step - 1) // step * step - rows_above
        for u in tl.static_range(rows_above):
            r = done + u
            pointers = out_target + tl.cast(r * dilation, tl.int64) * out_row
            inside = (r >= first_row) & (r < last_row)
            store_row(pointers, sums[u], right, inside, tile_columns, dilation * out_pixel, gelu)


@triton.jit
def accumulate_taps(
    sums, inputs, row, kernel_rows: tl.constexpr, kernel_columns: tl.constexpr, tile_columns: tl.constexpr,
    step: tl.constexpr, halo: tl.constexpr, above: tl.constexpr,
):  # fmt: skip
    """Add the products of ``step`` rows of x and the gradient row that lies ``above`` rows above the first of them."""
    for u in tl.static_range(step):
        if u + above + kernel_rows // 2 >= 0 and u + above + kernel_rows // 2 < kernel_rows:
            taps = correlate_row(sums[u + above + kernel_rows // 2], inputs[u], row, tile_columns, kernel_columns, halo)
            sums = replace_item(sums, u + above + kernel_rows // 2, taps)
    return sums


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def weight_gradient(
    x, gradient, partial, images, rows, columns, num_tiles, x_image, x_row, gradient_image, gradient_row,
    channels: tl.constexpr, x_pixel: tl.constexpr, gradient_pixel: tl.constexpr, kernel_rows: tl.constexpr,
    kernel_columns: tl.constexpr, dilation: tl.constexpr, tile_columns: tl.constexpr, step: tl.constexpr,
    halo: tl.constexpr, rows_above: tl.constexpr, rows_held: tl.constexpr, channel_block: tl.constexpr,
    image_block: tl.constexpr, is_even: tl.constexpr,
):  # fmt: skip
    """Sum over pixels the products of x and the gradient for each tap, and the gradient alone.

    Every tap keeps its sum in a register through all tiles of a program. ``step`` rows of x are held at a time; the
    rows of the gradient that they affect are loaded in turn, all but the newest from the L1 cache.
    """
    blocks: tl.constexpr = (channels + channel_block - 1) // channel_block
    lane = tl.arange(0, channel_block * image_block)
    channel = tl.program_id(0) % blocks * channel_block + lane % channel_block
    grad_bias = tl.full([channel_block * image_block], 0.0, tl.float32)
    sums = ((grad_bias,) * kernel_columns,) * kernel_rows
    for tile in range(tl.program_id(0) // blocks, num_tiles, tl.num_programs(0) // blocks):
        image_tile, row_phase, column_phase, phase_rows, _, _, first = locate_tile(
            tile, rows, columns, 1, tile_columns, dilation
        )
        image = image_tile * image_block + lane // channel_block
        lane_mask = lane >= 0 if is_even else (channel < channels) & (image < images)
        left, right = column_limits(lane_mask, first, column_phase, columns, dilation)
        column = column_phase + first * dilation
        x_source = row_pointers(x, image, row_phase, column, channel, x_image, x_row, x_pixel)
        gradient_source = row_pointers(
            gradient, image, row_phase, column, channel, gradient_image, gradient_row, gradient_pixel
        )
        for y in range(0, phase_rows, step):
            inputs = load_rows(
                x_source, y, phase_rows, left, right, x_row, step, dilation, -halo, tile_columns + halo, x_pixel
            )
            for b in tl.static_range(rows_held):
                r = y + b - rows_above
                pointers = gradient_source + tl.cast(r * dilation, tl.int64) * gradient_row
                inside = (r >= 0) & (r < phase_rows)
                row = load_row(pointers, left, right, inside, 0, tile_columns, dilation * gradient_pixel)
                sums = accumulate_taps(
                    sums, inputs, row, kernel_rows, kernel_columns, tile_columns, step, halo, rows_above - b
                )
                if b >= rows_above and b < rows_above + step:
                    for t in tl.static_range(tile_columns):
                        grad_bias = grad_bias + row[t]
    store_sums(
        partial, sums, grad_bias, tl.program_id(0) // blocks, lane, channel, kernel_rows, kernel_columns, channels,
        channel_block, image_block,
    )  # fmt: skip


@triton.jit
def gelu_backward_row(values, gradient, tile_columns: tl.constexpr):
    """Return the gradient of the input of GELU for a row: gradient times P(Z < v) + v exp(-v^2 / 2) / sqrt(2 pi)."""
    out = ()
    for t in tl.static_range(tile_columns):
        cdf, density = normal_cdf(values[t])
        out = out + (gradient[t] * tl.fma(values[t], density * 0.3989422804014327, cdf),)
    return out


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def gelu_gradient(
    x, gradient, taps, bias, out, partial, images, rows, columns, num_tiles, x_image, x_row, gradient_image,
    gradient_row, out_image, out_row, channels: tl.constexpr, x_pixel: tl.constexpr, gradient_pixel: tl.constexpr,
    out_pixel: tl.constexpr, kernel_rows: tl.constexpr, kernel_columns: tl.constexpr, tile_columns: tl.constexpr,
    halo: tl.constexpr, channel_block: tl.constexpr, image_block: tl.constexpr, is_even: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the input of GELU (out) and the sums of ``weight_gradient``, in one pass.

    A window of ``kernel_rows`` rows of x slides down in registers. It yields the convolution again, in the order of
    the forward pass, and the products for the taps.
    """
    half: tl.constexpr = kernel_rows // 2
    blocks: tl.constexpr = (channels + channel_block - 1) // channel_block
    lane = tl.arange(0, channel_block * image_block)
    channel = tl.program_id(0) % blocks * channel_block + lane % channel_block
    channel_mask = channel < channels
    zeros = tl.full([channel_block * image_block], 0.0, tl.float32)
    initial = zeros if bias is None else tl.load(bias + channel, mask=channel_mask, other=0.0).to(tl.float32)
    all_taps = ()
    for i in tl.static_range(kernel_rows):
        all_taps = all_taps + (
            load_taps(taps + channel, i, kernel_rows, kernel_columns, False, channels, channel_mask),
        )
    sums, grad_bias = ((zeros,) * kernel_columns,) * kernel_rows, zeros
    for tile in range(tl.program_id(0) // blocks, num_tiles, tl.num_programs(0) // blocks):
        image_tile, _, _, _, _, _, first = locate_tile(tile, rows, columns, 1, tile_columns, 1)
        image = image_tile * image_block + lane // channel_block
        lane_mask = lane >= 0 if is_even else channel_mask & (image < images)
        left, right = column_limits(lane_mask, first, 0, columns, 1)
        x_source = row_pointers(x, image, 0, first, channel, x_image, x_row, x_pixel)
        gradient_source = row_pointers(gradient, image, 0, first, channel, gradient_image, gradient_row, gradient_pixel)
        out_target = row_pointers(out, image, 0, first, channel, out_image, out_row, out_pixel)
        inputs = ((zeros,) * (tile_columns + 2 * halo),) * half + load_rows(
            x_source, 0, rows, left, right, x_row, half, 1, -halo, tile_columns + halo, x_pixel
        )
        for y in range(rows):
            inputs = inputs + load_rows(
                x_source, y + half, rows, left, right, x_row, 1, 1, -halo, tile_columns + halo, x_pixel
            )
            values = (initial,) * tile_columns
            for i in tl.static_range(kernel_rows):
                values = convolve_row(values, inputs[i], all_taps[i], tile_columns, kernel_columns, halo)
            pointers = gradient_source + tl.cast(y, tl.int64) * gradient_row
            row = load_row(pointers, left, right, y >= 0, 0, tile_columns, gradient_pixel)
            row = gelu_backward_row(values, row, tile_columns)
            store_row(out_target + tl.cast(y, tl.int64) * out_row, row, right, y >= 0, tile_columns, out_pixel, False)
            for i in tl.static_range(kernel_rows):
                row_sums = correlate_row(sums[i], inputs[i], row, tile_columns, kernel_columns, halo)
                sums = replace_item(sums, i, row_sums)
            for t in tl.static_range(tile_columns):
                grad_bias = grad_bias + row[t]
            inputs = inputs[1:]
    store_sums(
        partial, sums, grad_bias, tl.program_id(0) // blocks, lane, channel, kernel_rows, kernel_columns, channels,
        channel_block, image_block,
    )  # fmt: skip
