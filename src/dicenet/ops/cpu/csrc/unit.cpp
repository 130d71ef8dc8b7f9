#include "unit.h"

#include "parallel.h"

#include <cmath>
#include <vector>

namespace dicenet {
namespace {

/// Images are summed in chunks of a number that does not depend on the threads, so that sums do not either.
constexpr int64_t kChunks = 32;
constexpr int64_t kChunkPixels = 128;

int64_t share(int64_t count, int64_t chunks) {
  return (count + chunks - 1) / chunks;
}

/// Per-thread memory of the kernels for odd kernel sizes and few channels.
float* scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats) memory.resize(floats);
  return memory.data();
}

/// (planes, k, k) to (k * k, planes), for planes that lie side by side in memory; flipped on demand.
std::vector<float> taps_first(const float* weight, int64_t planes, int64_t taps, bool flipped) {
  std::vector<float> result(planes * taps);
  for (int64_t p = 0; p < planes; ++p) {
    for (int64_t t = 0; t < taps; ++t) result[(flipped ? taps - 1 - t : t) * planes + p] = weight[p * taps + t];
  }
  return result;
}

std::vector<float> flipped(const float* weight, int64_t planes, int64_t taps) {
  std::vector<float> result(planes * taps);
  for (int64_t p = 0; p < planes; ++p) {
    for (int64_t t = 0; t < taps; ++t) result[p * taps + taps - 1 - t] = weight[p * taps + t];
  }
  return result;
}

bool is_empty(int64_t images, int64_t channels, int64_t height, int64_t width) {
  return images * channels * height * width == 0;
}

/// Runs a convolution row by row. The cost is that of 27 taps per vector, and memory.
void run_rows(DimConv conv, bool sum) {
  if (is_empty(conv.images, conv.channels, conv.height, conv.width)) return;  // the kernels write a row's last pixel
  const Kernels& k = kernels();
  const int64_t taps = conv.kernel * conv.kernel * 3;
  const double cost = 2.0 * taps * conv.width * (conv.channels / k.lanes + 1);
  const int64_t memory = k.dim_conv_scratch(conv.channels, conv.width, conv.kernel);
  parallel_for(conv.images * conv.height, cost, [&](int64_t begin, int64_t end) {
    DimConv mine = conv;
    if (!k.dim_conv_is_fast(conv.channels, conv.kernel)) mine.scratch = scratch(memory);
    for (int64_t row = begin; row < end; ++row) k.dim_conv_row(mine, row, sum);
  });
}

/// Where each branch's planes begin among the channels of dim_conv's output.
void place_branches(const float* base, int branches, int64_t channels, const float* place[3]) {
  int64_t offset = 0;
  for (int b = 0; b < 3; ++b) {
    const bool there = branches >> b & 1;
    place[b] = there ? base + offset : nullptr;
    if (there) offset += channels;
  }
}

int count_branches(int branches) {
  return (branches & 1) + (branches >> 1 & 1) + (branches >> 2 & 1);
}

/// scale * x + shift is what a norm does to x.
struct ScaleShift {
  std::vector<float> scale, shift, inverse;

  ScaleShift(const Norm& norm, int64_t channels) : scale(channels), shift(channels), inverse(channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const double inv = 1.0 / std::sqrt(static_cast<double>(norm.variance[c]) + norm.eps);
      const double s = (norm.weight ? norm.weight[c] : 1.0) * inv;
      inverse[c] = static_cast<float>(inv);
      scale[c] = static_cast<float>(s);
      shift[c] = static_cast<float>((norm.bias ? norm.bias[c] : 0.0) - norm.mean[c] * s);
    }
  }
};

/// The middle and half (see Vec::slope) of factor * prelu(scale * z) as a function of z.
struct Slopes {
  float middle, half;

  Slopes(double factor, double scale, double slope) {
    const double positive = factor * scale * (scale >= 0 ? 1 : slope);
    const double negative = factor * scale * (scale >= 0 ? slope : 1);
    middle = static_cast<float>((positive + negative) / 2);
    half = static_cast<float>((positive - negative) / 2);
  }
};

/// A scale by which one may divide: a sum z' = z + shift / scale times this scale is shift, to the last digit,
/// where the true scale is (almost) zero.
double divisor(double scale) {
  constexpr double kTiny = 1e-20;
  return std::abs(scale) > kTiny ? scale : kTiny;
}

}  // namespace

void dim_conv(const MapShape& s, const BranchWeights& w, const float* x, float* out) {
  std::vector<float> depth;
  if (w.depth) depth = taps_first(w.depth, s.channels, w.kernel * w.kernel, false);
  const int branches = w.branches();
  DimConv conv{s.images, s.channels, s.height, s.width, w.kernel, branches, {x, x, x}, s.channels, depth.data(),
               w.height, w.width, out, count_branches(branches) * s.channels, nullptr};
  run_rows(conv, false);
}

void dim_conv_backward(const MapShape& s, const BranchWeights& w, const float* x, const float* grad, float* grad_x,
                       float* grad_depth, float* grad_height, float* grad_width) {
  const int64_t taps = w.kernel * w.kernel;
  const int branches = w.branches();
  const int64_t grad_stride = count_branches(branches) * s.channels;
  const float* place[3];
  place_branches(grad, branches, s.channels, place);
  if (grad_x) {
    // the input's gradient is the same stencil with flipped kernels: no branch mixes the planes it keeps apart
    std::vector<float> depth, height, width;
    if (w.depth) depth = taps_first(w.depth, s.channels, taps, true);
    if (w.height) height = flipped(w.height, s.height, taps);
    if (w.width) width = flipped(w.width, s.width, taps);
    DimConv conv{s.images, s.channels, s.height, s.width, w.kernel, branches, {place[0], place[1], place[2]},
                 grad_stride, depth.data(), height.data(), width.data(), grad_x, s.channels, nullptr};
    run_rows(conv, true);
  }
  if (!grad_depth && !grad_height && !grad_width) return;
  const int wanted = (grad_depth ? kDepth : 0) | (grad_height ? kHeight : 0) | (grad_width ? kWidth : 0);
  const Kernels& k = kernels();
  const int64_t images = is_empty(s.images, s.channels, s.height, s.width) ? 0 : s.images;
  const int64_t chunk = share(images, kChunks), chunks = chunk ? share(images, chunk) : 0;
  const int64_t floats = taps * (s.channels + s.height + s.width);
  std::vector<float> parts(chunks * floats);
  const double cost = 60.0 * chunk * s.height * s.width * (s.channels / k.lanes + 1);
  parallel_for(chunks * 3, cost / 3, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c = task / 3;
      const int branch = 1 << task % 3;
      if (!(wanted & branch)) continue;
      float* part = parts.data() + c * floats;
      DimConvWeightGrad job{s.channels, s.height, s.width, w.kernel, branch, x, {place[0], place[1], place[2]},
                            grad_stride, part, part + taps * s.channels, part + taps * (s.channels + s.height),
                            nullptr};
      if (!k.dim_conv_is_fast(s.channels, w.kernel)) {
        job.scratch = scratch(k.dim_conv_scratch(s.channels, s.width, w.kernel));
      }
      k.dim_conv_weight_grad(job, c * chunk, std::min(s.images, (c + 1) * chunk));
    }
  });
  const auto total = [&](int64_t at) {
    double sum = 0;
    for (int64_t c = 0; c < chunks; ++c) sum += parts[c * floats + at];
    return static_cast<float>(sum);
  };
  if (grad_depth) {
    for (int64_t p = 0; p < s.channels; ++p) {
      for (int64_t t = 0; t < taps; ++t) grad_depth[p * taps + t] = total(t * s.channels + p);
    }
  }
  if (grad_height) {
    for (int64_t i = 0; i < s.height * taps; ++i) grad_height[i] = total(taps * s.channels + i);
  }
  if (grad_width) {
    for (int64_t i = 0; i < s.width * taps; ++i) grad_width[i] = total(taps * (s.channels + s.height) + i);
  }
}

void batch_moments(const MapShape& s, const float* x, float* mean, float* variance) {
  const Kernels& k = kernels();
  const int64_t pixels = s.pixels(), channels = s.channels, chunks = share(pixels, kChunkPixels);
  std::vector<float> parts(2 * chunks * channels);
  const double cost = 4.0 * kChunkPixels * (channels / k.lanes + 1);
  parallel_for(chunks, cost, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = c * kChunkPixels, count = std::min(kChunkPixels, pixels - first);
      float* part = parts.data() + 2 * c * channels;
      k.moments(x + first * channels, count, channels, part, part + channels);
    }
  });
  // the chunks' moments are joined by the law of total variance, in double
  std::vector<double> sum(channels), squares(channels);
  const auto count_of = [&](int64_t c) {
    return static_cast<double>(std::min(kChunkPixels, pixels - c * kChunkPixels));
  };
  for (int64_t c = 0; c < chunks; ++c) {
    const float* part = parts.data() + 2 * c * channels;
    for (int64_t i = 0; i < channels; ++i) sum[i] += count_of(c) * part[i];
  }
  for (int64_t i = 0; i < channels; ++i) sum[i] /= static_cast<double>(pixels);
  for (int64_t c = 0; c < chunks; ++c) {
    const float* part = parts.data() + 2 * c * channels;
    for (int64_t i = 0; i < channels; ++i) {
      const double off = part[i] - sum[i];
      squares[i] += part[channels + i] + count_of(c) * off * off;
    }
  }
  for (int64_t i = 0; i < channels; ++i) {
    mean[i] = static_cast<float>(sum[i]);
    variance[i] = static_cast<float>(squares[i] / static_cast<double>(pixels));
  }
}

void norm_prelu(const MapShape& s, const Norm& norm, const float* x, float* out) {
  const Kernels& k = kernels();
  const ScaleShift affine(norm, s.channels);
  const NormAct job{s.channels, affine.scale.data(), affine.shift.data(), norm.slope};
  parallel_for(s.pixels(), 3.0 * (s.channels / k.lanes + 1), [&](int64_t begin, int64_t end) {
    k.norm_act(job, x + begin * s.channels, end - begin, out + begin * s.channels);
  });
}

void norm_prelu_backward(const MapShape& s, const Norm& norm, bool training, const float* x, const float* grad,
                         float* grad_x, float* grad_weight, float* grad_bias, float* grad_slope) {
  const Kernels& k = kernels();
  const int64_t pixels = s.pixels(), channels = s.channels, chunks = share(pixels, kChunkPixels);
  const ScaleShift affine(norm, channels);
  std::vector<float> none(channels);
  NormActGrad job{{channels, affine.scale.data(), affine.shift.data(), norm.slope},
                  norm.mean, affine.inverse.data(), none.data(), none.data()};
  std::vector<float> parts(3 * chunks * channels);
  parallel_for(chunks, 9.0 * kChunkPixels * (channels / k.lanes + 1), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = c * kChunkPixels * channels, count = std::min(kChunkPixels, pixels - c * kChunkPixels);
      k.norm_act_grad_sums(job, x + first, grad + first, count, parts.data() + 3 * c * channels);
    }
  });
  std::vector<double> sums(3 * channels);
  for (int64_t c = 0; c < chunks; ++c) {
    for (int64_t i = 0; i < 3 * channels; ++i) sums[i] += parts[3 * c * channels + i];
  }
  std::vector<float> mean_grad(channels), mean_grad_xhat(channels);
  for (int64_t i = 0; i < channels; ++i) {
    if (grad_bias) grad_bias[i] = static_cast<float>(sums[i]);
    if (grad_weight) grad_weight[i] = static_cast<float>(sums[channels + i]);
    grad_slope[i] = static_cast<float>(sums[2 * channels + i]);
    if (training) {
      mean_grad[i] = static_cast<float>(sums[i] / static_cast<double>(pixels));
      mean_grad_xhat[i] = static_cast<float>(sums[channels + i] / static_cast<double>(pixels));
    }
  }
  if (!grad_x) return;
  job.mean_grad = mean_grad.data(), job.mean_grad_xhat = mean_grad_xhat.data();
  parallel_for(pixels, 5.0 * (channels / k.lanes + 1), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p += kChunkPixels) {
      const int64_t first = p * channels, count = std::min(kChunkPixels, end - p);
      k.norm_act_grad(job, x + first, grad + first, count, grad_x + first);
    }
  });
}

void join_branches(const MapShape& s, const float* weight, const float* x, float* out) {
  const Kernels& k = kernels();
  const std::vector<float> factors = taps_first(weight, s.channels, 3, false);
  parallel_for(s.pixels(), 6.0 * (s.channels / k.lanes + 1), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p += kChunkPixels) {
      k.join(x + p * 3 * s.channels, factors.data(), std::min(kChunkPixels, end - p), s.channels, out + p * s.channels);
    }
  });
}

void join_branches_backward(const MapShape& s, const float* weight, const float* x, const float* grad, float* grad_x,
                            float* grad_weight) {
  const Kernels& k = kernels();
  const int64_t pixels = s.pixels(), floats = 3 * s.channels, chunks = share(pixels, kChunkPixels);
  const std::vector<float> factors = taps_first(weight, s.channels, 3, false);
  std::vector<float> parts(chunks * floats);
  parallel_for(chunks, 10.0 * kChunkPixels * (s.channels / k.lanes + 1), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = c * kChunkPixels, count = std::min(kChunkPixels, pixels - first);
      k.join_grad(x + first * floats, factors.data(), grad + first * s.channels, count, s.channels,
                  grad_x + first * floats, parts.data() + c * floats);
    }
  });
  for (int64_t i = 0; i < floats; ++i) {
    double sum = 0;
    for (int64_t c = 0; c < chunks; ++c) sum += parts[c * floats + i];
    grad_weight[i % s.channels * 3 + i / s.channels] = static_cast<float>(sum);
  }
}

void fold_local(int64_t channels, const float* weight_depth, const Norm& norm, const float* join, const Norm& joined,
                float* table) {
  const ScaleShift branch(norm, 3 * channels), after(joined, channels);
  const auto row = [&](int r) { return table + r * channels; };
  for (int64_t c = 0; c < channels; ++c) {
    // depth kernels belong to one channel, so they take the norm's scale; height and width kernels do not, so
    // their sums start at shift / scale and the scale goes into what follows
    const double scale = branch.scale[c];
    for (int t = 0; t < 9; ++t) row(kDepthWeight + t)[c] = static_cast<float>(scale * weight_depth[c * 9 + t]);
    row(kDepthStart)[c] = branch.shift[c];
    double divide[3] = {1.0, divisor(branch.scale[channels + c]), divisor(branch.scale[2 * channels + c])};
    row(kHeightStart)[c] = static_cast<float>(branch.shift[channels + c] / divide[1]);
    row(kWidthStart)[c] = static_cast<float>(branch.shift[2 * channels + c] / divide[2]);
    for (int b = 0; b < 3; ++b) {
      const Slopes slopes(static_cast<double>(join[3 * c + b]) * after.scale[c], divide[b], norm.slope[b * channels + c]);
      const int at[3] = {kDepthMiddle, kHeightMiddle, kWidthMiddle};
      row(at[b])[c] = slopes.middle;
      row(at[b] + 1)[c] = slopes.half;
    }
    const Slopes slopes(1.0, 1.0, joined.slope[c]);
    row(kJoinStart)[c] = after.shift[c];
    row(kJoinMiddle)[c] = slopes.middle;
    row(kJoinHalf)[c] = slopes.half;
  }
}

void dice_local(const MapShape& s, const float* table, const float* weight_height, const float* weight_width,
                const float* x, float* out, float* means) {
  const Kernels& k = kernels();
  const int64_t image = s.height * s.width * s.channels;
  // by images, or, where there are few for several threads, by blocks of rows
  const bool few = s.images < 2 * kLocalBlocks && threads().count() > 1;
  const int64_t rows = few ? local_block_rows(s.height) : std::max<int64_t>(s.height, 1);
  const int64_t blocks = (s.height + rows - 1) / rows;
  float* sums = scratch(s.images * blocks * s.channels);
  const double cost = 45.0 * rows * s.width * (s.channels / k.lanes + 1);
  parallel_for(s.images * blocks, cost, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / blocks, first = task % blocks * rows;
      const Local job{s.channels, s.height, s.width, x + n * image, s.channels, table, s.channels, weight_height,
                      weight_width, nullptr, nullptr, out + n * image, s.channels, s.images > 1 ? image : 0};
      k.local_rows(job, first, std::min(s.height, first + rows), sums + task * s.channels);
    }
  });
  const float factor = 1.0f / static_cast<float>(s.height * s.width);
  for (int64_t n = 0; n < s.images; ++n) {
    float* mean = means + n * s.channels;
    for (int64_t block = 0; block < blocks; ++block) {
      const float* of_block = sums + (n * blocks + block) * s.channels;
      for (int64_t c = 0; c < s.channels; ++c) mean[c] = block ? mean[c] + of_block[c] : of_block[c];
    }
    for (int64_t c = 0; c < s.channels; ++c) mean[c] *= factor;
  }
}

void fold_spatial(int64_t channels, const float* weight, const Norm& norm, float* table) {
  const ScaleShift affine(norm, channels);
  for (int64_t c = 0; c < channels; ++c) {
    for (int t = 0; t < 9; ++t) table[t * channels + c] = affine.scale[c] * weight[c * 9 + t];
    const Slopes slopes(1.0, 1.0, norm.slope[c]);
    table[9 * channels + c] = affine.shift[c];
    table[10 * channels + c] = slopes.middle;
    table[11 * channels + c] = slopes.half;
  }
}

void dice_spatial(const MapShape& s, const float* table, const float* squeeze, const float* excite, int64_t hidden,
                  const float* x, const float* means, float* out) {
  const Kernels& k = kernels();
  std::vector<float> gates(s.images * s.channels);
  parallel_for(s.images, 4.0 * hidden * s.channels / k.lanes, [&](int64_t begin, int64_t end) {
    std::vector<float> squeezed(hidden);
    for (int64_t n = begin; n < end; ++n) {
      const float* mean = means + n * s.channels;
      for (int64_t j = 0; j < hidden; ++j) {
        const float z = k.dot(squeeze + j * s.channels, mean, s.channels);
        squeezed[j] = z < 0 ? 0 : z;  // what is no number stays so
      }
      for (int64_t c = 0; c < s.channels; ++c) {
        gates[n * s.channels + c] = 1.0f / (1.0f + std::exp(-k.dot(excite + c * hidden, squeezed.data(), hidden)));
      }
    }
  });
  const int64_t image = s.height * s.width * s.channels;
  const double cost = 15.0 * s.width * (s.channels / k.lanes + 1);
  parallel_for(s.images * s.height, cost, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / s.height;
      const DepthWise job{s.channels, s.height, s.width, 1, s.width, x + n * image, s.channels, table,
                          table + 9 * s.channels, table + 10 * s.channels, table + 11 * s.channels,
                          gates.data() + n * s.channels, out + n * image, s.channels};
      k.depth_wise_row(job, row % s.height);
    }
  });
}

}  // namespace dicenet
