// Dimension-wise convolution and its gradients.
//
// In channels-last memory all three branches are stencils over the same loaded vectors: the depth branch over
// (row, column) with weights by channel, the height branch over (channel, column) with weights by row, the width
// branch over (row, channel) with weights by column. A neighbouring channel is an unaligned load of the same
// pixel; at a map's first and last channel it is the pixel itself, shifted, with zero moved in.

namespace dicenet {
namespace DICENET_LEVEL {

using V = Vec<DICENET_LANES>;
constexpr int64_t kLanes = DICENET_LANES;

template <int... I>
DICENET_INLINE void store_interleaved(V a, V b, bool whole, float* out, std::integer_sequence<int, I...>) {
  V{__builtin_shufflevector(a.v, b.v, (I % 2 * kLanes + I / 2)...)}.store(out);
  if (whole) V{__builtin_shufflevector(a.v, b.v, (I % 2 * kLanes + kLanes / 2 + I / 2)...)}.store(out + kLanes);
}

/// a[0], b[0], a[1], b[1]...: both vectors of them, or the first one alone.
DICENET_INLINE void store_interleaved(V a, V b, bool whole, float* out) {
  store_interleaved(a, b, whole, out, std::make_integer_sequence<int, kLanes>{});
}

/// The same address, of which the compiler believes that it may change here. Otherwise it takes the addresses of nine
/// weights out of a loop, has no registers for them, and fetches each one from where it was put.
DICENET_INLINE const float* stays_one_address(const float* p) {
  asm("" : "+r"(p));
  return p;
}

/// A vector of channels with those one channel before and behind.
struct Pixel {
  V left, middle, right;
};

/// Whether a vector of channels begins or ends its map.
enum Edge { kInside = 0, kFirst = 1, kLast = 2 };

template <int EDGE>
DICENET_INLINE Pixel load_pixel(const float* p) {
  const V middle = V::load(p);
  Pixel pixel{middle, middle, middle};
  if constexpr (EDGE & kFirst) {
    pixel.left = shift_in_first(middle);
  } else {
    pixel.left = V::load(p - 1);
  }
  if constexpr (EDGE & kLast) {
    pixel.right = shift_in_last(middle);
  } else {
    pixel.right = V::load(p + 1);
  }
  return pixel;
}

/// Calls body(edge as a constant, channel) for vectors that cover the channels. The last one ends with the map:
/// some channels may be computed twice, with equal results, and nothing beyond the map is touched.
template <class Body>
DICENET_INLINE void each_vector(int64_t channels, const Body& body) {
  if (channels == kLanes) return body(std::integral_constant<int, kFirst | kLast>{}, int64_t{0});
  body(std::integral_constant<int, kFirst>{}, int64_t{0});
  int64_t c = kLanes;
  for (; c + kLanes < channels; c += kLanes) body(std::integral_constant<int, kInside>{}, c);
  body(std::integral_constant<int, kLast>{}, channels - kLanes);
}

/// Kernels of one row of a map, and where the sums start.
struct RowKernels {
  const float* depth;    // of this vector of channels
  int64_t depth_stride;
  const float* height;   // of this row: 9
  const float* width;    // of all columns: 9 each
  V start_depth, start_height, start_width;
  int64_t ahead = 0;     // floats from a row to the one that will be read after the next: it is fetched meanwhile
};

/// Walks along a row, for one vector of channels, and calls emit(column, depth, height, width) with the branches' sums. Every input is loaded
/// once: the sums of three neighbouring columns are under way at a time. FETCH brings the lines that come next into
/// the cache: in a large map a row's pixels are too far apart for the processor to see the pattern by itself.
template <int BRANCHES, bool UP, bool DOWN, int EDGE, bool SHARED, bool FETCH, class Emit>
DICENET_INLINE void walk_row(const float* const source[3], int64_t pixel, int64_t row, int64_t columns,
                             const RowKernels& kernels, const Emit& emit) {
  V kd[9];
  if constexpr (BRANCHES & kDepth) {
    for (int i = 0; i < 9; ++i) kd[i] = V::load(kernels.depth + i * kernels.depth_stride);
  }
  const float* kw = kernels.width;
  V depth0 = kernels.start_depth, depth1 = depth0;
  V height0 = kernels.start_height, height1 = height0;
  V width0 = V::zero();
  const auto depth_taps = [&](V x, int i, V& next) {
    depth0 = fma(kd[3 * i + 2], x, depth0);
    depth1 = fma(kd[3 * i + 1], x, depth1);
    next = fma(kd[3 * i], x, next);
  };
  const auto width_taps = [&](const Pixel& x, int i, V& sum) {
    sum = fma_at(kw + 3 * i, x.left, sum);
    sum = fma_at(kw + 3 * i + 1, x.middle, sum);
    sum = fma_at(kw + 3 * i + 2, x.right, sum);
  };
  for (int64_t w = 0; w < columns; ++w, kw += BRANCHES & kWidth ? 9 : 0) {
    V depth2 = kernels.start_depth, height2 = kernels.start_height, width1 = kernels.start_width;
    const auto take = [&](int64_t offset, int i) {
      const int64_t at = w * pixel + offset;
      if constexpr (SHARED) {
        if constexpr (BRANCHES == kDepth) {
          depth_taps(V::load(source[0] + at), i, depth2);
        } else {
          const Pixel x = load_pixel<EDGE>(source[0] + at);
          if constexpr (BRANCHES & kDepth) depth_taps(x.middle, i, depth2);
          if constexpr (BRANCHES & kWidth) width_taps(x, i, width1);
        }
      } else {
        if constexpr (BRANCHES & kDepth) depth_taps(V::load(source[0] + at), i, depth2);
        if constexpr (BRANCHES & kWidth) width_taps(load_pixel<EDGE>(source[2] + at), i, width1);
      }
    };
    if constexpr ((BRANCHES & (kDepth | kWidth)) != 0) {
      if constexpr (UP) take(-row, 0);
      take(0, 1);
      if constexpr (DOWN) {
        take(row, 2);
        if constexpr (FETCH) {
          __builtin_prefetch(source[SHARED || (BRANCHES & kDepth) ? 0 : 2] + w * pixel + kernels.ahead);
        }
        if constexpr (FETCH && !SHARED && (BRANCHES & kDepth) && (BRANCHES & kWidth)) {
          __builtin_prefetch(source[2] + w * pixel + kernels.ahead);
        }
      }
    }
    if constexpr (BRANCHES & kHeight) {
      const Pixel x = load_pixel<EDGE>(source[SHARED ? 0 : 1] + w * pixel);
      if constexpr (FETCH && !SHARED) __builtin_prefetch(source[1] + w * pixel + row);
      const V taps[3] = {x.left, x.middle, x.right};
      const float* k = stays_one_address(kernels.height);
      for (int i = 0; i < 3; ++i) {
        height0 = fma_at(k + 3 * i + 2, taps[i], height0);
        height1 = fma_at(k + 3 * i + 1, taps[i], height1);
        height2 = fma_at(k + 3 * i, taps[i], height2);
      }
    }
    if (w > 0) emit(w - 1, depth0, height0, width0);
    depth0 = depth1, depth1 = depth2;
    height0 = height1, height1 = height2;
    width0 = width1;
  }
  emit(columns - 1, depth0, height0, width0);
}

/// walk_row for a row that may be the map's first or last.
template <int BRANCHES, int EDGE, bool SHARED, bool FETCH, class Emit>
DICENET_INLINE void walk_any_row(const float* const source[3], int64_t pixel, int64_t row, int64_t columns, bool up,
                                 bool down, const RowKernels& kernels, const Emit& emit) {
  if constexpr (BRANCHES == kHeight) {
    walk_row<BRANCHES, false, false, EDGE, SHARED, FETCH>(source, pixel, row, columns, kernels, emit);
  } else if (up && down) {
    walk_row<BRANCHES, true, true, EDGE, SHARED, FETCH>(source, pixel, row, columns, kernels, emit);
  } else if (up) {
    walk_row<BRANCHES, true, false, EDGE, SHARED, FETCH>(source, pixel, row, columns, kernels, emit);
  } else if (down) {
    walk_row<BRANCHES, false, true, EDGE, SHARED, FETCH>(source, pixel, row, columns, kernels, emit);
  } else {
    walk_row<BRANCHES, false, false, EDGE, SHARED, FETCH>(source, pixel, row, columns, kernels, emit);
  }
}

template <int BRANCHES, bool SUM>
void fast_row(const DimConv& a, int64_t image_row) {
  const int64_t h = image_row % a.height;
  const int64_t row = a.width * a.source_stride;
  float* out = a.out + image_row * a.width * a.out_stride;
  each_vector(a.channels, [&](auto edge, int64_t channel) {
    const float* source[3];
    for (int b = 0; b < 3; ++b) source[b] = a.source[b] ? a.source[b] + image_row * row + channel : nullptr;
    const RowKernels kernels{a.weight_depth ? a.weight_depth + channel : nullptr, a.channels,
                             a.weight_height ? a.weight_height + h * 9 : nullptr, a.weight_width,
                             V::zero(), V::zero(), V::zero(), 2 * row};
    walk_any_row<BRANCHES, decltype(edge)::value, !SUM, true>(
        source, a.source_stride, row, a.width, h > 0, h + 1 < a.height, kernels,
        [&](int64_t w, V depth, V height, V width) {
          float* p = out + w * a.out_stride + channel;
          const float* next = p + a.width * a.out_stride;  // as walk_row fetches what it reads
          __builtin_prefetch(next, 1);
          if constexpr (!SUM) {
            __builtin_prefetch(next + a.channels, 1);
            __builtin_prefetch(next + 2 * a.channels, 1);
          }
          if constexpr (SUM) {
            V sum = V::zero();
            if constexpr (BRANCHES & kDepth) sum += depth;
            if constexpr (BRANCHES & kHeight) sum += height;
            if constexpr (BRANCHES & kWidth) sum += width;
            sum.store(p);
          } else {
            if constexpr (BRANCHES & kDepth) depth.store(p), p += a.channels;
            if constexpr (BRANCHES & kHeight) height.store(p), p += a.channels;
            if constexpr (BRANCHES & kWidth) width.store(p);
          }
        });
  });
}

// -- any kernel size, any number of channels: rows are copied with zeros around the channels

int64_t scratch_pixel(int64_t channels, int64_t kernel) {
  return channels + kernel - 1 + kLanes;
}

int64_t dim_conv_scratch(int64_t channels, int64_t width, int64_t kernel) {
  return 3 * kernel * width * scratch_pixel(channels, kernel);
}

/// Copies the rows around row h of an image; rows outside the map are left out.
void copy_rows(const float* image, int64_t stride, int64_t channels, int64_t height, int64_t width, int64_t kernel,
               int64_t h, float* scratch) {
  const int64_t pixel = scratch_pixel(channels, kernel), reach = kernel / 2;
  for (int64_t i = 0; i < kernel; ++i) {
    const int64_t row = h + i - reach;
    if (row < 0 || row >= height) continue;
    for (int64_t w = 0; w < width; ++w) {
      float* p = scratch + (i * width + w) * pixel;
      std::memset(p, 0, reach * sizeof(float));
      std::memcpy(p + reach, image + (row * width + w) * stride, channels * sizeof(float));
      std::memset(p + reach + channels, 0, (reach + kLanes) * sizeof(float));
    }
  }
}

/// The first `count` lanes of a vector, without touching what lies behind.
DICENET_INLINE void store_part(V v, int64_t count, float* p) {
  if (count >= kLanes) {
    v.store(p);
  } else {
    float all[kLanes];
    v.store(all);
    std::memcpy(p, all, count * sizeof(float));
  }
}

DICENET_INLINE V load_part(const float* p, int64_t count) {
  if (count >= kLanes) return V::load(p);
  float all[kLanes] = {};
  std::memcpy(all, p, count * sizeof(float));
  return V::load(all);
}

/// Calls tap(index of kernel row, index of kernel column, place in the copied rows less the channel) for every
/// place that lies inside the map.
template <class Tap>
DICENET_INLINE void each_tap(int branch, int64_t kernel, int64_t height, int64_t width, int64_t pixel, int64_t h,
                             int64_t w, const Tap& tap) {
  const int64_t reach = kernel / 2;
  for (int64_t i = 0; i < kernel; ++i) {
    for (int64_t j = 0; j < kernel; ++j) {
      // offsets of row, column and channel, by which dimension the two axes of the branch's kernels are
      const int64_t row = branch == kHeight ? 0 : i - reach;
      const int64_t column = branch == kWidth ? 0 : j - reach;
      const int64_t channel = branch == kDepth ? 0 : (branch == kHeight ? i : j) - reach;
      if (h + row < 0 || h + row >= height || w + column < 0 || w + column >= width) continue;
      tap(i * kernel + j, ((row + reach) * width + w + column) * pixel + reach + channel);
    }
  }
}

void any_row(const DimConv& a, int64_t image_row, bool sum) {
  const int64_t h = image_row % a.height, image = image_row / a.height, taps = a.kernel * a.kernel;
  const int64_t pixel = scratch_pixel(a.channels, a.kernel), part = a.kernel * a.width * pixel;
  int copied = -1;  // the branch whose copy all share where they read the same map
  const float* rows_of[3] = {};
  for (int b = 0; b < 3; ++b) {
    if (!(a.branches >> b & 1)) continue;
    if (copied >= 0 && a.source[b] == a.source[copied]) {
      rows_of[b] = rows_of[copied];
      continue;
    }
    copied = b;
    rows_of[b] = a.scratch + b * part;
    copy_rows(a.source[b] + image * a.height * a.width * a.source_stride, a.source_stride, a.channels, a.height,
              a.width, a.kernel, h, a.scratch + b * part);
  }
  for (int64_t w = 0; w < a.width; ++w) {
    for (int64_t c = 0; c < a.channels; c += kLanes) {
      const int64_t count = a.channels - c;
      float* p = a.out + (image_row * a.width + w) * a.out_stride + c;
      V total = V::zero();
      for (int b = 0; b < 3; ++b) {
        if (!(a.branches >> b & 1)) continue;
        const float* rows = rows_of[b] + c;
        V branch = V::zero();
        each_tap(1 << b, a.kernel, a.height, a.width, pixel, h, w, [&](int64_t k, int64_t at) {
          const V x = V::load(rows + at);
          if (b == 0) branch = fma(load_part(a.weight_depth + k * a.channels + c, count), x, branch);
          if (b == 1) branch = fma_at(a.weight_height + h * taps + k, x, branch);
          if (b == 2) branch = fma_at(a.weight_width + w * taps + k, x, branch);
        });
        if (!sum) store_part(branch, count, p), p += a.channels;
        total += branch;
      }
      if (sum) store_part(total, count, p);
    }
  }
}

bool dim_conv_is_fast(int64_t channels, int64_t kernel) {
  return kernel == 3 && channels >= kLanes;
}

template <bool SUM>
void row_by_branches(const DimConv& a, int64_t row) {
  switch (a.branches) {
    case kDepth:
      return fast_row<kDepth, SUM>(a, row);
    case kHeight:
      return fast_row<kHeight, SUM>(a, row);
    case kWidth:
      return fast_row<kWidth, SUM>(a, row);
    case kDepth | kHeight:
      return fast_row<kDepth | kHeight, SUM>(a, row);
    case kDepth | kWidth:
      return fast_row<kDepth | kWidth, SUM>(a, row);
    case kHeight | kWidth:
      return fast_row<kHeight | kWidth, SUM>(a, row);
    case kAllBranches:
      return fast_row<kAllBranches, SUM>(a, row);
  }
}

void dim_conv_row(const DimConv& a, int64_t row, bool sum) {
  if (!dim_conv_is_fast(a.channels, a.kernel)) {
    any_row(a, row, sum);
  } else if (sum) {
    row_by_branches<true>(a, row);
  } else {
    row_by_branches<false>(a, row);
  }
}

// -- gradients of the kernels

/// Sums grad * x over a line of pixels into sums[channel offset][position offset], for the height branch (the line
/// is a row) and the width branch (it is a column). `skip` lanes were counted by the vector before. The next line,
/// `x_ahead` and `grad_ahead` floats further, is fetched meanwhile.
template <int EDGE>
DICENET_INLINE void grad_line(const float* x, int64_t x_step, int64_t x_ahead, const float* grad, int64_t grad_step,
                              int64_t grad_ahead, int64_t count, int skip, V sums[9]) {
  Pixel before{V::zero(), V::zero(), V::zero()};
  Pixel here = load_pixel<EDGE>(x);
  for (int64_t i = 0; i < count; ++i) {
    Pixel behind{V::zero(), V::zero(), V::zero()};
    if (i + 1 < count) behind = load_pixel<EDGE>(x + (i + 1) * x_step);
    V g = V::load(grad + i * grad_step);
    __builtin_prefetch(x + i * x_step + x_ahead);
    __builtin_prefetch(grad + i * grad_step + grad_ahead);
    if (EDGE & kLast) g = keep_from(g, skip);
    const Pixel* window[3] = {&before, &here, &behind};
    for (int j = 0; j < 3; ++j) {
      sums[j] = fma(g, window[j]->left, sums[j]);
      sums[3 + j] = fma(g, window[j]->middle, sums[3 + j]);
      sums[6 + j] = fma(g, window[j]->right, sums[6 + j]);
    }
    before = here;
    here = behind;
  }
}

/// The same for the depth branch: sums[row offset][column offset] over one row.
template <bool UP, bool DOWN>
DICENET_INLINE void grad_plane_row(const float* x, int64_t pixel, int64_t row, const float* grad, int64_t grad_step,
                                   int64_t columns, V sums[9]) {
  const auto load = [&](int64_t w, V column[3]) {
    column[0] = UP ? V::load(x + w * pixel - row) : V::zero();
    column[1] = V::load(x + w * pixel);
    column[2] = DOWN ? V::load(x + w * pixel + row) : V::zero();
  };
  V before[3] = {V::zero(), V::zero(), V::zero()}, here[3], behind[3];
  load(0, here);
  for (int64_t w = 0; w < columns; ++w) {
    if (w + 1 < columns) {
      load(w + 1, behind);
    } else {
      behind[0] = behind[1] = behind[2] = V::zero();
    }
    const V g = V::load(grad + w * grad_step);
    __builtin_prefetch(x + w * pixel + 2 * row);
    __builtin_prefetch(grad + (w + columns) * grad_step);
    for (int i = 0; i < 3; ++i) {
      if ((i == 0 && !UP) || (i == 2 && !DOWN)) continue;
      sums[3 * i] = fma(g, before[i], sums[3 * i]);
      sums[3 * i + 1] = fma(g, here[i], sums[3 * i + 1]);
      sums[3 * i + 2] = fma(g, behind[i], sums[3 * i + 2]);
    }
    for (int i = 0; i < 3; ++i) before[i] = here[i], here[i] = behind[i];
  }
}

void fast_grad_depth(const DimConvWeightGrad& a, int64_t first, int64_t last) {
  const int64_t row = a.width * a.channels, grad_row = a.width * a.grad_stride;
  each_vector(a.channels, [&](auto, int64_t channel) {
    V sums[9] = {};
    for (int64_t r = first * a.height; r < last * a.height; ++r) {
      const float* x = a.x + r * row + channel;
      const float* grad = a.grad[0] + r * grad_row + channel;
      const bool up = r % a.height > 0, down = r % a.height + 1 < a.height;
      if (up && down) {
        grad_plane_row<true, true>(x, a.channels, row, grad, a.grad_stride, a.width, sums);
      } else if (up) {
        grad_plane_row<true, false>(x, a.channels, row, grad, a.grad_stride, a.width, sums);
      } else if (down) {
        grad_plane_row<false, true>(x, a.channels, row, grad, a.grad_stride, a.width, sums);
      } else {
        grad_plane_row<false, false>(x, a.channels, row, grad, a.grad_stride, a.width, sums);
      }
    }
    for (int i = 0; i < 9; ++i) sums[i].store(a.grad_depth + i * a.channels + channel);
  });
}

/// Height (lines are rows) or width (lines are columns): one set of nine sums per line.
template <bool ROWS>
void fast_grad_lines(const DimConvWeightGrad& a, int64_t first, int64_t last) {
  const int64_t image = a.height * a.width;
  const int64_t lines = ROWS ? a.height : a.width, count = ROWS ? a.width : a.height;
  const int64_t line_step = ROWS ? a.width : 1, step = ROWS ? 1 : a.width;
  for (int64_t line = 0; line < lines; ++line) {
    V sums[9] = {};
    for (int64_t n = first; n < last; ++n) {
      const int64_t at = n * image + line * line_step;
      int64_t covered = 0;
      each_vector(a.channels, [&](auto edge, int64_t channel) {
        const int skip = static_cast<int>(covered - channel);
        grad_line<decltype(edge)::value>(a.x + at * a.channels + channel, step * a.channels, line_step * a.channels,
                                         a.grad[ROWS ? 1 : 2] + at * a.grad_stride + channel, step * a.grad_stride,
                                         line_step * a.grad_stride, count, skip, sums);
        covered = channel + kLanes;
      });
    }
    for (int offset = 0; offset < 3; ++offset) {
      for (int position = 0; position < 3; ++position) {
        const float sum = sums[3 * offset + position].sum();
        if (ROWS) {
          a.grad_height[line * 9 + 3 * offset + position] = sum;
        } else {
          a.grad_width[line * 9 + 3 * position + offset] = sum;
        }
      }
    }
  }
}

void any_weight_grad(const DimConvWeightGrad& a, int64_t first, int64_t last) {
  const int64_t taps = a.kernel * a.kernel, pixel = scratch_pixel(a.channels, a.kernel);
  if (a.branches & kDepth) std::memset(a.grad_depth, 0, taps * a.channels * sizeof(float));
  if (a.branches & kHeight) std::memset(a.grad_height, 0, taps * a.height * sizeof(float));
  if (a.branches & kWidth) std::memset(a.grad_width, 0, taps * a.width * sizeof(float));
  for (int64_t row = first * a.height; row < last * a.height; ++row) {
    const int64_t h = row % a.height;
    copy_rows(a.x + (row - h) * a.width * a.channels, a.channels, a.channels, a.height, a.width, a.kernel, h,
              a.scratch);
    for (int64_t w = 0; w < a.width; ++w) {
      for (int64_t c = 0; c < a.channels; c += kLanes) {
        const int64_t count = a.channels - c;
        for (int b = 0; b < 3; ++b) {
          if (!(a.branches >> b & 1)) continue;
          const V g = load_part(a.grad[b] + (row * a.width + w) * a.grad_stride + c, count);
          each_tap(1 << b, a.kernel, a.height, a.width, pixel, h, w, [&](int64_t k, int64_t at) {
            const V product = g * V::load(a.scratch + at + c);
            float* depth = a.grad_depth + k * a.channels + c;
            if (b == 0) store_part(load_part(depth, count) + product, count, depth);
            if (b == 1) a.grad_height[h * taps + k] += product.sum();
            if (b == 2) a.grad_width[w * taps + k] += product.sum();
          });
        }
      }
    }
  }
}

void dim_conv_weight_grad(const DimConvWeightGrad& a, int64_t first, int64_t last) {
  if (!dim_conv_is_fast(a.channels, a.kernel)) return any_weight_grad(a, first, last);
  if (a.branches & kDepth) fast_grad_depth(a, first, last);
  if (a.branches & kHeight) fast_grad_lines<true>(a, first, last);
  if (a.branches & kWidth) fast_grad_lines<false>(a, first, last);
}

// -- the local part of a unit, for inference

/// Maps up to this width take all rows for one vector of channels before the next one, so that its kernels and its
/// share of the table are loaded once; wider ones go row by row, so that a row's lines stay in the cache.
constexpr int64_t kNarrow = 16;
/// A batch of maps up to this width stays in the last cache: there the lines of the vector after the next come next,
/// in larger ones those of the next image.
constexpr int64_t kNarrowest = 8;

/// Some rows of one vector of channels; returns the sums over their pixels.
template <bool READY, bool NARROW, bool FETCH, int EDGE>
DICENET_INLINE V local_vector(const Local& a, int64_t first, int64_t last, int64_t channel) {
  const int64_t row = a.width * a.x_stride;
  const auto of = [&](int r) { return V::load(a.table + r * a.table_stride + channel); };
  const V depth_middle = of(kDepthMiddle), depth_half = of(kDepthHalf);
  const V height_middle = of(kHeightMiddle), height_half = of(kHeightHalf);
  const V width_middle = of(kWidthMiddle), width_half = of(kWidthHalf);
  const V join_start = of(kJoinStart), join_middle = of(kJoinMiddle), join_half = of(kJoinHalf);
  const V start_height = of(kHeightStart), start_width = of(kWidthStart);
  V sum = V::zero();
  const int64_t narrow_ahead = a.width <= kNarrowest ? 2 * kLanes : a.next_image;
  const int64_t out_stride = a.out_stride;  // of its own: a store might change what `a` refers to
  for (int64_t h = first; h < last; ++h) {
    float* out = a.out + h * a.width * out_stride + channel;
    const float* next = out + (NARROW ? narrow_ahead : a.width * out_stride);
    const auto emit = [&](int64_t w, V depth, V height, V width) {
      if constexpr (READY) {
        const int64_t at = (h * a.width + w) * a.x_stride + channel;
        height = start_height + V::load(a.by_height + at);
        width = start_width + V::load(a.by_width + at);
      }
      V y = fma(depth, depth.slope(depth_middle, depth_half), join_start);
      y = fma(height, height.slope(height_middle, height_half), y);
      y = fma(width, width.slope(width_middle, width_half), y);
      y = y * y.slope(join_middle, join_half);
      y.store(out + w * out_stride);
      if constexpr (FETCH) __builtin_prefetch(next + w * out_stride, 1);
      sum += y;
    };
    const float* source[3] = {a.x + h * row + channel, nullptr, nullptr};
    const RowKernels kernels{a.table + channel, a.table_stride, a.weight_height + h * 9,
                             a.weight_width,    of(kDepthStart), start_height,
                             start_width,       NARROW ? row + narrow_ahead : 2 * row};
    walk_any_row<READY ? kDepth : kAllBranches, EDGE, true, FETCH>(source, a.x_stride, row, a.width, h > 0,
                                                                   h + 1 < a.height, kernels, emit);
  }
  return sum;
}

template <bool READY, bool NARROW, bool FETCH>
void local_rows_of(const Local& a, int64_t first, int64_t last, float* sums) {
  const int64_t each = NARROW ? last - first : 1;
  for (int64_t h = first; h < last; h += each) {
    int64_t covered = 0;  // channels whose sums have these rows in them
    each_vector(a.channels, [&](auto edge, int64_t channel) {
      V sum = local_vector<READY, NARROW, FETCH, decltype(edge)::value>(a, h, h + each, channel);
      if (h > first) sum = V::load(sums + channel) + keep_from(sum, static_cast<int>(covered - channel));
      sum.store(sums + channel);
      covered = channel + kLanes;
    });
  }
}

void local_rows(const Local& a, int64_t first, int64_t last, float* sums) {
  const bool narrow = a.width <= kNarrow;
  if (a.by_height) {
    narrow ? local_rows_of<true, true, false>(a, first, last, sums)
           : local_rows_of<true, false, false>(a, first, last, sums);
  } else if (a.next_image) {
    narrow ? local_rows_of<false, true, true>(a, first, last, sums)
           : local_rows_of<false, false, true>(a, first, last, sums);
  } else {
    narrow ? local_rows_of<false, true, false>(a, first, last, sums)
           : local_rows_of<false, false, false>(a, first, last, sums);
  }
}

}  // namespace DICENET_LEVEL
}  // namespace dicenet
