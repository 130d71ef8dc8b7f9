// Batch norm and PReLU as one operation, and the statistics that it needs.
//
// Statistics are two-pass: a variance from sums of squares loses half of the digits and changes whole-network
// gradients visibly. The passes run over chunks that stay in the cache; the caller joins the chunks' moments.

namespace dicenet {
namespace DICENET_LEVEL {

/// Calls body(number of vectors as a constant, channel, channels left) for groups of vectors that cover the
/// channels: four at a time, then one by one; the last one ends with the map where the map is wide enough.
template <class Body>
DICENET_INLINE void each_group(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) body(std::integral_constant<int, 4>{}, c, 4 * kLanes);
  for (; c < channels; c += kLanes) {
    if (channels >= kLanes) {
      body(std::integral_constant<int, 1>{}, c + kLanes > channels ? channels - kLanes : c, kLanes);
    } else {
      body(std::integral_constant<int, 1>{}, c, channels);
    }
  }
}

void moments(const float* x, int64_t pixels, int64_t channels, float* mean, float* squares) {
  const float share = 1.0f / static_cast<float>(pixels);
  each_group(channels, [&](auto vectors, int64_t c, int64_t left) {
    constexpr int n = decltype(vectors)::value;
    V sum[n] = {}, square[n] = {};
    for (int64_t p = 0; p < pixels; ++p) {
      for (int i = 0; i < n; ++i) sum[i] += load_part(x + p * channels + c + i * kLanes, left);
    }
    for (int i = 0; i < n; ++i) sum[i] = V::splat(share) * sum[i];
    for (int64_t p = 0; p < pixels; ++p) {
      for (int i = 0; i < n; ++i) {
        const V d = load_part(x + p * channels + c + i * kLanes, left) - sum[i];
        square[i] = fma(d, d, square[i]);
      }
    }
    for (int i = 0; i < n; ++i) {
      store_part(sum[i], left, mean + c + i * kLanes);
      store_part(square[i], left, squares + c + i * kLanes);
    }
  });
}

/// z where it is not negative by its sign, else slope * z.
DICENET_INLINE V prelu(V z, V slope) {
  return z * z.by_sign(V::splat(1), slope);
}

void norm_act(const NormAct& a, const float* x, int64_t pixels, float* out) {
  scale_shift_act(x, pixels, a.channels, a.channels, a, out, a.channels);
}

void norm_act_grad_sums(const NormActGrad& a, const float* x, const float* grad, int64_t pixels, float* sums) {
  const int64_t channels = a.forward.channels;
  each_group(channels, [&](auto vectors, int64_t group, int64_t left) {
    constexpr int n = decltype(vectors)::value;
    V sum[n] = {}, sum_xhat[n] = {}, sum_slope[n] = {}, scale[n], shift[n], slope[n], mean[n];
    for (int i = 0; i < n; ++i) {
      const int64_t c = group + i * kLanes;
      scale[i] = load_part(a.forward.scale + c, left), shift[i] = load_part(a.forward.shift + c, left);
      slope[i] = load_part(a.forward.slope + c, left);
      mean[i] = load_part(a.mean + c, left);
    }
    for (int64_t p = 0; p < pixels; ++p) {
      for (int i = 0; i < n; ++i) {
        const int64_t at = p * channels + group + i * kLanes;
        const V xi = load_part(x + at, left), g = load_part(grad + at, left);
        const V z = fma(scale[i], xi, shift[i]);
        const V dz = g * z.by_positive(V::splat(1), slope[i]);  // at zero the slope, as torch has it
        sum[i] += dz;
        sum_xhat[i] = fma(dz, xi - mean[i], sum_xhat[i]);
        sum_slope[i] = fma(g, z.by_sign(V::zero(), z), sum_slope[i]);
      }
    }
    for (int i = 0; i < n; ++i) {
      const int64_t c = group + i * kLanes;
      store_part(sum[i], left, sums + c);
      store_part(sum_xhat[i] * load_part(a.inverse + c, left), left, sums + channels + c);
      store_part(sum_slope[i], left, sums + 2 * channels + c);
    }
  });
}

void norm_act_grad(const NormActGrad& a, const float* x, const float* grad, int64_t pixels, float* out) {
  const int64_t channels = a.forward.channels;
  each_group(channels, [&](auto vectors, int64_t group, int64_t left) {
    constexpr int n = decltype(vectors)::value;
    V scale[n], shift[n], slope[n], a0[n], a1[n];
    for (int i = 0; i < n; ++i) {
      // dx = scale * (dz - mean_grad - xhat * mean_grad_xhat) = scale * dz + a1 * x + a0
      const int64_t c = group + i * kLanes;
      scale[i] = load_part(a.forward.scale + c, left), shift[i] = load_part(a.forward.shift + c, left);
      slope[i] = load_part(a.forward.slope + c, left);
      const V tilt = load_part(a.inverse + c, left) * load_part(a.mean_grad_xhat + c, left);
      a1[i] = V::zero() - scale[i] * tilt;
      a0[i] = V::zero() - scale[i] * load_part(a.mean_grad + c, left) - a1[i] * load_part(a.mean + c, left);
    }
    for (int64_t p = 0; p < pixels; ++p) {
      for (int i = 0; i < n; ++i) {
        const int64_t at = p * channels + group + i * kLanes;
        const V xi = load_part(x + at, left);
        const V z = fma(scale[i], xi, shift[i]);
        const V dz = load_part(grad + at, left) * z.by_positive(V::splat(1), slope[i]);
        store_part(fma(scale[i], dz, fma(a1[i], xi, a0[i])), left, out + at);
      }
    }
  });
}

void join(const float* x, const float* factors, int64_t pixels, int64_t channels, float* out) {
  each_group(channels, [&](auto vectors, int64_t group, int64_t left) {
    for (int i = 0; i < decltype(vectors)::value; ++i) {
      const int64_t c = group + i * kLanes;
      const V depth = load_part(factors + c, left), height = load_part(factors + channels + c, left);
      const V width = load_part(factors + 2 * channels + c, left);
      for (int64_t p = 0; p < pixels; ++p) {
        const float* from = x + p * 3 * channels + c;
        const V sum = depth * load_part(from, left);
        const V two = fma(height, load_part(from + channels, left), sum);
        store_part(fma(width, load_part(from + 2 * channels, left), two), left, out + p * channels + c);
      }
    }
  });
}

void join_grad(const float* x, const float* factors, const float* grad, int64_t pixels, int64_t channels, float* out,
               float* sums) {
  each_group(channels, [&](auto vectors, int64_t group, int64_t left) {
    for (int i = 0; i < decltype(vectors)::value; ++i) {
      const int64_t c = group + i * kLanes;
      V factor[3], sum[3] = {};
      for (int b = 0; b < 3; ++b) factor[b] = load_part(factors + b * channels + c, left);
      for (int64_t p = 0; p < pixels; ++p) {
        const V g = load_part(grad + p * channels + c, left);
        for (int b = 0; b < 3; ++b) {
          const int64_t at = (3 * p + b) * channels + c;
          sum[b] = fma(g, load_part(x + at, left), sum[b]);
          store_part(factor[b] * g, left, out + at);
        }
      }
      for (int b = 0; b < 3; ++b) store_part(sum[b], left, sums + b * channels + c);
    }
  });
}

}  // namespace DICENET_LEVEL
}  // namespace dicenet
