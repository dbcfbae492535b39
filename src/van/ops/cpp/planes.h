// Depth-wise convolution of one vector of channels within the caches, forward and weight gradient.
//
// A convolution with dilation d never mixes pixels whose rows or columns differ modulo d, so a feature map is stored
// as d x d phases (polyphase components), small planes on which the kernel is not dilated. Columns are zero-padded on
// both sides; kernel rows outside the map are skipped. A tile is T neighboring outputs of one row: every pixel is
// loaded once for all of them, and every weight of a kernel row stays in a register. On planes no wider than a tile
// (WHOLE) products with padding are omitted at compile time, and several rows are computed at once, because a CPU
// needs at least eight independent sums to fill its pipelines.

#pragma once

#include <vector>

#include "vectors.h"

namespace van {

// The phases of one map of `rows` x `columns` pixels, LANES channels each.
class Phases {
  public:
    const int64_t rows, columns, dilation, margin, height, pitch;

    Phases(int64_t rows, int64_t columns, int64_t dilation, int64_t margin)
        : rows(rows), columns(columns), dilation(dilation), margin(margin), height(ceil_div(rows, dilation)),
          pitch(ceil_div(columns, dilation) + 2 * margin + TILE),
          values_(dilation * dilation * height * pitch * LANES), offsets_(columns) {
        for (int64_t c = 0; c < columns; ++c)
            offsets_[c] = ((c % dilation) * height * pitch + margin + c / dilation) * LANES;
    }

    float* row(int64_t r) { return values_.begin() + ((r % dilation) * dilation * height + r / dilation) * pitch * LANES; }
    const int64_t* offsets() const { return offsets_.data(); }

    // One phase: its first margin column, its rows and its columns.
    const float* plane(int64_t row_phase, int64_t column_phase) {
        return values_.begin() + (row_phase * dilation + column_phase) * height * pitch * LANES;
    }
    int64_t plane_rows(int64_t phase) const { return ceil_div(rows - phase, dilation); }
    int64_t plane_columns(int64_t phase) const { return ceil_div(columns - phase, dilation); }
    int64_t row_phases() const { return min_of(dilation, rows); }
    int64_t column_phases() const { return min_of(dilation, columns); }

    template <typename Type>
    void load_image(const typename Type::Element* image, int64_t channels, int64_t lanes) {
        for (int64_t r = 0; r < rows; ++r) {
            const typename Type::Element* from = image + r * columns * channels;
            float* to = row(r);
            for (int64_t c = 0; c < columns; ++c) {
                __builtin_prefetch(from + c * channels + LANES, 0, 2);  // the next vector of channels
                store(load<Type>(from + c * channels, lanes), to + offsets_[c]);
            }
        }
    }

  private:
    Buffer values_;
    std::vector<int64_t> offsets_;
};

// The inputs of a tile: the plane it reads and the packed kernel.
struct Job {
    const float* plane;
    int64_t plane_rows, plane_columns, pitch, margin;
    int64_t row_phase, column_phase, dilation;
    int64_t kernel_rows, kernel_columns;
    const float* weight;
    Vector bias;
};

// Computes R x T outputs from (row, first) on, into `out` (R, T). K is the kernel width, or 0 if it is unknown
// at compile time.
template <int R, int T, int K, bool WHOLE>
void tile(const Job& job, int64_t row, int64_t first, float* out) {
    const int64_t width = K ? K : job.kernel_columns, half_rows = job.kernel_rows / 2, half = width / 2;
    const int64_t left = job.margin - half;  // the plane's column that the first tap of the first output reads
    Vector sums[R][T];
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) sums[r][t] = job.bias;
    const int64_t begin = row + R - 1 < half_rows ? half_rows - row - R + 1 : 0;
    const int64_t end = min_of(job.kernel_rows, job.plane_rows - row + half_rows);
    for (int64_t i = begin; i < end; ++i) {
        const float* taps = job.weight + i * width * LANES;
        if constexpr (K > 0) {
            Vector w[K > 0 ? K : 1];
#pragma GCC unroll 16
            for (int j = 0; j < K; ++j) w[j] = load(taps + j * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const int64_t from = row + r + i - half_rows;
                if (R > 1 && (from < 0 || from >= job.plane_rows)) continue;
                const float* line = job.plane + (from * job.pitch + left + first) * LANES;
#pragma GCC unroll 32
                for (int p = WHOLE ? K / 2 : 0; p < (WHOLE ? T + K / 2 : T + K - 1); ++p) {
                    const Vector pixel = load(line + p * LANES);
#pragma GCC unroll 16
                    for (int j = 0; j < K; ++j)
                        if (p - j >= 0 && p - j < T) sums[r][p - j] += pixel * w[j];
                }
            }
        } else {
            const int64_t reach = job.plane_columns - 1;
            for (int64_t j = half > reach ? half - reach : 0; j < min_of(width, half + reach + 1); ++j) {
                const Vector w = load(taps + j * LANES);
                for (int r = 0; r < R; ++r) {
                    const int64_t from = row + r + i - half_rows;
                    if (from < 0 || from >= job.plane_rows) continue;
                    const float* line = job.plane + (from * job.pitch + left + first + j) * LANES;
                    for (int t = 0; t < T; ++t) sums[r][t] += load(line + t * LANES) * w;
                }
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) store(sums[r][t], out + (r * T + t) * LANES);
}

// Destination of the outputs of one row of a phase: `count` vectors at columns column, column + step, ... of the map.
class Sink {
  public:
    virtual void put(int64_t row, int64_t column, int64_t step, int64_t count, const float* vectors) const = 0;

  protected:
    ~Sink() = default;
};

class PhaseSink final : public Sink {
  public:
    explicit PhaseSink(Phases& phases) : phases_(phases) {}
    void put(int64_t row, int64_t column, int64_t step, int64_t count, const float* vectors) const override {
        float* line = phases_.row(row);
        const int64_t* offsets = phases_.offsets() + column;
        for (int64_t t = 0; t < count; ++t) store(load(vectors + t * LANES), line + offsets[t * step]);
    }

  private:
    Phases& phases_;
};

// Convolves R rows of one plane from `row` on, tile by tile; the last tile of a row overlaps the previous one.
template <int R, int T, int K, bool WHOLE>
void convolve_rows(const Job& job, const Sink& sink, int64_t row) {
    alignas(64) float out[R * T * LANES];
    for (int64_t next = 0; next < job.plane_columns; next += T) {
        const int64_t first = WHOLE ? 0 : min_of(next, job.plane_columns - T);
        tile<R, T, K, WHOLE>(job, row, first, out);
        for (int r = 0; r < R; ++r)
            sink.put(job.row_phase + (row + r) * job.dilation, job.column_phase + first * job.dilation, job.dilation, T,
                     out + r * T * LANES);
    }
}

template <int T, int K, bool WHOLE>
void convolve_by(const Job& job, const Sink& sink) {
    constexpr int R = WHOLE ? (T >= 8 ? 1 : T == 1 ? 8 : (TILE + T - 1) / T) : 1;
    int64_t row = 0;
    for (; row + R <= job.plane_rows; row += R) convolve_rows<R, T, K, WHOLE>(job, sink, row);
    for (; row < job.plane_rows; ++row) convolve_rows<1, T, K, WHOLE>(job, sink, row);
}

// Adds gradient * pixel over one plane to the sums of the taps in kernel rows i to i + I - 1.
template <int I, int T, int K, bool WHOLE>
void correlate_rows(const Job& pixels, const float* gradients, int64_t gradient_margin, int64_t gradient_pitch, int64_t i,
                    float* totals) {
    constexpr int KEPT = K > 0 ? K : 1;
    const int64_t half_rows = pixels.kernel_rows / 2;
    Vector sums[I][KEPT];
    for (int a = 0; a < I; ++a)
        for (int j = 0; j < K; ++j) sums[a][j] = load(totals + ((i + a) * K + j) * LANES);
    for (int64_t row = 0; row < pixels.plane_rows; ++row) {
        const int64_t from = row + i - half_rows;
        if (from + I <= 0 || from >= pixels.plane_rows) continue;
        for (int64_t first = 0; first < pixels.plane_columns; first += T) {
            const float* grad_out = gradients + (row * gradient_pitch + gradient_margin + first) * LANES;
            Vector g[T];
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) g[t] = load(grad_out + t * LANES);
#pragma GCC unroll 4
            for (int a = 0; a < I; ++a) {
                if (from + a < 0 || from + a >= pixels.plane_rows) continue;
                const float* line = pixels.plane + ((from + a) * pixels.pitch + pixels.margin - K / 2 + first) * LANES;
#pragma GCC unroll 32
                for (int p = WHOLE ? K / 2 : 0; p < (WHOLE ? T + K / 2 : T + K - 1); ++p) {
                    const Vector pixel = load(line + p * LANES);
#pragma GCC unroll 16
                    for (int j = 0; j < K; ++j)
                        if (p - j >= 0 && p - j < T) sums[a][j] += pixel * g[p - j];
                }
            }
        }
    }
    for (int a = 0; a < I; ++a)
        for (int j = 0; j < K; ++j) store(sums[a][j], totals + ((i + a) * K + j) * LANES);
}

// The same for a kernel of any size, tap by tap.
inline void correlate_any(const Job& pixels, const float* gradients, int64_t gradient_margin, int64_t gradient_pitch,
                          int64_t i, float* totals) {
    const int64_t half_rows = pixels.kernel_rows / 2, half = pixels.kernel_columns / 2, reach = pixels.plane_columns - 1;
    for (int64_t j = half > reach ? half - reach : 0; j < min_of(pixels.kernel_columns, half + reach + 1); ++j) {
        Vector sums[4] = {};
        for (int64_t row = 0; row < pixels.plane_rows; ++row) {
            const int64_t from = row + i - half_rows;
            if (from < 0 || from >= pixels.plane_rows) continue;
            const float* line = pixels.plane + (from * pixels.pitch + pixels.margin - half + j) * LANES;
            const float* grad_out = gradients + (row * gradient_pitch + gradient_margin) * LANES;
            for (int64_t c = 0; c < pixels.plane_columns; ++c)
                sums[c % 4] += load(line + c * LANES) * load(grad_out + c * LANES);
        }
        float* total = totals + (i * pixels.kernel_columns + j) * LANES;
        store(load(total) + ((sums[0] + sums[1]) + (sums[2] + sums[3])), total);
    }
}

template <int T, int K, bool WHOLE>
void correlate_by(const Job& pixels, const float* gradients, int64_t gradient_margin, int64_t gradient_pitch,
                  float* totals) {
    constexpr int I = K == 3 ? 3 : 2;
    const int64_t half_rows = pixels.kernel_rows / 2, reach = pixels.plane_rows - 1;
    int64_t i = half_rows > reach ? half_rows - reach : 0;
    const int64_t end = min_of(pixels.kernel_rows, half_rows + reach + 1);
    if constexpr (K > 0) {
        for (; i + I <= end; i += I)
            correlate_rows<I, T, K, WHOLE>(pixels, gradients, gradient_margin, gradient_pitch, i, totals);
        for (; i < end; ++i)
            correlate_rows<1, T, K, WHOLE>(pixels, gradients, gradient_margin, gradient_pitch, i, totals);
    } else {
        for (; i < end; ++i) correlate_any(pixels, gradients, gradient_margin, gradient_pitch, i, totals);
    }
}

// Calls Work::run<T, K, WHOLE> with the tile width T that leaves the least padding at this plane width.
template <int K, typename Work>
void with_tile(int64_t columns, const Work& work) {
    const int64_t width = columns <= TILE ? columns : ceil_div(columns, ceil_div(columns, TILE));
    switch (columns <= TILE ? width : -width) {
        case 1: return work.template run<1, K, true>();
        case 2: return work.template run<2, K, true>();
        case 3: return work.template run<3, K, true>();
        case 4: return work.template run<4, K, true>();
        case 5: return work.template run<5, K, true>();
        case 6: return work.template run<6, K, true>();
#if defined(__AVX512F__)
        case 7: return work.template run<7, K, true>();
        case 8: return work.template run<8, K, true>();
        case 9: return work.template run<9, K, true>();
        case 10: return work.template run<10, K, true>();
        case -6: return work.template run<6, K, false>();
        case -7: return work.template run<7, K, false>();
        case -8: return work.template run<8, K, false>();
        case -9: return work.template run<9, K, false>();
        default: return work.template run<10, K, false>();
#else
        case -4: return work.template run<4, K, false>();
        case -5: return work.template run<5, K, false>();
        default: return work.template run<6, K, false>();
#endif
    }
}

template <typename Work>
void with_tile_and_kernel(int64_t columns, int64_t kernel_columns, const Work& work) {
    switch (kernel_columns) {
        case 3: return with_tile<3>(columns, work);
        case 5: return with_tile<5>(columns, work);
        case 7: return with_tile<7>(columns, work);
        default: return with_tile<0>(columns, work);
    }
}

struct Convolution {
    const Job& job;
    const Sink& sink;
    template <int T, int K, bool WHOLE>
    void run() const { convolve_by<T, K, WHOLE>(job, sink); }
};

struct Correlation {
    const Job& pixels;
    const float* gradients;
    int64_t gradient_margin, gradient_pitch;
    float* totals;
    template <int T, int K, bool WHOLE>
    void run() const { correlate_by<T, K, WHOLE>(pixels, gradients, gradient_margin, gradient_pitch, totals); }
};

inline Job make_job(Phases& from, int64_t row_phase, int64_t column_phase, const Kernel& kernel) {
    return Job{from.plane(row_phase, column_phase), from.plane_rows(row_phase), from.plane_columns(column_phase),
               from.pitch, from.margin, row_phase, column_phase, from.dilation, kernel.rows, kernel.columns, nullptr, {}};
}

// Convolves all phases with the packed kernel.
inline void convolve(Phases& from, const Kernel& kernel, const float* packed, Vector bias, const Sink& sink) {
    for (int64_t row_phase = 0; row_phase < from.row_phases(); ++row_phase)
        for (int64_t column_phase = 0; column_phase < from.column_phases(); ++column_phase) {
            Job job = make_job(from, row_phase, column_phase, kernel);
            job.weight = packed;
            job.bias = bias;
            with_tile_and_kernel(job.plane_columns, kernel.columns, Convolution{job, sink});
        }
}

// Adds the gradients of weight (taps, LANES) and bias (LANES) over one map. Both maps have the kernel's dilation.
inline void correlate(Phases& pixels, Phases& gradients, const Kernel& kernel, float* weight, float* bias) {
    Vector sum = load(bias);
    for (int64_t r = 0; r < pixels.rows; ++r) {
        const float* line = gradients.row(r);
        for (int64_t c = 0; c < pixels.columns; ++c) sum += load(line + gradients.offsets()[c]);
    }
    store(sum, bias);
    for (int64_t row_phase = 0; row_phase < pixels.row_phases(); ++row_phase)
        for (int64_t column_phase = 0; column_phase < pixels.column_phases(); ++column_phase) {
            const Job job = make_job(pixels, row_phase, column_phase, kernel);
            const Correlation work{job, gradients.plane(row_phase, column_phase), gradients.margin, gradients.pitch, weight};
            with_tile_and_kernel(job.plane_columns, kernel.columns, work);
        }
}

}  // namespace van
