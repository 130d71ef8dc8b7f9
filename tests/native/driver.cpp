// Runs every operation of unit.h, and small plans (plans.inl), at every level that the machine has, against plain loops in double. No torch: the
// same program is built for a sanitizer or for another processor (see test_native.py).
//
// All maps lie in heap blocks of their exact size, so that a sanitizer sees one float too many; without one, the
// words around results are checked. Prints what differs and ends with 1.
//
// usage: driver [threads]
#include "parallel.h"
#include "plan.h"
#include "unit.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

using dicenet::MapShape;
using Doubles = std::vector<double>;

int failures = 0;
long long comparisons = 0;
std::mt19937 generator(1);

// -- threads of the driver's own

int thread_count = 3;

void run_threads(int64_t count, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
  // the grain is ignored on purpose: even single items meet in several threads
  const int64_t parts = std::min<int64_t>(thread_count, count), each = (count + parts - 1) / parts;
  std::vector<std::thread> threads;
  for (int64_t begin = each; begin < count; begin += each) {
    threads.emplace_back([=] { body(begin, std::min(begin + each, count), context); });
  }
  body(0, std::min(each, count), context);
  for (std::thread& t : threads) t.join();
}

// -- memory

constexpr float kGuard = 12345.0f;

/// An input, in a block of its exact size.
class Input {
 public:
  explicit Input(int64_t size, float scale = 1.0f) : data_(new float[size]), size_(size) {
    std::normal_distribution<float> normal(0.0f, scale);
    for (int64_t i = 0; i < size; ++i) data_[i] = normal(generator);
  }
  ~Input() {
    delete[] data_;
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  const float* get() const {
    return data_;
  }
  float& operator[](int64_t i) {
    return data_[i];
  }
  double at(int64_t i) const {
    return data_[i];
  }
  int64_t size() const {
    return size_;
  }

 private:
  float* data_;
  int64_t size_;
};

/// A result: not a number until it is written, with guards around it where no sanitizer watches.
class Output {
 public:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr int64_t kAround = 0;
#else
  static constexpr int64_t kAround = 32;
#endif

  explicit Output(int64_t size) : data_(new float[size + 2 * kAround]), size_(size) {
    std::fill(data_, data_ + size + 2 * kAround, kGuard);
    std::fill(get(), get() + size, std::numeric_limits<float>::quiet_NaN());
  }
  ~Output() {
    delete[] data_;
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  float* get() {
    return data_ + kAround;
  }
  bool guarded() const {
    for (int64_t i = 0; i < kAround; ++i) {
      if (data_[i] != kGuard || data_[kAround + size_ + i] != kGuard) return false;
    }
    return true;
  }

  /// Compares with what it should be: an error of float32 sums of `terms` products.
  void check(const std::string& what, const Doubles& expected, double terms) {
    ++comparisons;
    double largest = 1;
    for (const double e : expected) largest = std::max(largest, std::abs(e));
    const double allowed = 1e-6 * largest * std::max(4.0, std::sqrt(terms));
    if (!guarded()) {
      std::printf("%s: written outside of its memory\n", what.c_str());
      ++failures;
    }
    if (static_cast<int64_t>(expected.size()) != size_) {
      std::printf("%s: the driver compares %zu values with %lld\n", what.c_str(), expected.size(),
                  static_cast<long long>(size_));
      ++failures;
      return;
    }
    for (int64_t i = 0; i < size_; ++i) {
      if (std::abs(get()[i] - expected[i]) <= allowed) continue;
      std::printf("%s: value %lld is %.9g, not %.9g\n", what.c_str(), static_cast<long long>(i), get()[i],
                  expected[i]);
      ++failures;
      return;
    }
  }

 private:
  float* data_;
  int64_t size_;
};

// -- plain loops in double

struct Case {
  MapShape s;
  int64_t kernel;
  int branches;

  std::string name(const char* what) const {
    char text[160];
    std::snprintf(text, sizeof text, "%s, map %lldx%lldx%lldx%lld, kernel %lld, branches %d", what,
                  static_cast<long long>(s.images), static_cast<long long>(s.channels),
                  static_cast<long long>(s.height), static_cast<long long>(s.width), static_cast<long long>(kernel),
                  branches);
    return text;
  }
};

int count_branches(int branches) {
  return (branches & 1) + (branches >> 1 & 1) + (branches >> 2 & 1);
}

/// Calls f(branch, place of the output, place of the input, place of the kernel's value) for every product of a
/// dimension-wise convolution. `spread`: channels of an output pixel.
template <class F>
void each_product(const Case& c, int64_t spread, const F& f) {
  const MapShape& s = c.s;
  const int64_t reach = c.kernel / 2;
  for (int64_t n = 0; n < s.images; ++n) {
    for (int64_t h = 0; h < s.height; ++h) {
      for (int64_t w = 0; w < s.width; ++w) {
        for (int64_t ch = 0; ch < s.channels; ++ch) {
          int64_t offset = 0;
          for (int b = 0; b < 3; ++b) {
            if (!(c.branches >> b & 1)) continue;
            const int64_t plane = b == 0 ? ch : b == 1 ? h : w;
            const int64_t out = ((n * s.height + h) * s.width + w) * spread + offset + ch;
            offset += s.channels;
            for (int64_t i = -reach; i <= reach; ++i) {
              for (int64_t j = -reach; j <= reach; ++j) {
                // the kernel's axes: depth (row, column), height (channel, column), width (row, channel)
                const int64_t row = h + (b == 1 ? 0 : i), column = w + (b == 2 ? 0 : j);
                const int64_t channel = ch + (b == 0 ? 0 : b == 1 ? i : j);
                if (row < 0 || row >= s.height || column < 0 || column >= s.width || channel < 0 ||
                    channel >= s.channels) {
                  continue;
                }
                f(b, out, ((n * s.height + row) * s.width + column) * s.channels + channel,
                  (plane * c.kernel + i + reach) * c.kernel + j + reach);
              }
            }
          }
        }
      }
    }
  }
}

double prelu(double z, double slope) {
  return z < 0 ? slope * z : z;
}

/// The tensors of a norm and a PReLU behind it, awkward: zero and negative weights, negative slopes.
struct NormCase {
  Input weight, bias, mean, variance, slope;
  bool affine;
  double eps = 1e-5;

  NormCase(int64_t channels, bool affine_)
      : weight(channels), bias(channels), mean(channels), variance(channels), slope(channels), affine(affine_) {
    for (int64_t c = 0; c < channels; ++c) {
      variance[c] = 0.5f + std::abs(variance[c]);
      if (c % 4 == 2) weight[c] = 0;
      if (c % 7 == 3) weight[c] = 1e-6f;
    }
  }
  dicenet::Norm get() const {
    return {affine ? weight.get() : nullptr, affine ? bias.get() : nullptr, mean.get(), variance.get(), eps,
            slope.get()};
  }
  double scale(int64_t c) const {
    return (affine ? weight.at(c) : 1.0) / std::sqrt(variance.at(c) + eps);
  }
  double z(int64_t c, double x) const {
    return (x - mean.at(c)) * scale(c) + (affine ? bias.at(c) : 0.0);
  }
  double y(int64_t c, double x) const {
    return prelu(z(c, x), slope.at(c));
  }
};

// -- checks

void check_dim_conv(const Case& c) {
  const MapShape& s = c.s;
  const int64_t taps = c.kernel * c.kernel, spread = count_branches(c.branches) * s.channels;
  const int64_t planes[3] = {s.channels, s.height, s.width};
  const Input x(s.pixels() * s.channels), grad(s.pixels() * spread);
  const Input depth(planes[0] * taps), height(planes[1] * taps), width(planes[2] * taps);
  const Input* kernels[3] = {&depth, &height, &width};
  const float* given[3];
  for (int b = 0; b < 3; ++b) given[b] = c.branches >> b & 1 ? kernels[b]->get() : nullptr;
  const dicenet::BranchWeights weights{given[0], given[1], given[2], c.kernel};

  Doubles value(s.pixels() * spread), grad_x(s.pixels() * s.channels);
  Doubles grad_kernels[3];
  for (int b = 0; b < 3; ++b) grad_kernels[b].resize(planes[b] * taps);
  each_product(c, spread, [&](int b, int64_t out, int64_t in, int64_t k) {
    value[out] += kernels[b]->at(k) * x.at(in);
    grad_x[in] += kernels[b]->at(k) * grad.at(out);
    grad_kernels[b][k] += x.at(in) * grad.at(out);
  });

  Output out(value.size());
  dicenet::dim_conv(s, weights, x.get(), out.get());
  out.check(c.name("dim_conv"), value, static_cast<double>(taps));

  Output of_x(grad_x.size());
  Output of_depth(grad_kernels[0].size()), of_height(grad_kernels[1].size()), of_width(grad_kernels[2].size());
  Output* of_kernels[3] = {&of_depth, &of_height, &of_width};
  float* wanted[3];
  for (int b = 0; b < 3; ++b) wanted[b] = given[b] ? of_kernels[b]->get() : nullptr;
  dicenet::dim_conv_backward(s, weights, x.get(), grad.get(), of_x.get(), wanted[0], wanted[1], wanted[2]);
  of_x.check(c.name("gradient of x"), grad_x, 3.0 * taps);
  const double sums = static_cast<double>(s.pixels() * s.channels);
  const char* names[3] = {"gradient of depth", "gradient of height", "gradient of width"};
  for (int b = 0; b < 3; ++b) {
    if (given[b]) of_kernels[b]->check(c.name(names[b]), grad_kernels[b], sums);
  }
  // each alone
  Output x_alone(grad_x.size());
  dicenet::dim_conv_backward(s, weights, x.get(), grad.get(), x_alone.get(), nullptr, nullptr, nullptr);
  x_alone.check(c.name("gradient of x alone"), grad_x, 3.0 * taps);
  for (int b = 0; b < 3; ++b) {
    if (!given[b]) continue;
    Output alone(grad_kernels[b].size());
    dicenet::dim_conv_backward(s, weights, x.get(), grad.get(), nullptr, b == 0 ? alone.get() : nullptr,
                               b == 1 ? alone.get() : nullptr, b == 2 ? alone.get() : nullptr);
    alone.check(c.name((std::string(names[b]) + " alone").c_str()), grad_kernels[b], sums);
  }
}

void check_norm(const Case& c, bool affine) {
  const MapShape& s = c.s;
  const int64_t channels = s.channels, values = s.pixels() * channels;
  Input x(values, 0.5f);
  const Input grad(values);
  // two values of a channel lie apart: a variance of almost zero would enlarge every rounding
  for (int64_t i = 0; i < values; ++i) x[i] += i / channels % 2 ? 2 : -3;
  NormCase norm(channels, affine);
  Doubles mean(channels), variance(channels);
  if (s.pixels() > 0) {
    for (int64_t i = 0; i < values; ++i) mean[i % channels] += x.at(i) / s.pixels();
    for (int64_t i = 0; i < values; ++i) {
      variance[i % channels] += std::pow(x.at(i) - mean[i % channels], 2) / s.pixels();
    }
    Output of_mean(channels), of_variance(channels);
    dicenet::batch_moments(s, x.get(), of_mean.get(), of_variance.get());
    of_mean.check(c.name("mean"), mean, 1);
    of_variance.check(c.name("variance"), variance, 1);
  }
  for (const bool training : {false, true}) {
    if (training && s.pixels() < 2) continue;
    if (training) {
      for (int64_t i = 0; i < channels; ++i) {
        norm.mean[i] = static_cast<float>(mean[i]);
        norm.variance[i] = static_cast<float>(variance[i]);
      }
    }
    Doubles value(values), dz(values), xhat(values), grad_x(values);
    Doubles grad_weight(channels), grad_bias(channels), grad_slope(channels);
    for (int64_t i = 0; i < values; ++i) {
      const int64_t ch = i % channels;
      const double z = norm.z(ch, x.at(i));
      value[i] = norm.y(ch, x.at(i));
      dz[i] = grad.at(i) * (z < 0 ? norm.slope.at(ch) : 1.0);
      xhat[i] = (x.at(i) - norm.mean.at(ch)) / std::sqrt(norm.variance.at(ch) + norm.eps);
      grad_weight[ch] += dz[i] * xhat[i];
      grad_bias[ch] += dz[i];
      grad_slope[ch] += z < 0 ? grad.at(i) * z : 0.0;
    }
    for (int64_t i = 0; i < values; ++i) {
      const int64_t ch = i % channels;
      const double through =
          training ? (grad_bias[ch] + xhat[i] * grad_weight[ch]) / static_cast<double>(s.pixels()) : 0.0;
      grad_x[i] = norm.scale(ch) * (dz[i] - through);
    }
    const std::string mode = training ? ", training" : ", evaluation";
    // products of up to about five: their sums are less exact than those of numbers about one
    const double sums = 25.0 * static_cast<double>(s.pixels());
    Output out(values), of_x(values), of_weight(channels), of_bias(channels), of_slope(channels);
    dicenet::norm_prelu(s, norm.get(), x.get(), out.get());
    out.check(c.name("norm_prelu") + mode, value, 16);
    dicenet::norm_prelu_backward(s, norm.get(), training, x.get(), grad.get(), of_x.get(), of_weight.get(),
                                 of_bias.get(), of_slope.get());
    of_x.check(c.name("norm_prelu, gradient of x") + mode, grad_x, 16);
    of_weight.check(c.name("norm_prelu, gradient of weight") + mode, grad_weight, sums);
    of_bias.check(c.name("norm_prelu, gradient of bias") + mode, grad_bias, sums);
    of_slope.check(c.name("norm_prelu, gradient of slope") + mode, grad_slope, sums);
    Output weight_alone(channels), bias_alone(channels), slope_alone(channels);
    dicenet::norm_prelu_backward(s, norm.get(), training, x.get(), grad.get(), nullptr, weight_alone.get(),
                                 bias_alone.get(), slope_alone.get());
    weight_alone.check(c.name("norm_prelu, gradient of weight alone") + mode, grad_weight, sums);
    bias_alone.check(c.name("norm_prelu, gradient of bias alone") + mode, grad_bias, sums);
    slope_alone.check(c.name("norm_prelu, gradient of slope alone") + mode, grad_slope, sums);
  }
}

void check_join(const Case& c) {
  const MapShape& s = c.s;
  const int64_t channels = s.channels, values = s.pixels() * channels;
  const Input x(3 * values), weight(3 * channels), grad(values);
  Doubles value(values), grad_x(3 * values), grad_weight(3 * channels);
  for (int64_t p = 0; p < s.pixels(); ++p) {
    for (int64_t ch = 0; ch < channels; ++ch) {
      for (int b = 0; b < 3; ++b) {
        const int64_t at = (3 * p + b) * channels + ch;
        value[p * channels + ch] += weight.at(3 * ch + b) * x.at(at);
        grad_x[at] = weight.at(3 * ch + b) * grad.at(p * channels + ch);
        grad_weight[3 * ch + b] += x.at(at) * grad.at(p * channels + ch);
      }
    }
  }
  Output out(values), of_x(3 * values), of_weight(3 * channels);
  dicenet::join_branches(s, weight.get(), x.get(), out.get());
  out.check(c.name("join_branches"), value, 3);
  dicenet::join_branches_backward(s, weight.get(), x.get(), grad.get(), of_x.get(), of_weight.get());
  of_x.check(c.name("join_branches, gradient of x"), grad_x, 1);
  of_weight.check(c.name("join_branches, gradient of weight"), grad_weight, static_cast<double>(s.pixels()));
}

/// The fused operations of inference, 3x3 with all branches.
void check_unit(const Case& c) {
  const MapShape& s = c.s;
  const int64_t channels = s.channels, values = s.pixels() * channels, area = s.height * s.width;
  const int64_t hidden = std::max<int64_t>(1, channels / 4);
  const Input x(values), depth(9 * channels), height(9 * s.height), width(9 * s.width), join(3 * channels);
  const NormCase norm(3 * channels, true), joined(channels, channels % 2 == 0);
  const Input* kernels[3] = {&depth, &height, &width};
  Doubles branches(3 * values), local(values), means(s.images * channels);
  each_product(c, 3 * channels,
               [&](int b, int64_t out, int64_t in, int64_t k) { branches[out] += kernels[b]->at(k) * x.at(in); });
  for (int64_t p = 0; p < s.pixels(); ++p) {
    for (int64_t ch = 0; ch < channels; ++ch) {
      double sum = 0;
      for (int b = 0; b < 3; ++b) {
        const int64_t plane = b * channels + ch;
        sum += join.at(3 * ch + b) * norm.y(plane, branches[p * 3 * channels + plane]);
      }
      local[p * channels + ch] = joined.y(ch, sum);
      means[p / area * channels + ch] += local[p * channels + ch] / static_cast<double>(area);
    }
  }
  Output table(dicenet::kLocalRows * channels), out(values), of_means(s.images * channels);
  dicenet::fold_local(channels, depth.get(), norm.get(), join.get(), joined.get(), table.get());
  dicenet::dice_local(s, table.get(), height.get(), width.get(), x.get(), out.get(), of_means.get());
  // the tiny scales cost a few digits more
  out.check(c.name("dice_local"), local, 400);
  of_means.check(c.name("dice_local, means"), means, 400);

  const NormCase after(channels, true);
  const Input kernel(9 * channels), map(values), mean(s.images * channels);
  const Input squeeze(hidden * channels, 0.2f), excite(channels * hidden, 0.2f);
  Doubles spatial(values), gates(s.images * channels);
  const Case alone{s, 3, dicenet::kDepth};
  each_product(alone, channels,
               [&](int, int64_t o, int64_t in, int64_t k) { spatial[o] += kernel.at(k) * map.at(in); });
  for (int64_t n = 0; n < s.images; ++n) {
    Doubles squeezed(hidden);
    for (int64_t j = 0; j < hidden; ++j) {
      for (int64_t ch = 0; ch < channels; ++ch) squeezed[j] += squeeze.at(j * channels + ch) * mean.at(n * channels + ch);
      squeezed[j] = std::max(0.0, squeezed[j]);
    }
    for (int64_t ch = 0; ch < channels; ++ch) {
      double sum = 0;
      for (int64_t j = 0; j < hidden; ++j) sum += excite.at(ch * hidden + j) * squeezed[j];
      gates[n * channels + ch] = 1 / (1 + std::exp(-sum));
    }
  }
  for (int64_t i = 0; i < values; ++i) {
    const int64_t ch = i % channels, n = i / (area * channels);
    spatial[i] = after.y(ch, spatial[i]) * gates[n * channels + ch];
  }
  Output folded(12 * channels), of_spatial(values);
  dicenet::fold_spatial(channels, kernel.get(), after.get(), folded.get());
  dicenet::dice_spatial(s, folded.get(), squeeze.get(), excite.get(), hidden, map.get(), mean.get(),
                        of_spatial.get());
  of_spatial.check(c.name("dice_spatial"), spatial, 100);
}

/// Denormal numbers count as zero inside, and as before outside.
void check_denormals() {
  const MapShape s{1, 16, 1, 1};
  Input x(16), weight(48);
  for (int64_t i = 0; i < 16; ++i) x[i] = 1e-39f;
  for (int64_t i = 0; i < 48; ++i) weight[i] = 1;
  Input wide(48);
  for (int64_t i = 0; i < 48; ++i) wide[i] = 1e-39f;
  const bool before = dicenet::flushes();
  Output out(16);
  dicenet::join_branches(s, weight.get(), wide.get(), out.get());
  for (int64_t i = 0; i < 16; ++i) {
    if (out.get()[i] != 0) {
      std::printf("denormal numbers are not flushed\n");
      ++failures;
      break;
    }
  }
  if (dicenet::flushes() != before) {
    std::printf("the thread's treatment of denormal numbers was not restored\n");
    ++failures;
  }
}

#include "plans.inl"

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) thread_count = std::atoi(argv[1]);
  dicenet::set_threads({[] { return thread_count; }, run_threads});
  // DICENET_CPU chooses the level
  const char* wish = std::getenv("DICENET_CPU");
  const dicenet::Kernels& kernels = dicenet::kernels();
  if (wish && std::strcmp(wish, kernels.level) != 0) {
    std::printf("lacks level %s\n", wish);
    return 2;
  }
  const int64_t sides[] = {1, 2, 3, 7, 8};
  const int64_t channels[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 70, 131, 139};
  int turn = 0;
  for (const int64_t ch : channels) {
    for (const int64_t h : sides) {
      for (const int64_t w : sides) {
        // all kernels, branches and batches over the sizes in turn, every one of them at several widths
        const int64_t images = (const int64_t[]){1, 3, 0, 2}[turn % 4];
        for (const int64_t kernel : {1, 3, 5}) {
          check_dim_conv({{images, ch, h, w}, kernel, dicenet::kAllBranches});
          check_dim_conv({{1, ch, h, w}, kernel, 1 + turn % 6});
        }
        const Case plain{{images, ch, h, w}, 3, dicenet::kAllBranches};
        check_norm(plain, turn % 2 == 0);
        check_join(plain);
        if (kernels.dim_conv_is_fast(ch, 3)) check_unit(plain);
        ++turn;
      }
    }
    for (int branches = 1; branches < 7; ++branches) check_dim_conv({{2, ch, 3, 2}, 3, branches});
  }
  // larger than one chunk of pixels or images, and enough work for several threads
  for (const int64_t ch : {5, 33, 139}) {
    for (const Case& c : {Case{{70, ch, 3, 2}, 3, 7}, Case{{3, ch, 17, 19}, 3, 7}, Case{{2, ch, 9, 11}, 7, 7}}) {
      check_dim_conv(c);
      check_norm(c, true);
      check_join(c);
      if (c.kernel == 3 && kernels.dim_conv_is_fast(ch, 3)) check_unit(c);
    }
  }
  check_plans();
  check_denormals();
  std::printf("level %s, %d threads: %lld comparisons, %d failures\n", kernels.level, thread_count, comparisons,
              failures);
  return failures ? 1 : 0;
}
