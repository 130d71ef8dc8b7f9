// Operations on whole batches: the kernels, split over threads. No torch; all maps are channels-last and dense.
#pragma once

#include "kernels.h"

#include <cstdint>

namespace dicenet {

struct MapShape {
  int64_t images, channels, height, width;

  int64_t pixels() const {
    return images * height * width;
  }
};

/// Kernels of the three branches as torch keeps them, (planes, k, k); null leaves a branch out.
struct BranchWeights {
  const float* depth;
  const float* height;
  const float* width;
  int64_t kernel;

  int branches() const {
    return (depth ? kDepth : 0) | (height ? kHeight : 0) | (width ? kWidth : 0);
  }
};

/// x to out (images, height, width, branches * channels).
void dim_conv(const MapShape&, const BranchWeights&, const float* x, float* out);

/// grad has the layout of dim_conv's out. Null results are not computed.
void dim_conv_backward(const MapShape&, const BranchWeights&, const float* x, const float* grad, float* grad_x,
                       float* grad_depth, float* grad_height, float* grad_width);

/// A batch norm's parameters, statistics or running statistics, and the slopes of the PReLU behind it.
struct Norm {
  const float* weight;
  const float* bias;
  const float* mean;
  const float* variance;
  double eps;
  const float* slope;
};

/// Mean and biased variance of each channel.
void batch_moments(const MapShape&, const float* x, float* mean, float* variance);
void norm_prelu(const MapShape&, const Norm&, const float* x, float* out);
/// training: mean and variance are the batch's, so the gradient goes through them too.
void norm_prelu_backward(const MapShape&, const Norm&, bool training, const float* x, const float* grad,
                         float* grad_x, float* grad_weight, float* grad_bias, float* grad_slope);

/// x (images, height, width, 3 * channels), weight (channels, 3): the sum of three weighted branches.
void join_branches(const MapShape&, const float* weight, const float* x, float* out);
void join_branches_backward(const MapShape&, const float* weight, const float* x, const float* grad, float* grad_x,
                            float* grad_weight);

/// Folds norms, slopes and the fusion of the branches into the table that Local takes, (kLocalRows, channels).
/// norm's vectors have 3 * channels entries, join (channels, 3).
void fold_local(int64_t channels, const float* weight_depth, const Norm& norm, const float* join, const Norm& joined,
                float* table);
/// x and out (images, height, width, channels); means (images, channels) of out.
void dice_local(const MapShape&, const float* table, const float* weight_height, const float* weight_width,
                const float* x, float* out, float* means);

/// Folds a depth-wise 3x3 convolution, norm and slopes: (12, channels): nine weights, bias, middle, half.
void fold_spatial(int64_t channels, const float* weight, const Norm&, float* table);
/// prelu(norm(convolution of x)) times sigmoid(excite * relu(squeeze * means)).
void dice_spatial(const MapShape&, const float* table, const float* squeeze, const float* excite, int64_t hidden,
                  const float* x, const float* means, float* out);

}  // namespace dicenet
