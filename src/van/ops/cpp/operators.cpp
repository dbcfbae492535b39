// The operators as plain C functions: no PyTorch header, so no ABI to break.
//
// Pictures are (N, H, W, C) of one type (0: float32, 1: bfloat16, 2: float16); kernels (C, 1, rows, columns)
// with odd sides, biases and all gradients of them are float32. Everything is contiguous.

#include "depthwise.h"
#include "gelu.h"

namespace van {

template <int T>
struct GeluTile {
    template <typename Type, typename... Arguments>
    static void forward(Arguments... arguments) { gelu_forward_by<Type, T>(arguments...); }
    template <typename Type, typename... Arguments>
    static void backward(Arguments... arguments) { gelu_backward_by<Type, T>(arguments...); }
};

// Calls work with the tile that wastes least on this width.
template <typename Work>
void with_gelu_tile(int64_t columns, const Work& work) {
    const int64_t sevens = ceil_div(columns, 7) * 7, eights = ceil_div(columns, 8) * 8;
    if (columns <= 4) return work(GeluTile<4>{});
    if (sevens < eights || LANES < 16) return work(GeluTile<7>{});
    work(GeluTile<8>{});
}

template <typename Work>
void with_type(int64_t type, const Work& work) {
    if (type == 0) return work(Float32{});
    if (type == 1) return work(BFloat16{});
    work(Float16{});
}

Pictures pictures_of(const int64_t* numbers) { return {numbers[1], numbers[2], numbers[3], numbers[4]}; }

Kernel kernel_of(const int64_t* numbers, const float* weight, const float* bias) {
    return {numbers[0], numbers[1], numbers[2], weight, bias};
}

}  // namespace van

using namespace van;

// numbers: type, N, H, W, C, then rows, columns and dilation of each kernel. Gradients are summed over `groups`
// groups of pictures, each in a fixed order, so that threads change no bit.
extern "C" {

void van_depthwise(const int64_t* numbers, const void* x, const float* weight, const float* bias, void* y) {
    const Pictures shape = pictures_of(numbers);
    const Kernel kernel = kernel_of(numbers + 5, weight, bias);
    with_type(numbers[0], [&](auto type) {
        typedef decltype(type) Type;
        typedef typename Type::Element E;
        depthwise<Type>(shape, kernel, (const E*)x, (E*)y);
    });
}

void van_depthwise_backward(const int64_t* numbers, int64_t groups, const void* gradient, const void* x,
                            const float* weight, void* of_x, float* of_weight, float* of_bias) {
    const Pictures shape = pictures_of(numbers);
    const Kernel kernel = kernel_of(numbers + 5, weight, nullptr);
    with_type(numbers[0], [&](auto type) {
        typedef decltype(type) Type;
        typedef typename Type::Element E;
        depthwise_backward<Type>(shape, kernel, groups, (const E*)gradient, (const E*)x, (E*)of_x, of_weight, of_bias);
    });
}

void van_pair(const int64_t* numbers, const void* x, const float* local_weight, const float* local_bias,
              const float* dilated_weight, const float* dilated_bias, void* y) {
    const Pictures shape = pictures_of(numbers);
    const Kernel local = kernel_of(numbers + 5, local_weight, local_bias);
    const Kernel dilated = kernel_of(numbers + 8, dilated_weight, dilated_bias);
    with_type(numbers[0], [&](auto type) {
        typedef decltype(type) Type;
        typedef typename Type::Element E;
        pair<Type>(shape, local, dilated, (const E*)x, (E*)y);
    });
}

void van_pair_backward(const int64_t* numbers, int64_t groups, const void* gradient, const void* x,
                       const float* local_weight, const float* local_bias, const float* dilated_weight, void* of_x,
                       float* of_local_weight, float* of_local_bias, float* of_dilated_weight, float* of_dilated_bias) {
    const Pictures shape = pictures_of(numbers);
    const Kernel local = kernel_of(numbers + 5, local_weight, local_bias);
    const Kernel dilated = kernel_of(numbers + 8, dilated_weight, nullptr);
    const PairGradients out{of_local_weight, of_local_bias, of_dilated_weight, of_dilated_bias};
    with_type(numbers[0], [&](auto type) {
        typedef decltype(type) Type;
        typedef typename Type::Element E;
        pair_backward<Type>(shape, local, dilated, groups, (const E*)gradient, (const E*)x, (E*)of_x, out);
    });
}

// Kernels of 3x3 without dilation.
void van_gelu(const int64_t* numbers, const void* x, const float* weight, const float* bias, void* y) {
    const Pictures shape = pictures_of(numbers);
    const Kernel kernel = kernel_of(numbers + 5, weight, bias);
    with_type(numbers[0], [&](auto type) {
        typedef decltype(type) Type;
        typedef typename Type::Element E;
        with_gelu_tile(shape.columns, [&](auto tile) {
            decltype(tile)::template forward<Type>(shape, kernel, (const E*)x, (E*)y);
        });
    });
}

void van_gelu_backward(const int64_t* numbers, const void* gradient, const void* x, const float* weight,
                       const float* bias, void* of_x, float* of_weight, float* of_bias) {
    const Pictures shape = pictures_of(numbers);
    const Kernel kernel = kernel_of(numbers + 5, weight, bias);
    with_type(numbers[0], [&](auto type) {
        typedef decltype(type) Type;
        typedef typename Type::Element E;
        with_gelu_tile(shape.columns, [&](auto tile) {
            decltype(tile)::template backward<Type>(shape, kernel, (const E*)gradient, (const E*)x, (E*)of_x, of_weight,
                                                    of_bias);
        });
    });
}

// Twelve independent multiply-adds of a vector, `count` times on every thread: what the processor can do at most.
// Returns how many multiplications and additions that were.
double van_multiply_adds(int64_t count, float* out) {
    double done = 0;
#pragma omp parallel reduction(+ : done)
    {
        Vector sums[12];
        for (int i = 0; i < 12; ++i) sums[i] = Vector{} + (float)i;
        const Vector factor = Vector{} + out[0], summand = Vector{} + out[1];
        for (int64_t n = 0; n < count; ++n) {
#pragma GCC unroll 12
            for (int i = 0; i < 12; ++i) sums[i] = sums[i] * factor + summand;
        }
        Vector total = {};
        for (const Vector& sum : sums) total += sum;
        done += 2.0 * 12 * LANES * (double)count;
#pragma omp critical
        out[2] += total[0];
    }
    return done;
}
}
