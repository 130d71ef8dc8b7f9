// Convolutions of the inference plan: 1x1 as a matrix product, depth-wise 3x3, and the stem.

namespace dicenet {
namespace DICENET_LEVEL {

/// Rows of the register tile: with three vectors of columns it leaves registers for the columns and one factor.
constexpr int kTileRows = DICENET_TILE_ROWS;

/// Half a vector, for the last channels of a padded map where more than half of a vector would be padding. Only
/// where halves are quicker: narrower levels leave whole vectors out.
using H = Vec<kLanes == 16 ? 8 : kLanes>;
constexpr int64_t kGrain = H::lanes;

/// Channels that must be computed of `columns` padded ones; what lies behind them is zero.
DICENET_INLINE int64_t computed(int64_t real, int64_t columns) {
  return real > 0 ? (real + kGrain - 1) / kGrain * kGrain : columns;
}

template <class T>
DICENET_INLINE T activate(T y, const float* middle, const float* half, int64_t c) {
  return middle ? y * y.slope(T::load(middle + c), T::load(half + c)) : y;
}

/// A tile of ROWS x VECTORS sums, and half a vector more. `b` advances `b_step` floats for each k.
template <int ROWS, int VECTORS, bool HALF>
DICENET_INLINE void gemm_tile(const Gemm& g, const float* a, const float* b, int64_t b_step, int64_t column,
                              float* out) {
  V sums[ROWS][VECTORS ? VECTORS : 1];
  H halves[ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = V::load(g.bias + column + v * kLanes);
    if constexpr (HALF) halves[r] = H::load(g.bias + column + VECTORS * kLanes);
  }
  for (int64_t k = 0; k < g.inner; ++k, b += b_step) {
    V columns[VECTORS ? VECTORS : 1];
    H half;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) columns[v] = V::load(b + v * kLanes);
    if constexpr (HALF) half = H::load(b + VECTORS * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const V factor = V::splat(a[r * g.a_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = fma(factor, columns[v], sums[r][v]);
      if constexpr (HALF) halves[r] = fma(first_lanes<H::lanes>(factor), half, halves[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    float* to = out + r * g.out_stride + column;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      activate(sums[r][v], g.middle, g.half, column + v * kLanes).store(to + v * kLanes);
    }
    if constexpr (HALF) {
      activate(halves[r], g.middle, g.half, column + VECTORS * kLanes).store(to + VECTORS * kLanes);
    }
  }
}

template <int ROWS, int VECTORS, bool HALF>
void gemm_rows(const Gemm& g, int64_t row, int64_t last, const float* b, int64_t b_step, int64_t column) {
  for (; row + ROWS <= last; row += ROWS) {
    gemm_tile<ROWS, VECTORS, HALF>(g, g.a + row * g.a_stride, b, b_step, column, g.out + row * g.out_stride);
  }
  if constexpr (ROWS > 1) {
    if (row < last) gemm_rows<ROWS / 2, VECTORS, HALF>(g, row, last, b, b_step, column);
  }
}

/// Some columns of a panel, by their number; returns how many.
DICENET_INLINE int64_t gemm_columns(const Gemm& g, int64_t first, int64_t last, const float* b, int64_t step,
                                    int64_t column, int64_t left) {
  const int64_t vectors = left / kLanes;
  if constexpr (kGrain < kLanes) {
    if (left == 2 * kLanes + kGrain) return gemm_rows<kTileRows, 2, true>(g, first, last, b, step, column), left;
    if (left == kLanes + kGrain) return gemm_rows<kTileRows, 1, true>(g, first, last, b, step, column), left;
    if (left == kGrain) return gemm_rows<kTileRows, 0, true>(g, first, last, b, step, column), left;
  }
  if (vectors >= 3 && vectors != 4) return gemm_rows<kTileRows, 3, false>(g, first, last, b, step, column), 3 * kLanes;
  if (vectors >= 2) return gemm_rows<kTileRows, 2, false>(g, first, last, b, step, column), 2 * kLanes;
  return gemm_rows<kTileRows, 1, false>(g, first, last, b, step, column), kLanes;
}

void gemm(const Gemm& g, int64_t first_row, int64_t last_row, int64_t first_panel, int64_t last_panel) {
  const int64_t wanted = computed(g.real, g.columns);
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    const int64_t start = panel * kPanel;
    const int64_t step = g.columns - start < kPanel ? g.columns - start : kPanel;
    const int64_t used = wanted - start < step ? wanted - start : step;
    for (int64_t c = 0; c < used;) {
      c += gemm_columns(g, first_row, last_row, g.b + start * g.inner + c, step, start + c, used - c);
    }
    for (int64_t row = first_row; used < step && row < last_row; ++row) {
      std::memset(g.out + row * g.out_stride + start + used, 0, (step - used) * sizeof(float));
    }
  }
}

template <bool ACTIVATE, bool GATE>
void depth_wise_row_of(const DepthWise& a, int64_t h) {
  const int64_t row = a.width * a.x_stride;
  float* out = a.out + h * a.out_width * a.out_stride;
  each_vector(a.channels, [&](auto, int64_t c) {
    const V bias = V::load(a.bias + c);
    const V middle = ACTIVATE ? V::load(a.middle + c) : bias, half = ACTIVATE ? V::load(a.half + c) : bias;
    const V gate = GATE ? V::load(a.gate + c) : bias;
    // shuffled: the map holds 2 * pairs channels and zeros, and the other half may go on behind its pairs
    const bool whole = 2 * c + kLanes < a.out_stride;
    const float* left = a.left ? a.left + h * a.out_width * a.left_stride + c : nullptr;
    const auto emit = [&](int64_t w, V y, V, V) {
      if constexpr (ACTIVATE) y = y * y.slope(middle, half);
      if constexpr (GATE) y = y * gate;
      if (!left) return y.store(out + w * a.out_stride + c);
      if (2 * c >= a.out_stride) return;  // padding that the shuffled map does not have
      const V other = keep_below(V::load(left + w * a.left_stride), a.pairs - c);
      store_interleaved(other, y, whole, out + w * a.out_stride + 2 * c);
    };
    if (a.stride == 1) {
      const float* source[3] = {a.x + h * row + c, nullptr, nullptr};
      const RowKernels kernels{a.weight + c, a.channels, nullptr, nullptr, bias, bias, bias};
      walk_any_row<kDepth, kInside, true, false>(source, a.x_stride, row, a.width, h > 0, h + 1 < a.height, kernels,
                                        emit);
      return;
    }
    V kernel[9];
    for (int i = 0; i < 9; ++i) kernel[i] = V::load(a.weight + i * a.channels + c);
    for (int64_t w = 0; w < a.out_width; ++w) {
      V y = bias;
      for (int i = 0; i < 3; ++i) {
        const int64_t in_row = h * a.stride + i - 1;
        if (in_row < 0 || in_row >= a.height) continue;
        for (int j = 0; j < 3; ++j) {
          const int64_t in_column = w * a.stride + j - 1;
          if (in_column < 0 || in_column >= a.width) continue;
          y = fma(kernel[3 * i + j], V::load(a.x + in_row * row + in_column * a.x_stride + c), y);
        }
      }
      emit(w, y, y, y);
    }
  });
}

void depth_wise_row(const DepthWise& a, int64_t h) {
  if (a.middle && a.gate) return depth_wise_row_of<true, true>(a, h);
  if (a.middle) return depth_wise_row_of<true, false>(a, h);
  if (a.gate) return depth_wise_row_of<false, true>(a, h);
  depth_wise_row_of<false, false>(a, h);
}

/// COLUMNS neighbouring outputs that lie inside the picture with all their taps, VECTORS of channels each. USUAL: 3x3
/// over three channels, unrolled.
template <int COLUMNS, int VECTORS, bool USUAL>
DICENET_INLINE void stem_tile(const Stem& a, int64_t h, int64_t w, int64_t c, float* out) {
  V sums[COLUMNS][VECTORS];
#pragma GCC unroll 8
  for (int t = 0; t < COLUMNS; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sums[t][v] = V::load(a.bias + c + v * kLanes);
  }
  const int64_t left = w * a.stride - a.padding, step = a.stride * a.column_stride;
  const int64_t kernel = USUAL ? 3 : a.kernel, in_channels = USUAL ? 3 : a.in_channels;
  for (int64_t i = 0; i < kernel; ++i) {
    const int64_t row = h * a.stride + i - a.padding;
    if (row < 0 || row >= a.height) continue;
#pragma GCC unroll 3
    for (int64_t j = 0; j < kernel; ++j) {
      // only tiles of one column may lie at the edge
      if (COLUMNS == 1 && (left + j < 0 || left + j >= a.width)) continue;
      const float* x = a.x + row * a.row_stride + (left + j) * a.column_stride;
      const float* weight = a.weight + (i * kernel + j) * in_channels * a.out_channels + c;
#pragma GCC unroll 4
      for (int64_t channel = 0; channel < in_channels; ++channel, weight += a.out_channels) {
        V k[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) k[v] = V::load(weight + v * kLanes);
        const float* at = x + channel * a.channel_stride;
#pragma GCC unroll 8
        for (int t = 0; t < COLUMNS; ++t, at += step) {
          const V factor = V::splat(*at);
#pragma GCC unroll 4
          for (int v = 0; v < VECTORS; ++v) sums[t][v] = fma(factor, k[v], sums[t][v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < COLUMNS; ++t) {
    float* to = out + (w + t) * a.out_channels + c;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      activate(sums[t][v], a.middle, a.half, c + v * kLanes).store(to + v * kLanes);
    }
  }
}

template <int VECTORS>
void stem_columns(const Stem& a, int64_t h, int64_t c, float* out) {
  constexpr int kColumns = kTileRows;
  const auto inside = [&](int64_t w) {
    const int64_t left = w * a.stride - a.padding, right = left + (kColumns - 1) * a.stride + a.kernel;
    return left >= 0 && right <= a.width && w + kColumns <= a.out_width;
  };
  for (int64_t w = 0; w < a.out_width;) {
    const int64_t back = a.out_width - kColumns;  // columns too few for a tile are computed again with those before
    if (inside(w) || (w > back && inside(back))) {
      w = std::min(w, back);
      if (a.kernel == 3 && a.in_channels == 3) {
        stem_tile<kColumns, VECTORS, true>(a, h, w, c, out);
      } else {
        stem_tile<kColumns, VECTORS, false>(a, h, w, c, out);
      }
      w += kColumns;
    } else {
      stem_tile<1, VECTORS, false>(a, h, w, c, out);
      ++w;
    }
  }
}

void stem_row(const Stem& a, int64_t h, float* out) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= a.out_channels; c += 2 * kLanes) stem_columns<2>(a, h, c, out);
  if (c < a.out_channels) stem_columns<1>(a, h, c, out);
}

}  // namespace DICENET_LEVEL
}  // namespace dicenet
