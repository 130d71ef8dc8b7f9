// Convolutions of the inference plan: 1x1 as a matrix product, depth-wise 3x3, and the stem.

namespace dicenet {
namespace DICENET_LEVEL {

/// Rows of the register tile: with three vectors of columns it leaves registers for the columns and one factor.
constexpr int kTileRows = DICENET_TILE_ROWS;

DICENET_INLINE V activate(V y, const float* middle, const float* half, int64_t c) {
  return middle ? y * y.slope(V::load(middle + c), V::load(half + c)) : y;
}

/// A tile of ROWS x VECTORS sums. `b` advances `b_step` floats for each k.
template <int ROWS, int VECTORS>
DICENET_INLINE void gemm_tile(const Gemm& g, const float* a, const float* b, int64_t b_step, int64_t column,
                              float* out) {
  V sums[ROWS][VECTORS];
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    const V start = V::load(g.bias + column + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) sums[r][v] = start;
  }
  for (int64_t k = 0; k < g.inner; ++k, b += b_step) {
    V columns[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) columns[v] = V::load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const V factor = V::splat(a[r * g.a_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = fma(factor, columns[v], sums[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    const int64_t c = column + v * kLanes;
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) activate(sums[r][v], g.middle, g.half, c).store(out + r * g.out_stride + c);
  }
}

template <int ROWS, int VECTORS>
void gemm_rows(const Gemm& g, int64_t row, int64_t last, const float* b, int64_t b_step, int64_t column) {
  for (; row + ROWS <= last; row += ROWS) {
    gemm_tile<ROWS, VECTORS>(g, g.a + row * g.a_stride, b, b_step, column, g.out + row * g.out_stride);
  }
  if constexpr (ROWS > 1) {
    if (row < last) gemm_rows<ROWS / 2, VECTORS>(g, row, last, b, b_step, column);
  }
}

void gemm(const Gemm& g, int64_t first_row, int64_t last_row, int64_t first_panel, int64_t last_panel) {
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    const int64_t start = panel * kPanel;
    const int64_t step = g.columns - start < kPanel ? g.columns - start : kPanel;
    for (int64_t c = 0; c < step;) {
      const float* b = g.b + start * g.inner + c;
      const int64_t vectors = (step - c) / kLanes;
      if (vectors >= 3 && vectors != 4) {
        gemm_rows<kTileRows, 3>(g, first_row, last_row, b, step, start + c);
        c += 3 * kLanes;
      } else if (vectors >= 2) {
        gemm_rows<kTileRows, 2>(g, first_row, last_row, b, step, start + c);
        c += 2 * kLanes;
      } else {
        gemm_rows<kTileRows, 1>(g, first_row, last_row, b, step, start + c);
        c += kLanes;
      }
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
    const auto emit = [&](int64_t w, V y, V, V) {
      if constexpr (ACTIVATE) y = y * y.slope(middle, half);
      if constexpr (GATE) y = y * gate;
      y.store(out + w * a.out_stride + c);
    };
    if (a.stride == 1) {
      const float* source[3] = {a.x + h * row + c, nullptr, nullptr};
      const RowKernels kernels{a.weight + c, a.channels, nullptr, nullptr, bias, bias, bias};
      walk_any_row<kDepth, kInside, true>(source, a.x_stride, row, a.width, h > 0, h + 1 < a.height, kernels,
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

/// COLUMNS neighbouring outputs that lie inside the picture with all their taps, VECTORS of channels each.
template <int COLUMNS, int VECTORS>
DICENET_INLINE void stem_tile(const Stem& a, int64_t h, int64_t w, int64_t c) {
  V sums[COLUMNS][VECTORS];
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    const V bias = V::load(a.bias + c + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < COLUMNS; ++i) sums[i][v] = bias;
  }
  const int64_t left = w * a.stride - a.padding, step = a.stride * a.column_stride;
  for (int64_t i = 0; i < a.kernel; ++i) {
    const int64_t row = h * a.stride + i - a.padding;
    if (row < 0 || row >= a.height) continue;
    for (int64_t j = 0; j < a.kernel; ++j) {
      // only tiles of one column may lie at the edge
      if (COLUMNS == 1 && (left + j < 0 || left + j >= a.width)) continue;
      const float* x = a.x + row * a.row_stride + (left + j) * a.column_stride;
      const float* weight = a.weight + (i * a.kernel + j) * a.in_channels * a.out_channels + c;
      for (int64_t channel = 0; channel < a.in_channels; ++channel, weight += a.out_channels) {
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
    float* out = a.out + (h * a.out_width + w + t) * a.out_channels;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      activate(sums[t][v], a.middle, a.half, c + v * kLanes).store(out + c + v * kLanes);
    }
  }
}

template <int VECTORS>
void stem_columns(const Stem& a, int64_t h, int64_t c) {
  constexpr int kColumns = kTileRows;
  for (int64_t w = 0; w < a.out_width;) {
    const int64_t left = w * a.stride - a.padding, right = left + (kColumns - 1) * a.stride + a.kernel;
    if (left >= 0 && right <= a.width && w + kColumns <= a.out_width) {
      stem_tile<kColumns, VECTORS>(a, h, w, c);
      w += kColumns;
    } else {
      stem_tile<1, VECTORS>(a, h, w, c);
      ++w;
    }
  }
}

void stem_row(const Stem& a, int64_t h) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= a.out_channels; c += 2 * kLanes) stem_columns<2>(a, h, c);
  if (c < a.out_channels) stem_columns<1>(a, h, c);
}

}  // namespace DICENET_LEVEL
}  // namespace dicenet
