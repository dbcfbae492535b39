// The operators as plain C functions. They include no PyTorch header, so they do not depend on its ABI.
//
// Images are (N, H, W, C) of one type (0: float32, 1: bfloat16, 2: float16); kernels (C, 1, rows, columns)
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

// Calls work with the tile width that leaves the least padding at this image width.
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

Images parse_images(const int64_t* sizes) { return {sizes[1], sizes[2], sizes[3], sizes[4]}; }

Kernel parse_kernel(const int64_t* sizes, const float* weight, const float* bias) {
    return {sizes[0], sizes[1], sizes[2], weight, bias};
}

}  // namespace van

using namespace van;

// sizes: type, N, H, W, C, then rows, columns and dilation of each kernel. Gradients are summed over `groups`
// groups of images, each in a fixed order, so that results do not depend on the number of threads.
extern "C" {

void van_depthwise(const int64_t* sizes, const void* x, const float* weight, const float* bias, void* y) {
    const Images shape = parse_images(sizes);
    const Kernel kernel = parse_kernel(sizes + 5, weight, bias);
    with_type(sizes[0], [&](auto type) {
        typedef decltype(type) Type;
        typedef typename Type::Element E;
        depthwise<Type>(shape, kernel, (const E*)x, (E*)y);
    });
}

void van_depthwise_backward(const int64_t* sizes, int64_t groups, const void* gradient, const void* x,
                            const float* weight, void* grad_x, float* grad_weight, float* grad_bias) {
    const Images shape = parse_images(sizes);
    const Kernel kernel = parse_kernel(sizes + 5, weight, nullptr);
    with_type(sizes[0], [&](auto type) {
        typedef decltype(type) Type;
        typedef typename Type::Element E;
        depthwise_backward<Type>(shape, kernel, groups, (const E*)gradient, (const E*)x, (E*)grad_x, grad_weight,
                                 grad_bias);
    });
}

void van_pair(const int64_t* sizes, const void* x, const float* local_weight, const float* local_bias,
              const float* dilated_weight, const float* dilated_bias, void* y) {
    const Images shape = parse_images(sizes);
    const Kernel local = parse_kernel(sizes + 5, local_weight, local_bias);
    const Kernel dilated = parse_kernel(sizes + 8, dilated_weight, dilated_bias);
    with_type(sizes[0], [&](auto type) {
        typedef decltype(type) Type;
        typedef typename Type::Element E;
        pair<Type>(shape, local, dilated, (const E*)x, (E*)y);
    });
}

void van_pair_backward(const int64_t* sizes, int64_t groups, const void* gradient, const void* x,
                       const float* local_weight, const float* local_bias, const float* dilated_weight, void* grad_x,
                       float* grad_local_weight, float* grad_local_bias, float* grad_dilated_weight,
                       float* grad_dilated_bias) {
    const Images shape = parse_images(sizes);
    const Kernel local = parse_kernel(sizes + 5, local_weight, local_bias);
    const Kernel dilated = parse_kernel(sizes + 8, dilated_weight, nullptr);
    const PairGradients out{grad_local_weight, grad_local_bias, grad_dilated_weight, grad_dilated_bias};
    with_type(sizes[0], [&](auto type) {
        typedef decltype(type) Type;
        typedef typename Type::Element E;
        pair_backward<Type>(shape, local, dilated, groups, (const E*)gradient, (const E*)x, (E*)grad_x, out);
    });
}

// Kernels of 3x3 without dilation.
void van_gelu(const int64_t* sizes, const void* x, const float* weight, const float* bias, void* y) {
    const Images shape = parse_images(sizes);
    const Kernel kernel = parse_kernel(sizes + 5, weight, bias);
    with_type(sizes[0], [&](auto type) {
        typedef decltype(type) Type;
        typedef typename Type::Element E;
        with_gelu_tile(shape.columns, [&](auto tile) {
            decltype(tile)::template forward<Type>(shape, kernel, (const E*)x, (E*)y);
        });
    });
}

void van_gelu_backward(const int64_t* sizes, const void* gradient, const void* x, const float* weight,
                       const float* bias, void* grad_x, float* grad_weight, float* grad_bias) {
    const Images shape = parse_images(sizes);
    const Kernel kernel = parse_kernel(sizes + 5, weight, bias);
    with_type(sizes[0], [&](auto type) {
        typedef decltype(type) Type;
        typedef typename Type::Element E;
        with_gelu_tile(shape.columns, [&](auto tile) {
            decltype(tile)::template backward<Type>(shape, kernel, (const E*)gradient, (const E*)x, (E*)grad_x,
                                                    grad_weight, grad_bias);
        });
    });
}

// Runs twelve independent vector multiply-adds `count` times on every thread, which reaches the peak of the CPU.
// Returns the number of multiplications and additions.
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
