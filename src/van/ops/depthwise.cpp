// Depth-wise convolution with dilation in channels_last, forward and weight gradient, float32.
//
// Layout: pictures (N, H, W, C); weights (KH * KW, C), tap-major; bias (C) or null.
// A vector holds 16 channels of one pixel. A convolution dilated by d never mixes pixels whose rows or
// columns differ modulo d, so each task takes one such phase of 16 channels, copies it into a small plane
// that stays in the nearest cache, with zeros to the left and right, and convolves that without dilation.
// A tile is up to 8 neighbouring outputs: every pixel is loaded once for all of them. Kernel rows above
// and below the picture are skipped. Plain C interface: no PyTorch header, so no ABI to break.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t TILE = 8;
constexpr int64_t WIDEST = 64;
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

struct Shape {
    int64_t pictures, rows, columns, channels, kernel_rows, kernel_columns, dilation;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Vector load(const float* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// The pixels of one phase of 16 channels: row r, column c of the plane is pixel (row_phase + r * d,
// column_phase + c * d) of the picture. Zeros fill `before` columns, the lanes past the last channel, and
// the columns up to `pitch`.
struct Plane {
    int64_t rows, columns, before, pitch;
    std::vector<float> values;

    Plane(const Shape& s, int64_t zeros_before, int64_t row_pitch)
        : rows(0), columns(0), before(zeros_before), pitch(row_pitch),
          values(ceil_div(s.rows, s.dilation) * row_pitch * LANES) {}

    void fill(const Shape& s, const float* picture, int64_t row_phase, int64_t column_phase, int64_t lanes) {
        rows = ceil_div(s.rows - row_phase, s.dilation);
        columns = ceil_div(s.columns - column_phase, s.dilation);
        std::memset(values.data(), 0, rows * pitch * LANES * sizeof(float));
        for (int64_t r = 0; r < rows; ++r) {
            const float* from = picture + ((row_phase + r * s.dilation) * s.columns + column_phase) * s.channels;
            float* to = values.data() + (r * pitch + before) * LANES;
            if (lanes == LANES)
                for (int64_t c = 0; c < columns; ++c)
                    std::memcpy(to + c * LANES, from + c * s.dilation * s.channels, LANES * sizeof(float));
            else
                for (int64_t c = 0; c < columns; ++c)
                    std::memcpy(to + c * LANES, from + c * s.dilation * s.channels, lanes * sizeof(float));
        }
    }

    const float* at(int64_t row, int64_t column) const { return values.data() + (row * pitch + column) * LANES; }
};

// T outputs of one row, from output column `first` on; K is the kernel's width, or 0 if known only at run time.
template <int T, int K>
inline void tile(const Shape& s, const Plane& plane, const float* weight, Vector bias, float* y, int64_t step,
                 int64_t row, int64_t first, int64_t lanes) {
    const int64_t width = K ? K : s.kernel_columns, half = s.kernel_rows / 2;
    Vector sums[T];
    for (int t = 0; t < T; ++t) sums[t] = bias;
    for (int64_t i = 0; i < s.kernel_rows; ++i) {
        const int64_t from = row + i - half;
        if (from < 0 || from >= plane.rows) continue;
        const float* line = plane.at(from, first);
        const float* taps = weight + i * width * LANES;
        if (K) {
            Vector w[K ? K : 1];
#pragma GCC unroll 16
            for (int j = 0; j < K; ++j) w[j] = load(taps + j * LANES);
#pragma GCC unroll 32
            for (int p = 0; p < T + K - 1; ++p) {
                const Vector pixel = load(line + p * LANES);
#pragma GCC unroll 16
                for (int j = 0; j < K; ++j)
                    if (p - j >= 0 && p - j < T) sums[p - j] += pixel * w[j];
            }
        } else {
            for (int64_t j = 0; j < width; ++j) {
                const Vector w = load(taps + j * LANES);
                for (int t = 0; t < T; ++t) sums[t] += load(line + (t + j) * LANES) * w;
            }
        }
    }
    for (int t = 0; t < T; ++t) std::memcpy(y + t * step, &sums[t], lanes * sizeof(float));
}

template <int K>
void convolve(const Shape& s, const Plane& plane, const float* weight, Vector bias, float* y, int64_t row_phase,
              int64_t column_phase, int64_t lanes) {
    const int64_t step = s.dilation * s.channels;
    for (int64_t row = 0; row < plane.rows; ++row) {
        float* to = y + ((row_phase + row * s.dilation) * s.columns + column_phase) * s.channels;
        int64_t first = 0;
        for (; first + TILE <= plane.columns; first += TILE)
            tile<TILE, K>(s, plane, weight, bias, to + first * step, step, row, first, lanes);
        float* rest = to + first * step;
        switch (plane.columns - first) {
            case 7: tile<7, K>(s, plane, weight, bias, rest, step, row, first, lanes); break;
            case 6: tile<6, K>(s, plane, weight, bias, rest, step, row, first, lanes); break;
            case 5: tile<5, K>(s, plane, weight, bias, rest, step, row, first, lanes); break;
            case 4: tile<4, K>(s, plane, weight, bias, rest, step, row, first, lanes); break;
            case 3: tile<3, K>(s, plane, weight, bias, rest, step, row, first, lanes); break;
            case 2: tile<2, K>(s, plane, weight, bias, rest, step, row, first, lanes); break;
            case 1: tile<1, K>(s, plane, weight, bias, rest, step, row, first, lanes); break;
        }
    }
}

template <int K>
void forward(const Shape& s, const float* x, const float* weight, const float* bias, float* y) {
    const int64_t blocks = ceil_div(s.channels, LANES), size = s.rows * s.columns * s.channels;
    const int64_t taps = s.kernel_rows * s.kernel_columns;
    const int64_t row_phases = s.dilation < s.rows ? s.dilation : s.rows;
    const int64_t column_phases = s.dilation < s.columns ? s.dilation : s.columns;
#pragma omp parallel
    {
        const int64_t half = s.kernel_columns / 2;
        Plane plane(s, half, ceil_div(s.columns, s.dilation) + s.kernel_columns - 1);
        std::vector<float> packed(taps * LANES);
#pragma omp for collapse(3) schedule(static)
        for (int64_t n = 0; n < s.pictures; ++n)
            for (int64_t block = 0; block < blocks; ++block)
                for (int64_t row_phase = 0; row_phase < row_phases; ++row_phase) {
                    const int64_t c = block * LANES, lanes = s.channels - c < LANES ? s.channels - c : LANES;
                    for (int64_t tap = 0; tap < taps; ++tap)
                        std::memcpy(&packed[tap * LANES], weight + tap * s.channels + c, lanes * sizeof(float));
                    Vector start = {};
                    if (bias) std::memcpy(&start, bias + c, lanes * sizeof(float));
                    for (int64_t column_phase = 0; column_phase < column_phases; ++column_phase) {
                        plane.fill(s, x + n * size + c, row_phase, column_phase, lanes);
                        convolve<K>(s, plane, packed.data(), start, y + n * size + c, row_phase, column_phase, lanes);
                    }
                }
    }
}

// Adds gradient * pixel over one phase to the sums of each tap; both planes are zero past their columns.
template <int K>
void correlate(const Shape& s, const Plane& pixels, const Plane& gradients, Vector* totals) {
    const int64_t width = K ? K : s.kernel_columns, half = s.kernel_rows / 2;
    for (int64_t i = 0; i < s.kernel_rows; ++i) {
        Vector sums[K ? K : WIDEST] = {};
        for (int64_t row = 0; row < gradients.rows; ++row) {
            const int64_t from = row + i - half;
            if (from < 0 || from >= pixels.rows) continue;
            for (int64_t first = 0; first < gradients.columns; first += TILE) {
                const float *line = pixels.at(from, first), *given = gradients.at(row, first);
                if (K) {
                    Vector g[TILE];
#pragma GCC unroll 16
                    for (int t = 0; t < TILE; ++t) g[t] = load(given + t * LANES);
#pragma GCC unroll 32
                    for (int p = 0; p < TILE + K - 1; ++p) {
                        const Vector pixel = load(line + p * LANES);
#pragma GCC unroll 16
                        for (int j = 0; j < K; ++j)
                            if (p - j >= 0 && p - j < TILE) sums[j] += pixel * g[p - j];
                    }
                } else {
                    for (int64_t j = 0; j < width; ++j)
                        for (int64_t t = 0; t < TILE; ++t) sums[j] += load(line + (t + j) * LANES) * load(given + t * LANES);
                }
            }
        }
        for (int64_t j = 0; j < width; ++j) totals[i * width + j] += sums[j];
    }
}

template <int K>
void weight_gradient(const Shape& s, const float* x, const float* gradient, float* weights, float* biases,
                     int64_t groups) {
    const int64_t blocks = ceil_div(s.channels, LANES), size = s.rows * s.columns * s.channels;
    const int64_t taps = s.kernel_rows * s.kernel_columns;
#pragma omp parallel
    {
        const int64_t tiled = ceil_div(ceil_div(s.columns, s.dilation), TILE) * TILE;
        Plane pixels(s, s.kernel_columns / 2, tiled + s.kernel_columns - 1), gradients(s, 0, tiled);
        std::vector<Vector> totals(taps + 1);
#pragma omp for collapse(2) schedule(static)
        for (int64_t group = 0; group < groups; ++group)
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t c = block * LANES, lanes = s.channels - c < LANES ? s.channels - c : LANES;
                for (Vector& total : totals) total = Vector{};
                for (int64_t n = s.pictures * group / groups; n < s.pictures * (group + 1) / groups; ++n)
                    for (int64_t row_phase = 0; row_phase < s.dilation && row_phase < s.rows; ++row_phase)
                        for (int64_t phase = 0; phase < s.dilation && phase < s.columns; ++phase) {
                            pixels.fill(s, x + n * size + c, row_phase, phase, lanes);
                            gradients.fill(s, gradient + n * size + c, row_phase, phase, lanes);
                            correlate<K>(s, pixels, gradients, totals.data());
                            for (int64_t p = 0; p < gradients.rows * gradients.pitch; ++p)
                                totals[taps] += load(gradients.values.data() + p * LANES);
                        }
                for (int64_t tap = 0; tap < taps; ++tap)
                    std::memcpy(weights + (group * taps + tap) * s.channels + c, &totals[tap], lanes * sizeof(float));
                std::memcpy(biases + group * s.channels + c, &totals[taps], lanes * sizeof(float));
            }
    }
}

Shape shape_of(const int64_t* numbers) {
    Shape s;
    std::memcpy(&s, numbers, sizeof s);
    return s;
}

}  // namespace

extern "C" {

// shape: the seven numbers of Shape, in its order; both sides of the kernel are odd. y has the shape of x.
void van_depthwise_forward(const int64_t* shape, const float* x, const float* weight, const float* bias, float* y) {
    const Shape s = shape_of(shape);
    switch (s.kernel_columns) {
        case 3: return forward<3>(s, x, weight, bias, y);
        case 5: return forward<5>(s, x, weight, bias, y);
        case 7: return forward<7>(s, x, weight, bias, y);
        default: return forward<0>(s, x, weight, bias, y);
    }
}

// Gradients by groups of pictures, to be added up by the caller in their order:
// weights (groups, KH * KW, C) and biases (groups, C). Kernels up to 64 taps wide.
void van_depthwise_weight_gradient(const int64_t* shape, const float* x, const float* gradient, float* weights,
                                   float* biases, int64_t groups) {
    const Shape s = shape_of(shape);
    switch (s.kernel_columns) {
        case 3: return weight_gradient<3>(s, x, gradient, weights, biases, groups);
        case 5: return weight_gradient<5>(s, x, gradient, weights, biases, groups);
        case 7: return weight_gradient<7>(s, x, gradient, weights, biases, groups);
        default: return weight_gradient<0>(s, x, gradient, weights, biases, groups);
    }
}
}
