// Depth-wise convolution, bias and exact GELU in one pass over memory, forward and gradients.
//
// gelu(v) = v·Φ(v), Φ the normal distribution. The tail Q(a) = Φ(-a) is exp(-a²/2) times a polynomial in
// 1 / (1 + 0.28·a), fitted by weighted least squares to scipy's erfcx; the error of a·Q(a) is at most 1.2e-8.
// The gradient Φ(v) + v·φ(v) needs the same exponential.

#pragma once

#include "depthwise.h"

namespace van {

// exp(y) for y <= 0; zero below -87, where it is less than 1.7e-38.
inline Vector exp_negative(Vector y) {
    const Vector shifter = Vector{} + 12582912.0f;  // 1.5·2^23: adding it rounds to an integer
    const Integers underflows = y < -87.0f;
    y = underflows ? Vector{} - 87.0f : y;
    const Vector whole = (y * 1.44269504f + shifter) - shifter;
    const Vector r = (y - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
    Vector e = r * 1.3888889e-3f + 8.3333333e-3f;
    e = e * r + 4.1666667e-2f;
    e = e * r + 0.16666667f;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    return (Vector)(((Integers)e + (__builtin_convertvector(whole, Integers) << 23)) & ~underflows);
}

struct Normal {
    Vector cdf, density;  // Φ(v) and exp(-v²/2)
};

inline Normal normal(Vector v) {
    const Vector a = (Vector)((Integers)v & 0x7fffffff);
    const Vector e = exp_negative(v * v * -0.5f), t = 1.0f / (a * 0.28f + 1.0f);
    Vector tail = t * -0.10632838f + 0.39206630f;
    tail = tail * t - 0.24066828f;
    tail = tail * t + 0.27197139f;
    tail = tail * t + 0.06622989f;
    tail = tail * t + 0.11672907f;
    tail = tail * t * e;
    return {v < 0.0f ? tail : 1.0f - tail, e};
}

inline Vector gelu(Vector v) { return v * normal(v).cdf; }

inline Vector gelu_derivative(Vector v) {
    const Normal n = normal(v);
    return n.cdf + v * n.density * 0.39894228f;
}

// Pointers to the 3 x (T + 2) input pixels of a tile of T outputs; pixels outside the image are zeros.
template <typename Element, int T>
struct Window {
    const Element* at[3][T + 2];

    Window(const Element* image, const Element* zeros, const Images& shape, int64_t row, int64_t first) {
        for (int i = 0; i < 3; ++i)
            for (int p = 0; p < T + 2; ++p) {
                const int64_t r = row + i - 1, c = first + p - 1;
                const bool inside = r >= 0 && r < shape.rows && c >= 0 && c < shape.columns;
                at[i][p] = inside ? image + (r * shape.columns + c) * shape.channels : zeros;
            }
    }
};

// A local copy of the input pixels of a tile: pixels at power-of-two strides evict each other from the L1 cache.
template <int T>
using WindowPixels = Vector[3][T + 2];

template <typename Type, int T, typename Lanes>
inline void convolve_window(const Window<typename Type::Element, T>& window, int64_t channel, Lanes lanes,
                            const float* weight, Vector (&sums)[T], WindowPixels<T>* pixels = nullptr) {
    for (int i = 0; i < 3; ++i) {
        const Vector w[3] = {load(weight + i * 3 * LANES), load(weight + (i * 3 + 1) * LANES),
                             load(weight + (i * 3 + 2) * LANES)};
#pragma GCC unroll 16
        for (int p = 0; p < T + 2; ++p) {
            const Vector pixel = load<Type>(window.at[i][p] + channel, lanes);
            if (pixels) (*pixels)[i][p] = pixel;
#pragma GCC unroll 4
            for (int j = 0; j < 3; ++j)
                if (p - j >= 0 && p - j < T) sums[p - j] += pixel * w[j];
        }
    }
}

// Prefetches T pixels of a later row for reading or writing; the hardware prefetcher does not track so many streams.
template <int T, bool WRITE, typename Element>
inline void prefetch_rows(const Element* from, int64_t channels) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) __builtin_prefetch(from + t * channels, WRITE, 2);
}

template <typename Type, int T, typename Element = typename Type::Element>
void gelu_row(const Images& shape, const float* packed, const Element* zeros, const Element* x, Element* y,
              int64_t row) {
    for (int64_t next = 0; next < shape.columns; next += T) {
        const int64_t first = shape.columns < T ? 0 : min_of(next, shape.columns - T), count = min_of(T, shape.columns);
        const Window<Element, T> window(x, zeros, shape, row, first);
        Element* to = y + (row * shape.columns + first) * shape.channels;
        const int64_t pitch = shape.columns * shape.channels;
        const Element* ahead = x + (row + 2) * pitch + first * shape.channels;
        for (int64_t block = 0; block < shape.blocks(); ++block)
            with_lanes(shape.lanes(block), [&](auto lanes) {
                const int64_t channel = block * LANES;
                const float* weight = packed + block * 10 * LANES;
                if (row + 2 < shape.rows) {
                    prefetch_rows<T, false>(ahead + channel, shape.channels);
                    prefetch_rows<T, true>(to + pitch + channel, shape.channels);
                }
                Vector sums[T];
                for (int t = 0; t < T; ++t) sums[t] = load(weight + 9 * LANES);
                convolve_window<Type, T>(window, channel, lanes, weight, sums);
                for (int t = 0; t < T; ++t) sums[t] = gelu(sums[t]);
                for (int t = 0; t < T; ++t)
                    if (t < count) store<Type>(sums[t], to + t * shape.channels + channel, lanes);
            });
    }
}

// The gradients of some rows of one image in some of its channels, row by row. The gradients before GELU of the
// last three rows stand in `ring` (3, columns + 2 + T, room + 1, LANES), zero beyond the row.
template <typename Type, int T, typename Element = typename Type::Element>
struct GeluGradients {
    const Images& shape;
    const Element *zeros, *x, *gradient;
    Element* grad_x;
    float *ring, *sums;  // sums: (width, 9 + 1, LANES), the bias last
    int64_t capacity, block, width;  // capacity in vectors of channels; this task computes [block, block + width)

    float* ring_at(int64_t row, int64_t column) const {
        return ring + (((row + 3) % 3) * (shape.columns + 2 + T) + column + 1) * (capacity + 1) * LANES;
    }

    // Computes the gradient of the input of GELU for one row; adds it to the sums if `accumulate`, that is unless the
    // row belongs to a neighboring strip.
    void compute_preactivation_gradient(int64_t row, const float* packed, bool accumulate) const {
        for (int64_t first = 0; first < shape.columns; first += T) {
            const Window<Element, T> window(x, zeros, shape, row, first);
            const Element* grad_out = gradient + (row * shape.columns + first) * shape.channels;
            const int64_t pitch = shape.columns * shape.channels;
            const int64_t count = min_of(T, shape.columns - first);
            for (int64_t k = 0; k < width; ++k)
                with_lanes(shape.lanes(block + k), [&](auto lanes) {
                    const int64_t channel = (block + k) * LANES;
                    const float* weight = packed + (block + k) * 10 * LANES;
                    float* sum = sums + k * 10 * LANES;
                    if (row + 2 < shape.rows) {
                        prefetch_rows<T, false>(x + (row + 2) * pitch + first * shape.channels + channel,
                                                shape.channels);
                        prefetch_rows<T, false>(grad_out + pitch + channel, shape.channels);
                        prefetch_rows<T, true>(grad_x + row * pitch + first * shape.channels + channel,
                                               shape.channels);
                    }
                    Vector values[T], bias = load(sum + 9 * LANES);
                    for (int t = 0; t < T; ++t) values[t] = load(weight + 9 * LANES);
                    WindowPixels<T> pixels;
                    convolve_window<Type, T>(window, channel, lanes, weight, values, &pixels);
                    for (int t = 0; t < T; ++t) {
                        const Element* from = t < count ? grad_out + t * shape.channels : zeros;
                        values[t] = gelu_derivative(values[t]) * load<Type>(from + channel, lanes);
                        bias += values[t];
                        if (t < count) store(values[t], ring_at(row, first + t) + k * LANES);
                    }
                    if (!accumulate) return;
                    store(bias, sum + 9 * LANES);
                    correlate_window(pixels, values, sum);
                });
        }
    }

    static void correlate_window(const WindowPixels<T>& pixels, const Vector (&values)[T], float* sums) {
        for (int i = 0; i < 3; ++i) {
            Vector total[3] = {load(sums + i * 3 * LANES), load(sums + (i * 3 + 1) * LANES),
                               load(sums + (i * 3 + 2) * LANES)};
#pragma GCC unroll 16
            for (int p = 0; p < T + 2; ++p) {
                const Vector pixel = pixels[i][p];
#pragma GCC unroll 4
                for (int j = 0; j < 3; ++j)
                    if (p - j >= 0 && p - j < T) total[j] += pixel * values[p - j];
            }
            for (int j = 0; j < 3; ++j) store(total[j], sums + (i * 3 + j) * LANES);
        }
    }

    void compute_input_gradient(int64_t row, const float* flipped) const {
        Element* to = grad_x + row * shape.columns * shape.channels;
        for (int64_t next = 0; next < shape.columns; next += T) {
            const int64_t first = shape.columns < T ? 0 : min_of(next, shape.columns - T);
            const int64_t count = min_of(T, shape.columns);
            for (int64_t k = 0; k < width; ++k)
                with_lanes(shape.lanes(block + k), [&](auto lanes) {
                    const int64_t channel = (block + k) * LANES;
                    Vector sums[T] = {};
                    for (int i = 0; i < 3; ++i) {
                        if (row + i - 1 < 0 || row + i - 1 >= shape.rows) continue;
                        const float* line = ring_at(row + i - 1, first - 1) + k * LANES;
                        const float* weight = flipped + ((block + k) * 10 + i * 3) * LANES;
                        const Vector w[3] = {load(weight), load(weight + LANES), load(weight + 2 * LANES)};
#pragma GCC unroll 16
                        for (int p = 0; p < T + 2; ++p) {
                            const Vector pixel = load(line + p * (capacity + 1) * LANES);
#pragma GCC unroll 4
                            for (int j = 0; j < 3; ++j)
                                if (p - j >= 0 && p - j < T) sums[p - j] += pixel * w[j];
                        }
                    }
                    for (int t = 0; t < T; ++t)
                        if (t < count) store<Type>(sums[t], to + (first + t) * shape.channels + channel, lanes);
                });
        }
    }

    // Processes rows [begin, end); the gradient of the input of GELU needs one more row on each side.
    void run(int64_t begin, int64_t end, const float* packed, const float* flipped) const {
        for (int64_t row = begin - 1; row <= end; ++row) {
            if (row >= 0 && row < shape.rows) compute_preactivation_gradient(row, packed, row >= begin && row < end);
            if (row > begin) compute_input_gradient(row - 1, flipped);
        }
    }
};

template <typename Type, int T, typename Element = typename Type::Element>
void gelu_forward_by(const Images& shape, const Kernel& kernel, const Element* x, Element* y) {
    PackedKernel packed(kernel, shape, false);
    Buffer zeros(shape.channels + LANES);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < shape.count; ++n)
        for (int64_t row = 0; row < shape.rows; ++row)
            gelu_row<Type, T>(shape, packed.weight(0), (const Element*)zeros.begin(), x + n * shape.size(),
                              y + n * shape.size(), row);
}

// Most vectors of channels whose rows fit into the L2 cache.
constexpr int64_t MAX_SLICE_BLOCKS = 16;

// The rows of all images are split into strips, and if there are few strips also the channels into slices. The split
// depends only on the shape, so the order of the sums does not depend on the number of threads.
template <typename Type, int T, typename Element = typename Type::Element>
void gelu_backward_by(const Images& shape, const Kernel& kernel, const Element* gradient, const Element* x,
                      Element* grad_x, float* grad_weight, float* grad_bias) {
    const int64_t lines = shape.count * shape.rows, strips = min_of(8, ceil_div(lines, 8));
    const int64_t width = min_of(MAX_SLICE_BLOCKS, ceil_div(shape.blocks(), ceil_div(8, strips > 0 ? strips : 1)));
    const int64_t slices = ceil_div(shape.blocks(), width);
    PackedKernel packed(kernel, shape, false), flipped(kernel, shape, true);
    Buffer zeros(shape.channels + LANES);
    GradientSums sums(kernel, strips, slices * width);
#pragma omp parallel
    {
        Buffer ring(3 * (shape.columns + 2 + T) * (width + 1) * LANES);
#pragma omp for collapse(2) schedule(static)
        for (int64_t slice = 0; slice < slices; ++slice)
            for (int64_t strip = 0; strip < strips; ++strip) {
                const int64_t block = slice * width, last = lines * (strip + 1) / strips;
                for (int64_t line = lines * strip / strips; line < last;) {
                    const int64_t n = line / shape.rows, begin = line % shape.rows;
                    const int64_t end = min_of(shape.rows, begin + last - line), offset = n * shape.size();
                    const GeluGradients<Type, T> work{
                        shape, (const Element*)zeros.begin(), x + offset, gradient + offset, grad_x + offset, ring.begin(),
                        sums.weight(strip, block), width, block, min_of(width, shape.blocks() - block)};
                    work.run(begin, end, packed.weight(0), flipped.weight(0));
                    line += end - begin;
                }
            }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < shape.blocks(); ++block)
            sums.write(block, shape.lanes(block), grad_weight, grad_bias);
    }
}

}  // namespace van
