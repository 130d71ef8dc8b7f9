// The kernels, as plain functions over pointers: no torch, no allocation, no threads. All maps are channels-last:
// a pixel's channels are contiguous, then the columns, then the rows, then the images.
//
// One table of functions per instruction set ("level"); kernels() picks the best one that the processor runs.
#pragma once

#include <cstdint>

namespace dicenet {

/// Channels of a plan's buffers are padded with zeros to a multiple of this, at every level.
constexpr int64_t kPad = 16;

constexpr int64_t padded(int64_t channels) {
  return (channels + kPad - 1) / kPad * kPad;
}

/// Branches of a dimension-wise convolution, as bits.
enum Branch { kDepth = 1, kHeight = 2, kWidth = 4, kAllBranches = 7 };

/// A dimension-wise convolution, or the gradient of its input (with flipped kernels, from three gradients).
struct DimConv {
  int64_t images, channels, height, width, kernel;
  int branches;               // bits of Branch
  const float* source[3];     // what each branch reads; pixels are `source_stride` floats apart
  int64_t source_stride;
  const float* weight_depth;  // (k * k, channels)
  const float* weight_height; // (height, k * k), rows of k are neighbouring channels
  const float* weight_width;  // (width, k * k), rows of k are neighbouring rows of the map
  float* out;                 // pixels are `out_stride` floats apart
  int64_t out_stride;
  float* scratch;             // for one thread: dim_conv_scratch() floats; unused where dim_conv_is_fast()
};

/// Gradients of the three kernels of a dimension-wise convolution over a range of images.
struct DimConvWeightGrad {
  int64_t channels, height, width, kernel;
  int branches;
  const float* x;            // (images, height, width, channels)
  const float* grad[3];      // of each branch's output, pixels `grad_stride` floats apart
  int64_t grad_stride;
  float* grad_depth;         // (k * k, channels), overwritten
  float* grad_height;        // (height, k * k)
  float* grad_width;         // (width, k * k)
  float* scratch;
};

/// Rows of the table that the fused local part takes per channel; see fold_local() for what they hold.
enum LocalRow {
  kDepthWeight = 0,
  kDepthStart = 9,
  kDepthMiddle,
  kDepthHalf,
  kHeightStart,
  kHeightMiddle,
  kHeightHalf,
  kWidthStart,
  kWidthMiddle,
  kWidthHalf,
  kJoinStart,
  kJoinMiddle,
  kJoinHalf,
  kLocalRows
};

/// The local part of a DiCE unit: three branches, norms, PReLUs, fusion of the branches, norm, PReLU.
struct Local {
  int64_t channels, height, width;
  const float* x;              // one image, pixels `x_stride` floats apart
  int64_t x_stride;
  const float* table;          // (kLocalRows, table_stride)
  int64_t table_stride;
  const float* weight_height;  // (height, 9)
  const float* weight_width;   // (width, 9)
  const float* by_height;      // scaled networks: the branches of height and width, ready made (height, width,
  const float* by_width;       // channels as in x); null where the kernels fit the map
  float* out;
  int64_t out_stride;
  int64_t next_image;          // floats to the next image, of a batch that does not fit the cache; or 0
};

/// Batch statistics and their use: x (pixels, channels), normalised, activated.
struct NormAct {
  int64_t channels;
  const float* scale;  // per channel: y = prelu(scale * x + shift)
  const float* shift;
  const float* slope;
};

/// What backward needs beside NormAct: z = scale * x + shift, xhat = (x - mean) * inverse deviation.
struct NormActGrad {
  NormAct forward;
  const float* mean;
  const float* inverse;
  const float* mean_grad;       // of dz, per channel; zero outside training
  const float* mean_grad_xhat;  // of dz * xhat
};

/// Matrix product with bias and activation: out[m][n] = act(sum_k a[m][k] * b[k][n] + bias[n]).
struct Gemm {
  int64_t rows, inner, columns;  // columns is padded
  const float* a;
  int64_t a_stride;
  const float* b;                // packed: see pack_b()
  const float* bias;             // (columns)
  const float* middle;           // (columns): slope of the PReLU as in Vec::slope(); null: none
  const float* half;
  float* out;
  int64_t out_stride;
  int64_t real = 0;              // columns without padding, if known: less to compute
};

/// Columns of one panel of a packed matrix, in vectors of kPad floats.
constexpr int64_t kPanel = 48;

/// Depth-wise convolution, 3x3, padding 1, with bias and PReLU, times a gate per channel.
struct DepthWise {
  int64_t channels, height, width, stride, out_width;  // channels padded; height, width of the input
  const float* x;
  int64_t x_stride;
  const float* weight;  // (9, channels)
  const float* bias;
  const float* middle;  // null: no activation
  const float* half;
  const float* gate;    // (channels) or null
  float* out;
  int64_t out_stride;
  const float* left = nullptr;  // interleaved with the result: out = left[0], result[0], left[1]...; or null
  int64_t left_stride = 0;
  int64_t pairs = 0;            // of them; the result's channels without padding
};

/// Any convolution of a picture with few channels, given by strides, with bias and PReLU: the stem.
struct Stem {
  int64_t in_channels, height, width, kernel, stride, padding, out_width;
  const float* x;
  int64_t channel_stride, row_stride, column_stride;
  const float* weight;  // (kernel, kernel, in_channels, out channels padded)
  const float* bias;
  const float* middle;
  const float* half;
  int64_t out_channels;  // padded; outputs lie that far apart
};

/// The local part works on so many blocks of an image's rows at most, each with sums of its own.
constexpr int64_t kLocalBlocks = 4;

constexpr int64_t local_block_rows(int64_t height) {
  return (height + kLocalBlocks - 1) / kLocalBlocks;
}

struct Kernels {
  const char* level;
  int lanes;

  /// Whether dim_conv takes the fast path; the other one needs scratch memory.
  bool (*dim_conv_is_fast)(int64_t channels, int64_t kernel);
  int64_t (*dim_conv_scratch)(int64_t channels, int64_t width, int64_t kernel);
  /// One row (image * height + row): out holds the branches one after the other, or, with `sum`, their sum.
  void (*dim_conv_row)(const DimConv&, int64_t row, bool sum);
  void (*dim_conv_weight_grad)(const DimConvWeightGrad&, int64_t first_image, int64_t last_image);
  /// Some rows; sums (channels): of the result over their pixels, overwritten.
  void (*local_rows)(const Local&, int64_t first, int64_t last, float* sums);

  /// Mean and sum of squared deviations of each channel over some pixels, in two passes.
  void (*moments)(const float* x, int64_t pixels, int64_t channels, float* mean, float* squares);
  void (*norm_act)(const NormAct&, const float* x, int64_t pixels, float* out);
  /// Sums over some pixels of dz, dz * xhat and of the slope's gradient; (3, channels), overwritten.
  void (*norm_act_grad_sums)(const NormActGrad&, const float* x, const float* grad, int64_t pixels, float* sums);
  void (*norm_act_grad)(const NormActGrad&, const float* x, const float* grad, int64_t pixels, float* out);

  /// Fusion of the branches: x (pixels, 3, channels) to (pixels, channels) with factors (3, channels), and the
  /// gradients of x and, as sums over the pixels, of the factors.
  void (*join)(const float* x, const float* factors, int64_t pixels, int64_t channels, float* out);
  void (*join_grad)(const float* x, const float* factors, const float* grad, int64_t pixels, int64_t channels,
                    float* out, float* sums);

  void (*gemm)(const Gemm&, int64_t first_row, int64_t last_row, int64_t first_panel, int64_t last_panel);
  void (*depth_wise_row)(const DepthWise&, int64_t out_row);
  void (*stem_row)(const Stem&, int64_t out_row, float* out);
  /// One row of 3x3 pooling, stride 2, padding 1, from the two or three rows under it: the maximum, or the sum
  /// divided by 9 (padding counts).
  void (*pool_row)(const float* const rows[3], int count, int64_t width, int64_t channels, bool maximum,
                   int64_t out_width, float* out);
  /// out = first[0], second[0], first[1], second[1]...; the padding behind becomes zero.
  void (*interleave)(const float* first, const float* second, int64_t pairs, float* out);
  /// NormAct on pixels that lie `x_stride` apart; a null slope leaves the activation out.
  void (*scale_shift_act)(const float* x, int64_t pixels, int64_t x_stride, int64_t channels, const NormAct&,
                          float* out, int64_t out_stride);
  float (*dot)(const float* a, const float* b, int64_t count);
  /// out = factor * x, or, unless `first`, out += factor * x; count is padded.
  void (*axpy)(const float* x, float factor, int64_t count, bool first, float* out);
};

/// The best table that this processor runs. DICENET_CPU=avx512|avx2|baseline chooses another, and
/// ATEN_CPU_CAPABILITY is obeyed as torch obeys it.
const Kernels& kernels();

/// The table of a level, or null where the processor or the build lacks it.
const Kernels* kernels_of(const char* level);

}  // namespace dicenet
