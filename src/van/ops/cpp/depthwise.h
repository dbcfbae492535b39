// Depth-wise convolution with dilation, and the pair of large kernel attention: forward and gradients.
//
// Each task processes one vector of channels of one image (gradients: of one group of images, so that the order
// of the sums does not depend on the number of threads). It keeps all intermediate values in planes of its own,
// so the feature map between the two kernels of the pair is never written to memory.

#pragma once

#include "planes.h"

namespace van {

struct Images {
    int64_t count, rows, columns, channels;
    int64_t blocks() const { return ceil_div(channels, LANES); }
    int64_t size() const { return rows * columns * channels; }
    int64_t lanes(int64_t block) const { return min_of(LANES, channels - block * LANES); }
};

inline int64_t column_margin(const Kernel& kernel) { return kernel.columns / 2; }

// A kernel packed for every vector of channels: (blocks, taps + 1, LANES), the bias last.
class PackedKernel {
  public:
    PackedKernel(const Kernel& kernel, const Images& shape, bool flipped)
        : pitch_((kernel.taps() + 1) * LANES), values_(shape.blocks() * pitch_) {
#pragma omp parallel for schedule(static)
        for (int64_t block = 0; block < shape.blocks(); ++block) {
            pack(kernel, block * LANES, shape.lanes(block), flipped, weight(block));
            store(pack_bias(kernel, block * LANES, shape.lanes(block)), weight(block) + pitch_ - LANES);
        }
    }

    float* weight(int64_t block) { return values_.begin() + block * pitch_; }
    Vector bias(int64_t block) { return load(weight(block) + pitch_ - LANES); }

  private:
    int64_t pitch_;
    Buffer values_;
};

// Sums of the gradients of one kernel by groups of images: (groups, blocks, taps + 1, LANES), the bias last.
class GradientSums {
  public:
    GradientSums(const Kernel& kernel, int64_t groups, int64_t blocks)
        : taps_(kernel.taps()), groups_(groups), blocks_(blocks), values_(groups * blocks * (taps_ + 1) * LANES) {}

    float* weight(int64_t group, int64_t block) {
        return values_.begin() + (group * blocks_ + block) * (taps_ + 1) * LANES;
    }
    float* bias(int64_t group, int64_t block) { return weight(group, block) + taps_ * LANES; }

    // Adds the groups in a fixed order and writes the gradients as (C, taps) and (C).
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

// Writes `lanes` channels of an image.
template <typename Type>
class ImageSink final : public Sink {
  public:
    ImageSink(typename Type::Element* image, const Images& shape, int64_t lanes)
        : image_(image), columns_(shape.columns), channels_(shape.channels), lanes_(lanes) {}

    void put(int64_t row, int64_t column, int64_t step, int64_t count, const float* vectors) const override {
        typename Type::Element* to = image_ + (row * columns_ + column) * channels_;
        with_lanes(lanes_, [&](auto lanes) {
            for (int64_t t = 0; t < count; ++t) store<Type>(load(vectors + t * LANES), to + t * step * channels_, lanes);
        });
    }

  private:
    typename Type::Element* image_;
    int64_t columns_, channels_, lanes_;
};

// Distributes the groups of images over the threads, and within a group a few neighboring vectors of channels at a
// time, which share memory pages. The images of a group are processed in order.
template <typename Work>
void for_each_in_groups(const Images& shape, int64_t groups, const Work& work) {
    const int64_t width = groups < 8 ? 1 : 4, slices = ceil_div(shape.blocks(), width);
#pragma omp for collapse(2) schedule(static)
    for (int64_t group = 0; group < groups; ++group)
        for (int64_t slice = 0; slice < slices; ++slice)
            for (int64_t n = shape.count * group / groups; n < shape.count * (group + 1) / groups; ++n)
                for (int64_t block = slice * width; block < min_of((slice + 1) * width, shape.blocks()); ++block)
                    work(group, n, block);
}

template <typename Type, typename Element = typename Type::Element>
void depthwise(const Images& shape, const Kernel& kernel, const Element* x, Element* y) {
    PackedKernel packed(kernel, shape, false);
#pragma omp parallel
    {
        Phases pixels(shape.rows, shape.columns, kernel.dilation, column_margin(kernel));
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < shape.count; ++n)
            for (int64_t block = 0; block < shape.blocks(); ++block) {
                const int64_t offset = n * shape.size() + block * LANES, lanes = shape.lanes(block);
                pixels.load_image<Type>(x + offset, shape.channels, lanes);
                const ImageSink<Type> output(y + offset, shape, lanes);
                convolve(pixels, kernel, packed.weight(block), packed.bias(block), output);
            }
    }
}

template <typename Type, typename Element = typename Type::Element>
void depthwise_backward(const Images& shape, const Kernel& kernel, int64_t groups, const Element* gradient,
                        const Element* x, Element* grad_x, float* grad_weight, float* grad_bias) {
    GradientSums sums(kernel, groups, shape.blocks());
    PackedKernel flipped(kernel, shape, true);
#pragma omp parallel
    {
        Phases pixels(shape.rows, shape.columns, kernel.dilation, column_margin(kernel));
        Phases gradients(shape.rows, shape.columns, kernel.dilation, column_margin(kernel));
        for_each_in_groups(shape, groups, [&](int64_t group, int64_t n, int64_t block) {
            const int64_t offset = n * shape.size() + block * LANES, lanes = shape.lanes(block);
            pixels.load_image<Type>(x + offset, shape.channels, lanes);
            gradients.load_image<Type>(gradient + offset, shape.channels, lanes);
            correlate(pixels, gradients, kernel, sums.weight(group, block), sums.bias(group, block));
            convolve(gradients, kernel, flipped.weight(block), Vector{}, ImageSink<Type>(grad_x + offset, shape, lanes));
        });
#pragma omp for schedule(static)
        for (int64_t block = 0; block < shape.blocks(); ++block)
            sums.write(block, shape.lanes(block), grad_weight, grad_bias);
    }
}

template <typename Type, typename Element = typename Type::Element>
void pair(const Images& shape, const Kernel& local, const Kernel& dilated, const Element* x, Element* y) {
    PackedKernel first(local, shape, false), second(dilated, shape, false);
#pragma omp parallel
    {
        Phases pixels(shape.rows, shape.columns, local.dilation, column_margin(local));
        Phases local_out(shape.rows, shape.columns, dilated.dilation, column_margin(dilated));
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < shape.count; ++n)
            for (int64_t block = 0; block < shape.blocks(); ++block) {
                const int64_t offset = n * shape.size() + block * LANES, lanes = shape.lanes(block);
                pixels.load_image<Type>(x + offset, shape.channels, lanes);
                convolve(pixels, local, first.weight(block), first.bias(block), PhaseSink(local_out));
                const ImageSink<Type> output(y + offset, shape, lanes);
                convolve(local_out, dilated, second.weight(block), second.bias(block), output);
            }
    }
}

struct PairGradients {
    float *local_weight, *local_bias, *dilated_weight, *dilated_bias;
};

// Recomputes the output of the local kernel instead of saving it in the forward pass.
template <typename Type, typename Element = typename Type::Element>
void pair_backward(const Images& shape, const Kernel& local, const Kernel& dilated, int64_t groups,
                   const Element* gradient, const Element* x, Element* grad_x, const PairGradients& out) {
    GradientSums local_sums(local, groups, shape.blocks()), dilated_sums(dilated, groups, shape.blocks());
    PackedKernel first(local, shape, false), first_flipped(local, shape, true), second_flipped(dilated, shape, true);
#pragma omp parallel
    {
        Phases pixels(shape.rows, shape.columns, local.dilation, column_margin(local));
        Phases grad_local(shape.rows, shape.columns, local.dilation, column_margin(local));
        Phases local_out(shape.rows, shape.columns, dilated.dilation, column_margin(dilated));
        Phases gradients(shape.rows, shape.columns, dilated.dilation, column_margin(dilated));
        for_each_in_groups(shape, groups, [&](int64_t group, int64_t n, int64_t block) {
            const int64_t offset = n * shape.size() + block * LANES, lanes = shape.lanes(block);
            pixels.load_image<Type>(x + offset, shape.channels, lanes);
            convolve(pixels, local, first.weight(block), first.bias(block), PhaseSink(local_out));
            gradients.load_image<Type>(gradient + offset, shape.channels, lanes);
            correlate(local_out, gradients, dilated, dilated_sums.weight(group, block), dilated_sums.bias(group, block));
            convolve(gradients, dilated, second_flipped.weight(block), Vector{}, PhaseSink(grad_local));
            correlate(pixels, grad_local, local, local_sums.weight(group, block), local_sums.bias(group, block));
            const ImageSink<Type> output(grad_x + offset, shape, lanes);
            convolve(grad_local, local, first_flipped.weight(block), Vector{}, output);
        });
#pragma omp for schedule(static)
        for (int64_t block = 0; block < shape.blocks(); ++block) {
            local_sums.write(block, shape.lanes(block), out.local_weight, out.local_bias);
            dilated_sums.write(block, shape.lanes(block), out.dilated_weight, out.dilated_bias);
        }
    }
}

}  // namespace van
