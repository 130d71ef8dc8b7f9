// Small passes: pooling, shuffling, scaling.

namespace dicenet {
namespace DICENET_LEVEL {

void scale_shift_act(const float* x, int64_t pixels, int64_t x_stride, int64_t channels, const NormAct& a, float* out,
                     int64_t out_stride) {
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const bool over = channels >= kLanes && c + kLanes > channels;  // ends with the map: some lanes come twice
      const int64_t at = over ? channels - kLanes : c, left = channels - at;
      const V z = fma(load_part(a.scale + at, left), load_part(x + p * x_stride + at, left),
                      load_part(a.shift + at, left));
      const V y = a.slope ? z * z.by_sign(V::splat(1), load_part(a.slope + at, left)) : z;
      store_part(y, left, out + p * out_stride + at);
    }
  }
}

enum class Pool { kAverage, kMaximum, kMaximumOrNan };

/// One row; returns whether sums of its windows were no numbers, so that values may be none (or infinities of both
/// signs). Sums cost nothing beside maxima; asking each value does.
template <Pool POOL>
bool pool_row_of(const float* const rows[3], int count, int64_t width, int64_t channels, int64_t out_width,
                 float* out) {
  V::I strange{};
  for (int64_t w = 0; w < out_width; ++w) {
    const int64_t left = 2 * w - 1 < 0 ? 0 : 2 * w - 1, right = 2 * w + 2 > width ? width : 2 * w + 2;
    for (int64_t c = 0; c < channels; c += kLanes) {
      V best = V::splat(-__builtin_inff()), sum = V::zero();
      for (int row = 0; row < count; ++row) {
        for (int64_t column = left; column < right; ++column) {
          const V v = V::load(rows[row] + column * channels + c);
          if constexpr (POOL == Pool::kMaximum) best = max(v, best);
          if constexpr (POOL == Pool::kMaximumOrNan) best = max_or_nan(v, best);
          if constexpr (POOL != Pool::kMaximumOrNan) sum += v;
        }
      }
      if constexpr (POOL == Pool::kMaximum) strange |= sum.is_nan();
      if constexpr (POOL == Pool::kAverage) best = V::splat(1.0f / 9.0f) * sum;
      best.store(out + w * channels + c);
    }
  }
  int any = 0;
  for (int i = 0; i < kLanes; ++i) any |= strange[i];
  return any != 0;
}

void pool_row(const float* const rows[3], int count, int64_t width, int64_t channels, bool maximum,
              int64_t out_width, float* out) {
  if (!maximum) {
    pool_row_of<Pool::kAverage>(rows, count, width, channels, out_width, out);
  } else if (pool_row_of<Pool::kMaximum>(rows, count, width, channels, out_width, out)) {
    pool_row_of<Pool::kMaximumOrNan>(rows, count, width, channels, out_width, out);
  }
}


void interleave(const float* first, const float* second, int64_t pairs, float* out) {
  // zeros first, so that the last vector, which ends with the map, may overwrite some
  for (int64_t c = padded(2 * pairs) - kPad; 2 * pairs % kPad && c < padded(2 * pairs); c += kLanes) {
    V::zero().store(out + c);
  }
  if (pairs < kLanes) {
    for (int64_t i = 0; i < pairs; ++i) out[2 * i] = first[i], out[2 * i + 1] = second[i];
    return;
  }
  for (int64_t i = 0; i + kLanes < pairs; i += kLanes) {
    store_interleaved(V::load(first + i), V::load(second + i), true, out + 2 * i);
  }
  const int64_t last = pairs - kLanes;
  store_interleaved(V::load(first + last), V::load(second + last), true, out + 2 * last);
}

float dot(const float* a, const float* b, int64_t count) {
  V sum = V::zero();
  for (int64_t i = 0; i < count; i += kLanes) sum = fma(load_part(a + i, count - i), load_part(b + i, count - i), sum);
  return sum.sum();
}

void axpy(const float* x, float factor, int64_t count, bool first, float* out) {
  for (int64_t c = 0; c < count; c += kLanes) {
    const V scaled = V::splat(factor) * V::load(x + c);
    (first ? scaled : scaled + V::load(out + c)).store(out + c);
  }
}

}  // namespace DICENET_LEVEL
}  // namespace dicenet
