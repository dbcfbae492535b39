// SIMD vectors of channels, with conversion from and to each float type.
//
// LANES is the number of floats in one register of the target CPU; all arithmetic is in float32. Images are in
// channels_last: (N, H, W, C).

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace van {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
constexpr int TILE = 10;  // neighboring outputs per tile: with the weights of a kernel row they fill 32 registers
#else
#if defined(__AVX__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif
constexpr int TILE = 6;  // 16 registers
#endif

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

struct Float32 {
    typedef float Element;
    static Vector widen(const float* from) {
        Vector v;
        std::memcpy(&v, from, sizeof v);
        return v;
    }
    static void narrow(Vector v, float* to) { std::memcpy(to, &v, sizeof v); }
};

struct BFloat16 {
    typedef uint16_t Element;
    static Vector widen(const uint16_t* from) {
        Halves halves;
        std::memcpy(&halves, from, sizeof halves);
        return (Vector)(__builtin_convertvector(halves, Bits) << 16);
    }
    // rounds to nearest, ties to even; NaN stays NaN
    static void narrow(Vector v, uint16_t* to) {
        const Bits bits = (Bits)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        const Bits nan = (Bits)(v != v);
        const Halves halves = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Halves);
        std::memcpy(to, &halves, sizeof halves);
    }
};

struct Float16 {
    typedef uint16_t Element;
#if defined(__AVX512F__)
    static Vector widen(const uint16_t* from) {
        return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
    }
    static void narrow(Vector v, uint16_t* to) {
        _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
    }
#elif defined(__F16C__)
    static Vector widen(const uint16_t* from) {
        return (Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
    }
    static void narrow(Vector v, uint16_t* to) {
        _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
    }
#else
    static Vector widen(const uint16_t* from) {
        Vector v;
        _Float16 halves[LANES];
        std::memcpy(halves, from, sizeof halves);
        for (int64_t lane = 0; lane < LANES; ++lane) v[lane] = (float)halves[lane];
        return v;
    }
    static void narrow(Vector v, uint16_t* to) {
        _Float16 halves[LANES];
        for (int64_t lane = 0; lane < LANES; ++lane) halves[lane] = (_Float16)v[lane];
        std::memcpy(to, halves, sizeof halves);
    }
#endif
};

// Loads `lanes` channels of one pixel; the other lanes are zero.
template <typename Type>
inline Vector load(const typename Type::Element* from, int64_t lanes) {
    if (lanes == LANES) return Type::widen(from);
    typename Type::Element padded[LANES] = {};
    std::memcpy(padded, from, lanes * sizeof *from);
    return Type::widen(padded);
}

template <typename Type>
inline void store(Vector v, typename Type::Element* to, int64_t lanes) {
    if (lanes == LANES) return Type::narrow(v, to);
    typename Type::Element padded[LANES];
    Type::narrow(v, padded);
    std::memcpy(to, padded, lanes * sizeof *to);
}

// Calls work(lanes), with a compile-time constant for full vectors, so that these are compiled without a branch.
template <typename Work>
inline void with_lanes(int64_t lanes, const Work& work) {
    if (lanes == LANES)
        work(std::integral_constant<int64_t, LANES>{});
    else
        work(lanes);
}

inline Vector load(const float* from) { return Float32::widen(from); }
inline void store(Vector v, float* to) { Float32::narrow(v, to); }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Zero-initialized floats, aligned to a cache line.
class Buffer {
  public:
    explicit Buffer(int64_t count)
        : values_((float*)std::aligned_alloc(64, ceil_div(count * 4 + 1, 64) * 64)) {
        std::memset(values_, 0, count * 4);
    }
    ~Buffer() { std::free(values_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    float* begin() { return values_; }

  private:
    float* values_;
};

// A depth-wise kernel (C, 1, rows, columns) in float32.
struct Kernel {
    int64_t rows, columns, dilation;
    const float *weight, *bias;  // bias may be null
    int64_t taps() const { return rows * columns; }
};

// Packs the taps of `lanes` channels from `channel` on, tap by tap; rotated by 180 degrees if `flipped`, for gradients.
inline void pack(const Kernel& kernel, int64_t channel, int64_t lanes, bool flipped, float* to) {
    const int64_t taps = kernel.taps();
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const float* from = kernel.weight + (channel + lane) * taps;
        for (int64_t tap = 0; tap < taps; ++tap) to[(flipped ? taps - 1 - tap : tap) * LANES + lane] = from[tap];
    }
    for (int64_t lane = lanes; lane < LANES; ++lane)
        for (int64_t tap = 0; tap < taps; ++tap) to[tap * LANES + lane] = 0;
}

inline Vector pack_bias(const Kernel& kernel, int64_t channel, int64_t lanes) {
    return kernel.bias ? load<Float32>(kernel.bias + channel, lanes) : Vector{};
}

}  // namespace van
