// A plan: a network, or part of one, as a flat list of steps over one block of memory, the arena. Everything in it
// is decided beforehand (dicenet.optimize), so that running it is a loop.
//
// A map lies in the arena channels-last, its channels padded with zeros to a multiple of kPad. All places are
// counted in floats: those of maps from the arena's beginning, those of weights from the beginning of the packed
// weights.
#pragma once

#include <cstdint>
#include <vector>

namespace dicenet {

/// The same numbers are in dicenet/optimize/steps.py.
enum class Kind : int64_t {
  kLoad = 0,      // input `input` of the plan to out
  kStore,         // x to output `input` of the plan
  kStem,          // convolution of input `input`, read by its strides
  kMaxPool,       // 3x3, stride 2, padding 1
  kAveragePool,   // the same; padding counts
  kGemm,          // 1x1 convolution, bias, PReLU
  kDepthWise,     // 3x3, bias, PReLU, times gate; with second, that and the result channel by channel
  kLocal,         // local part of a DiCE unit; second: sums over its blocks of rows (local_block_rows)
  kMean,          // over `height` x `width` vectors; `count` values make the mean
  kSigmoid,
  kInterleave,    // x and second, channel by channel
  kCopy,          // channels of x to out at any channel: one part of a concatenation
  kNormAct,       // scale, shift, PReLU
  kAdd,           // x + second
  kMultiply,      // x times the vector second
  kResizeRows,    // every row a weighted sum of rows of x
  kResizeColumns,
  kDimConv,       // height (`kernel` 2) or width (4) branch alone
  kStemPool,      // kStem and kMaxPool in one: the rows between them are few and never leave the cache
};

/// One step. Places that a step does not have are negative.
///
/// Small maps are worked on for some images at a time: weights are then fetched once for all of them, and matrices
/// have more rows. Their buffers hold one map after the other, `..._image` floats apart; where that is 0, the
/// buffer belongs to the image under way.
struct Step {
  Kind kind;
  int64_t input;                                   // number of the plan's input or output
  int64_t x, x_stride;                             // first operand, floats between pixels
  int64_t second, second_stride;                   // second operand
  int64_t out, out_stride;
  int64_t channels, height, width;                 // of x; channels as the step reads them
  int64_t out_channels, out_height, out_width;     // out_channels padded
  int64_t kernel, stride, padding, count;          // count: outputs or pairs without padding, and see the kinds
  int64_t weight, bias, middle, half, gate;        // places of weights, but gate: a vector in the arena
  int64_t third, fourth;                           // local: the ready branches of height and width
  int64_t x_image, second_image, out_image, gate_image, third_image, fourth_image;
};

constexpr int64_t kStepFields = sizeof(Step) / sizeof(int64_t);

/// A tensor outside the plan: a picture or map (images, channels, height, width) with any strides.
struct Outside {
  float* data;
  int64_t image_stride, channel_stride, row_stride, column_stride;
};

struct Plan {
  const Step* steps;
  int64_t count;
  const float* weights;
  int64_t arena;           // floats
  int64_t group = 1;       // images that go through the last steps together
  int64_t group_from = 0;  // the first of these steps
};

/// Runs the plan for every image. May be called from several threads at a time: an arena belongs to a call.
void run_plan(const Plan&, const std::vector<Outside>& inputs, const std::vector<Outside>& outputs, int64_t images);

}  // namespace dicenet
