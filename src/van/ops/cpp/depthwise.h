// Depth-wise convolution with dilation, and the pair of large kernel attention: forward and gradients.
//
// Each task takes one vector of channels of one picture (gradients: of one group of pictures, so that the sums
// are made in the same order by any number of threads) and keeps all that lies between input and output in
// planes of its own, so the map between the two kernels of the pair never reaches memory.

#pragma once

#include "planes.h"

namespace van {

struct Pictures {
    int64_t count, rows, columns, channels;
    int64_t blocks() const { return ceil_div(channels, LANES); }
    int64_t size() const { return rows * columns * channels; }
    int64_t lanes(int64_t block) const { return least(LANES, channels - block * LANES); }
};

inline int64_t margin_of(const Kernel& kernel) { return kernel.columns / 2; }

// A kernel packed for every vector of channels: (blocks, taps + 1, LANES), the bias last.
class Packed {
  public:
    Packed(const Kernel& kernel, const Pictures& shape, bool turned)
        : pitch_((kernel.taps() + 1) * LANES), values_(shape.blocks() * pitch_) {
#pragma omp parallel for schedule(static)
        for (int64_t block = 0; block < shape.blocks(); ++block) {
            pack(kernel, block * LANES, shape.lanes(block), turned, weight(block));
            store(pack_bias(kernel, block * LANES, shape.lanes(block)), weight(block) + pitch_ - LANES);
        }
    }

    float* weight(int64_t block) { return values_.begin() + block * pitch_; }
    Vector bias(int64_t block) { return load(weight(block) + pitch_ - LANES); }

  private:
    int64_t pitch_;
    Buffer values_;
};

// Sums of the gradients of one kernel by groups of pictures: (groups, blocks, taps + 1, LANES), the bias last.
class Sums {
  public:
    Sums(const Kernel& kernel, int64_t groups, int64_t blocks)
        : taps_(kernel.taps()), groups_(groups), blocks_(blocks), values_(groups * blocks * (taps_ + 1) * LANES) {}

    float* weight(int64_t group, int64_t block) {
        return values_.begin() + (group * blocks_ + block) * (taps_ + 1) * LANES;
    }
    float* bias(int64_t group, int64_t block) { return weight(group, block) + taps_ * LANES; }

    // Adds the groups in their order and writes the gradients as (C, taps) and (C).
    void write(int64_t block, int64_t lanes, float* weights, float* biases) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t channel = block * LANES + lane;
            for (int64_t tap = 0; tap <= taps_; ++tap) {
                float sum = 0;
                for (int64_t group = 0; group < groups_; ++group) sum += weight(group, block)[tap * LANES + lane];
                *(tap < taps_ ? weights + channel * taps_ + tap : biases + channel) = sum;
            }
        }
    }

  private:
    int64_t taps_, groups_, blocks_;
    Buffer values_;
};

// `lanes` channels of a picture.
template <typename Type>
class IntoPicture final : public Sink {
  public:
    IntoPicture(typename Type::Element* picture, const Pictures& shape, int64_t lanes)
        : picture_(picture), columns_(shape.columns), channels_(shape.channels), lanes_(lanes) {}

    void put(int64_t row, int64_t column, int64_t step, int64_t count, const float* vectors) const override {
        typename Type::Element* to = picture_ + (row * columns_ + column) * channels_;
        with_lanes(lanes_, [&](auto lanes) {
            for (int64_t t = 0; t < count; ++t) store<Type>(load(vectors + t * LANES), to + t * step * channels_, lanes);
        });
    }

  private:
    typename Type::Element* picture_;
    int64_t columns_, channels_, lanes_;
};

// Shares out the groups of pictures, and in each group some neighbouring vectors of channels at a time, which lie in
// the same pages of memory; the pictures of a group come in their order.
template <typename Work>
void each_in_groups(const Pictures& shape, int64_t groups, const Work& work) {
    const int64_t width = groups < 8 ? 1 : 4, parts = ceil_div(shape.blocks(), width);
#pragma omp for collapse(2) schedule(static)
    for (int64_t group = 0; group < groups; ++group)
        for (int64_t part = 0; part < parts; ++part)
            for (int64_t n = shape.count * group / groups; n < shape.count * (group + 1) / groups; ++n)
                for (int64_t block = part * width; block < least((part + 1) * width, shape.blocks()); ++block)
                    work(group, n, block);
}

template <typename Type, typename Element = typename Type::Element>
void depthwise(const Pictures& shape, const Kernel& kernel, const Element* x, Element* y) {
    Packed packed(kernel, shape, false);
#pragma omp parallel
    {
        Phases pixels(shape.rows, shape.columns, kernel.dilation, margin_of(kernel));
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < shape.count; ++n)
            for (int64_t block = 0; block < shape.blocks(); ++block) {
                const int64_t place = n * shape.size() + block * LANES, lanes = shape.lanes(block);
                pixels.fill<Type>(x + place, shape.channels, lanes);
                const IntoPicture<Type> answer(y + place, shape, lanes);
                convolve(pixels, kernel, packed.weight(block), packed.bias(block), answer);
            }
    }
}

template <typename Type, typename Element = typename Type::Element>
void depthwise_backward(const Pictures& shape, const Kernel& kernel, int64_t groups, const Element* gradient,
                        const Element* x, Element* of_x, float* of_weight, float* of_bias) {
    Sums sums(kernel, groups, shape.blocks());
    Packed turned(kernel, shape, true);
#pragma omp parallel
    {
        Phases pixels(shape.rows, shape.columns, kernel.dilation, margin_of(kernel));
        Phases gradients(shape.rows, shape.columns, kernel.dilation, margin_of(kernel));
        each_in_groups(shape, groups, [&](int64_t group, int64_t n, int64_t block) {
            const int64_t place = n * shape.size() + block * LANES, lanes = shape.lanes(block);
            pixels.fill<Type>(x + place, shape.channels, lanes);
            gradients.fill<Type>(gradient + place, shape.channels, lanes);
            correlate(pixels, gradients, kernel, sums.weight(group, block), sums.bias(group, block));
            convolve(gradients, kernel, turned.weight(block), Vector{}, IntoPicture<Type>(of_x + place, shape, lanes));
        });
#pragma omp for schedule(static)
        for (int64_t block = 0; block < shape.blocks(); ++block)
            sums.write(block, shape.lanes(block), of_weight, of_bias);
    }
}

template <typename Type, typename Element = typename Type::Element>
void pair(const Pictures& shape, const Kernel& local, const Kernel& dilated, const Element* x, Element* y) {
    Packed first(local, shape, false), second(dilated, shape, false);
#pragma omp parallel
    {
        Phases pixels(shape.rows, shape.columns, local.dilation, margin_of(local));
        Phases seen(shape.rows, shape.columns, dilated.dilation, margin_of(dilated));
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < shape.count; ++n)
            for (int64_t block = 0; block < shape.blocks(); ++block) {
                const int64_t place = n * shape.size() + block * LANES, lanes = shape.lanes(block);
                pixels.fill<Type>(x + place, shape.channels, lanes);
                convolve(pixels, local, first.weight(block), first.bias(block), IntoPhases(seen));
                const IntoPicture<Type> answer(y + place, shape, lanes);
                convolve(seen, dilated, second.weight(block), second.bias(block), answer);
            }
    }
}

struct PairGradients {
    float *local_weight, *local_bias, *dilated_weight, *dilated_bias;
};

// What the local kernel has seen is computed again rather than kept from the forward pass.
template <typename Type, typename Element = typename Type::Element>
void pair_backward(const Pictures& shape, const Kernel& local, const Kernel& dilated, int64_t groups,
                   const Element* gradient, const Element* x, Element* of_x, const PairGradients& out) {
    Sums local_sums(local, groups, shape.blocks()), dilated_sums(dilated, groups, shape.blocks());
    Packed first(local, shape, false), first_turned(local, shape, true), second_turned(dilated, shape, true);
#pragma omp parallel
    {
        Phases pixels(shape.rows, shape.columns, local.dilation, margin_of(local));
        Phases of_seen(shape.rows, shape.columns, local.dilation, margin_of(local));
        Phases seen(shape.rows, shape.columns, dilated.dilation, margin_of(dilated));
        Phases gradients(shape.rows, shape.columns, dilated.dilation, margin_of(dilated));
        each_in_groups(shape, groups, [&](int64_t group, int64_t n, int64_t block) {
            const int64_t place = n * shape.size() + block * LANES, lanes = shape.lanes(block);
            pixels.fill<Type>(x + place, shape.channels, lanes);
            convolve(pixels, local, first.weight(block), first.bias(block), IntoPhases(seen));
            gradients.fill<Type>(gradient + place, shape.channels, lanes);
            correlate(seen, gradients, dilated, dilated_sums.weight(group, block), dilated_sums.bias(group, block));
            convolve(gradients, dilated, second_turned.weight(block), Vector{}, IntoPhases(of_seen));
            correlate(pixels, of_seen, local, local_sums.weight(group, block), local_sums.bias(group, block));
            const IntoPicture<Type> answer(of_x + place, shape, lanes);
            convolve(of_seen, local, first_turned.weight(block), Vector{}, answer);
        });
#pragma omp for schedule(static)
        for (int64_t block = 0; block < shape.blocks(); ++block) {
            local_sums.write(block, shape.lanes(block), out.local_weight, out.local_bias);
            dilated_sums.write(block, shape.lanes(block), out.dilated_weight, out.dilated_bias);
        }
    }
}

}  // namespace van
