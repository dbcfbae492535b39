// Depth-wise convolution, bias and exact GELU in one pass over memory, forward and gradients.
//
// gelu(v) = v·Φ(v), Φ the normal distribution. The tail Q(a) = Φ(-a) is exp(-a²/2) times a polynomial in
// 1 / (1 + 0.28·a), fitted by weighted least squares to scipy's erfcx; a·Q(a) is right to 1.2e-8. The gradient
// Φ(v) + v·φ(v) needs the same exponential.

#pragma once

#include "depthwise.h"

namespace van {

// exp(y) for y <= 0; nothing below -87, where it is less than 1.7e-38.
inline Vector exp_negative(Vector y) {
    const Vector shifter = Vector{} + 12582912.0f;  // 1.5·2^23: adding it rounds to a whole number
    const Integers vanishes = y < -87.0f;
    y = vanishes ? Vector{} - 87.0f : y;
    const Vector whole = (y * 1.44269504f + shifter) - shifter;
    const Vector r = (y - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
    Vector e = r * 1.3888889e-3f + 8.3333333e-3f;
    e = e * r + 4.1666667e-2f;
    e = e * r + 0.16666667f;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    return (Vector)(((Integers)e + (__builtin_convertvector(whole, Integers) << 23)) & ~vanishes);
}

struct Normal {
    Vector below, density;  // Φ(v) and exp(-v²/2)
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

inline Vector gelu(Vector v) { return v * normal(v).below; }

inline Vector gelu_slope(Vector v) {
    const Normal n = normal(v);
    return n.below + v * n.density * 0.39894228f;
}

// A pixel's neighbours as a tile of T outputs reads them: rows above and below, T + 2 columns; zeros outside.
template <typename Element, int T>
struct Window {
    const Element* at[3][T + 2];

    Window(const Element* picture, const Element* zeros, const Pictures& shape, int64_t row, int64_t first) {
        for (int i = 0; i < 3; ++i)
            for (int p = 0; p < T + 2; ++p) {
                const int64_t r = row + i - 1, c = first + p - 1;
                const bool inside = r >= 0 && r < shape.rows && c >= 0 && c < shape.columns;
                at[i][p] = inside ? picture + (r * shape.columns + c) * shape.channels : zeros;
            }
    }
};

// What a tile has read, kept near: pixels that lie a power of two apart drive each other out of the nearest cache.
template <int T>
using Seen = Vector[3][T + 2];

template <typename Type, int T, typename Lanes>
inline void convolve_window(const Window<typename Type::Element, T>& window, int64_t channel, Lanes lanes,
                            const float* weight, Vector (&sums)[T], Seen<T>* seen = nullptr) {
    for (int i = 0; i < 3; ++i) {
        const Vector w[3] = {load(weight + i * 3 * LANES), load(weight + (i * 3 + 1) * LANES),
                             load(weight + (i * 3 + 2) * LANES)};
#pragma GCC unroll 16
        for (int p = 0; p < T + 2; ++p) {
            const Vector pixel = load<Type>(window.at[i][p] + channel, lanes);
            if (seen) (*seen)[i][p] = pixel;
#pragma GCC unroll 4
            for (int j = 0; j < 3; ++j)
                if (p - j >= 0 && p - j < T) sums[p - j] += pixel * w[j];
        }
    }
}

// Brings T pixels nearer that will be read, or written, a row later: the processor itself does not foresee the
// pattern of so many streams.
template <int T, bool WRITE, typename Element>
inline void fetch_ahead(const Element* from, int64_t channels) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) __builtin_prefetch(from + t * channels, WRITE, 2);
}

template <typename Type, int T, typename Element = typename Type::Element>
void gelu_row(const Pictures& shape, const float* packed, const Element* zeros, const Element* x, Element* y,
              int64_t row) {
    for (int64_t next = 0; next < shape.columns; next += T) {
        const int64_t first = shape.columns < T ? 0 : least(next, shape.columns - T), count = least(T, shape.columns);
        const Window<Element, T> window(x, zeros, shape, row, first);
        Element* to = y + (row * shape.columns + first) * shape.channels;
        const int64_t pitch = shape.columns * shape.channels;
        const Element* ahead = x + (row + 2) * pitch + first * shape.channels;
        for (int64_t block = 0; block < shape.blocks(); ++block)
            with_lanes(shape.lanes(block), [&](auto lanes) {
                const int64_t channel = block * LANES;
                const float* weight = packed + block * 10 * LANES;
                if (row + 2 < shape.rows) {
                    fetch_ahead<T, false>(ahead + channel, shape.channels);
                    fetch_ahead<T, true>(to + pitch + channel, shape.channels);
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

// The gradients of some rows of one picture in some of its channels, row by row. The gradients before GELU of the
// last three rows stand in `ring` (3, columns + 2 + T, room + 1, LANES), zero beyond the row.
template <typename Type, int T, typename Element = typename Type::Element>
struct GeluGradients {
    const Pictures& shape;
    const Element *zeros, *x, *gradient;
    Element* of_x;
    float *ring, *sums;  // sums: (width, 9 + 1, LANES), the bias last
    int64_t room, block, width;  // room for so many vectors of channels, and those computed: [block, block + width)

    float* ring_at(int64_t row, int64_t column) const {
        return ring + (((row + 3) % 3) * (shape.columns + 2 + T) + column + 1) * (room + 1) * LANES;
    }

    // The gradient before GELU of one row; `counted` if it belongs to these sums and not to a neighbour's.
    void before_gelu(int64_t row, const float* packed, bool counted) const {
        for (int64_t first = 0; first < shape.columns; first += T) {
            const Window<Element, T> window(x, zeros, shape, row, first);
            const Element* given = gradient + (row * shape.columns + first) * shape.channels;
            const int64_t pitch = shape.columns * shape.channels;
            const int64_t count = least(T, shape.columns - first);
            for (int64_t k = 0; k < width; ++k)
                with_lanes(shape.lanes(block + k), [&](auto lanes) {
                    const int64_t channel = (block + k) * LANES;
                    const float* weight = packed + (block + k) * 10 * LANES;
                    float* sum = sums + k * 10 * LANES;
                    if (row + 2 < shape.rows) {
                        fetch_ahead<T, false>(x + (row + 2) * pitch + first * shape.channels + channel, shape.channels);
                        fetch_ahead<T, false>(given + pitch + channel, shape.channels);
                        fetch_ahead<T, true>(of_x + row * pitch + first * shape.channels + channel, shape.channels);
                    }
                    Vector before[T], bias = load(sum + 9 * LANES);
                    for (int t = 0; t < T; ++t) before[t] = load(weight + 9 * LANES);
                    Seen<T> seen;
                    convolve_window<Type, T>(window, channel, lanes, weight, before, &seen);
                    for (int t = 0; t < T; ++t) {
                        const Element* from = t < count ? given + t * shape.channels : zeros;
                        before[t] = gelu_slope(before[t]) * load<Type>(from + channel, lanes);
                        bias += before[t];
                        if (t < count) store(before[t], ring_at(row, first + t) + k * LANES);
                    }
                    if (!counted) return;
                    store(bias, sum + 9 * LANES);
                    correlate_window(seen, before, sum);
                });
        }
    }

    static void correlate_window(const Seen<T>& seen, const Vector (&before)[T], float* sums) {
        for (int i = 0; i < 3; ++i) {
            Vector total[3] = {load(sums + i * 3 * LANES), load(sums + (i * 3 + 1) * LANES),
                               load(sums + (i * 3 + 2) * LANES)};
#pragma GCC unroll 16
            for (int p = 0; p < T + 2; ++p) {
                const Vector pixel = seen[i][p];
#pragma GCC unroll 4
                for (int j = 0; j < 3; ++j)
                    if (p - j >= 0 && p - j < T) total[j] += pixel * before[p - j];
            }
            for (int j = 0; j < 3; ++j) store(total[j], sums + (i * 3 + j) * LANES);
        }
    }

    void of_input(int64_t row, const float* turned) const {
        Element* to = of_x + row * shape.columns * shape.channels;
        for (int64_t next = 0; next < shape.columns; next += T) {
            const int64_t first = shape.columns < T ? 0 : least(next, shape.columns - T), count = least(T, shape.columns);
            for (int64_t k = 0; k < width; ++k)
                with_lanes(shape.lanes(block + k), [&](auto lanes) {
                    const int64_t channel = (block + k) * LANES;
                    Vector sums[T] = {};
                    for (int i = 0; i < 3; ++i) {
                        if (row + i - 1 < 0 || row + i - 1 >= shape.rows) continue;
                        const float* line = ring_at(row + i - 1, first - 1) + k * LANES;
                        const float* weight = turned + ((block + k) * 10 + i * 3) * LANES;
                        const Vector w[3] = {load(weight), load(weight + LANES), load(weight + 2 * LANES)};
#pragma GCC unroll 16
                        for (int p = 0; p < T + 2; ++p) {
                            const Vector pixel = load(line + p * (room + 1) * LANES);
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

    // Rows [begin, end), with one more on each side before GELU.
    void run(int64_t begin, int64_t end, const float* packed, const float* turned) const {
        for (int64_t row = begin - 1; row <= end; ++row) {
            if (row >= 0 && row < shape.rows) before_gelu(row, packed, row >= begin && row < end);
            if (row > begin) of_input(row - 1, turned);
        }
    }
};

template <typename Type, int T, typename Element = typename Type::Element>
void gelu_forward_by(const Pictures& shape, const Kernel& kernel, const Element* x, Element* y) {
    Packed packed(kernel, shape, false);
    Buffer zeros(shape.channels + LANES);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < shape.count; ++n)
        for (int64_t row = 0; row < shape.rows; ++row)
            gelu_row<Type, T>(shape, packed.weight(0), (const Element*)zeros.begin(), x + n * shape.size(),
                              y + n * shape.size(), row);
}

// Vectors of channels whose rows fit the second cache.
constexpr int64_t WIDEST_PART = 16;

// All rows of all pictures fall into strips, and few strips into parts of the channels, by the shape alone: the
// sums are then made in the same order by any number of threads.
template <typename Type, int T, typename Element = typename Type::Element>
void gelu_backward_by(const Pictures& shape, const Kernel& kernel, const Element* gradient, const Element* x,
                      Element* of_x, float* of_weight, float* of_bias) {
    const int64_t lines = shape.count * shape.rows, strips = least(8, ceil_div(lines, 8));
    const int64_t width = least(WIDEST_PART, ceil_div(shape.blocks(), ceil_div(8, strips > 0 ? strips : 1)));
    const int64_t parts = ceil_div(shape.blocks(), width);
    Packed packed(kernel, shape, false), turned(kernel, shape, true);
    Buffer zeros(shape.channels + LANES);
    Sums sums(kernel, strips, parts * width);
#pragma omp parallel
    {
        Buffer ring(3 * (shape.columns + 2 + T) * (width + 1) * LANES);
#pragma omp for collapse(2) schedule(static)
        for (int64_t part = 0; part < parts; ++part)
            for (int64_t strip = 0; strip < strips; ++strip) {
                const int64_t block = part * width, last = lines * (strip + 1) / strips;
                for (int64_t line = lines * strip / strips; line < last;) {
                    const int64_t n = line / shape.rows, begin = line % shape.rows;
                    const int64_t end = least(shape.rows, begin + last - line), place = n * shape.size();
                    const GeluGradients<Type, T> work{shape, (const Element*)zeros.begin(), x + place, gradient + place,
                                                      of_x + place, ring.begin(), sums.weight(strip, block), width, block,
                                                      least(width, shape.blocks() - block)};
                    work.run(begin, end, packed.weight(0), turned.weight(0));
                    line += end - begin;
                }
            }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < shape.blocks(); ++block)
            sums.write(block, shape.lanes(block), of_weight, of_bias);
    }
}

}  // namespace van
