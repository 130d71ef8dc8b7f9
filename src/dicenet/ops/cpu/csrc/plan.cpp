#include "plan.h"

#include "kernels.h"
#include "parallel.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>

namespace dicenet {
namespace {

/// Memory for one image on its way through a plan.
class Arena {
 public:
  explicit Arena(int64_t floats) : floats_(floats) {
    void* memory = nullptr;
    // whole vectors may be read a little behind a map's end
    if (posix_memalign(&memory, 64, (floats + 2 * kPad) * sizeof(float))) throw std::bad_alloc();
    data_.reset(static_cast<float*>(memory));
  }
  float* data() const {
    return data_.get();
  }
  int64_t floats() const {
    return floats_;
  }

 private:
  struct Free {
    void operator()(float* p) const {
      std::free(p);
    }
  };
  std::unique_ptr<float, Free> data_;
  int64_t floats_;
};

/// Arenas are kept between calls: fresh memory costs a page fault for every 4 KB, which is more than some steps.
class Pool {
 public:
  std::unique_ptr<Arena> take(int64_t floats) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto arena = free_.begin(); arena != free_.end(); ++arena) {
        if ((*arena)->floats() < floats) continue;
        auto taken = std::move(*arena);
        free_.erase(arena);
        return taken;
      }
      free_.clear();  // too small: they belong to plans of smaller pictures
    }
    return std::make_unique<Arena>(floats);
  }
  void give(std::unique_ptr<Arena> arena) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.size() < kKept) free_.push_back(std::move(arena));
  }

 private:
  static constexpr size_t kKept = 64;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Arena>> free_;
};

Pool& pool() {
  static Pool pool;
  return pool;
}

class Borrowed {
 public:
  explicit Borrowed(int64_t floats) : arena_(pool().take(floats)) {}
  ~Borrowed() {
    pool().give(std::move(arena_));
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  float* data() const {
    return arena_->data();
  }

 private:
  std::unique_ptr<Arena> arena_;
};

/// One image on its way through the plan.
class Run {
 public:
  Run(const Plan& plan, const std::vector<Outside>& inputs, const std::vector<Outside>& outputs, int64_t image,
      float* arena, bool split)
      : plan_(plan), inputs_(inputs), outputs_(outputs), image_(image), arena_(arena), split_(split), k_(kernels()) {}

  void all() const {
    for (int64_t i = 0; i < plan_.count; ++i) one(plan_.steps[i]);
  }

 private:
  void one(const Step& s) const;
  void load(const Step&) const;
  void store(const Step&) const;
  void stem(const Step&) const;
  void gemm(const Step&) const;
  void depth_wise(const Step&) const;
  void local(const Step&) const;
  void mean(const Step&) const;
  void dim_conv(const Step&) const;
  void resize(const Step&) const;
  void pixelwise(const Step&) const;

  float* map(int64_t place) const {
    return place < 0 ? nullptr : arena_ + place;
  }
  const float* weights(int64_t place) const {
    return place < 0 ? nullptr : plan_.weights + place;
  }
  double vectors(int64_t channels) const {
    return static_cast<double>(channels / k_.lanes + 1);
  }
  /// The step's parts over threads, or all in this one when the images themselves are split.
  template <class F>
  void each(int64_t count, double cost, const F& f) const {
    if (split_) {
      parallel_for(count, cost, f);
    } else {
      f(int64_t{0}, count);
    }
  }

  const Plan& plan_;
  const std::vector<Outside>& inputs_;
  const std::vector<Outside>& outputs_;
  const int64_t image_;
  float* const arena_;
  const bool split_;
  const Kernels& k_;
};

void Run::load(const Step& s) const {
  const Outside& in = inputs_[s.input];
  const float* base = in.data + image_ * in.image_stride;
  each(s.height, static_cast<double>(s.width * s.channels), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      for (int64_t w = 0; w < s.width; ++w) {
        const float* pixel = base + h * in.row_stride + w * in.column_stride;
        float* out = map(s.out) + (h * s.width + w) * s.out_stride;
        for (int64_t c = 0; c < s.channels; ++c) out[c] = pixel[c * in.channel_stride];
        for (int64_t c = s.channels; c < s.out_stride; ++c) out[c] = 0;
      }
    }
  });
}

void Run::store(const Step& s) const {
  const Outside& to = outputs_[s.input];
  float* base = to.data + image_ * to.image_stride;
  each(s.height, static_cast<double>(s.width * s.channels) / k_.lanes, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      for (int64_t w = 0; w < s.width; ++w) {
        float* pixel = base + h * to.row_stride + w * to.column_stride;
        std::memcpy(pixel, map(s.x) + (h * s.width + w) * s.x_stride, s.channels * sizeof(float));
      }
    }
  });
}

void Run::stem(const Step& s) const {
  const Outside& in = inputs_[s.input];
  const Stem job{s.channels, s.height, s.width, s.kernel, s.stride, s.padding, s.out_width,
                 in.data + image_ * in.image_stride, in.channel_stride, in.row_stride, in.column_stride,
                 weights(s.weight), weights(s.bias), weights(s.middle), weights(s.half), s.out_channels, map(s.out)};
  const double taps = static_cast<double>(s.kernel * s.kernel * s.channels * s.out_width);
  each(s.out_height, taps * vectors(s.out_channels), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) k_.stem_row(job, h);
  });
}

void Run::gemm(const Step& s) const {
  const Gemm job{s.height * s.width, s.channels, s.out_channels, map(s.x), s.x_stride, weights(s.weight),
                 weights(s.bias), weights(s.middle), weights(s.half), map(s.out), s.out_stride};
  constexpr int64_t kRows = 56;  // a multiple of every level's tile
  const int64_t blocks = (job.rows + kRows - 1) / kRows, panels = (s.out_channels + kPanel - 1) / kPanel;
  const double cost = static_cast<double>(std::min(kRows, job.rows) * s.channels) * kPanel / k_.lanes;
  each(blocks * panels, cost, [&](int64_t begin, int64_t end) {
    if (end - begin == blocks * panels) return k_.gemm(job, 0, job.rows, 0, panels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * kRows, panel = task / blocks;
      k_.gemm(job, first, std::min(job.rows, first + kRows), panel, panel + 1);
    }
  });
}

void Run::depth_wise(const Step& s) const {
  const DepthWise job{s.channels, s.height, s.width, s.stride, s.out_width, map(s.x), s.x_stride, weights(s.weight),
                      weights(s.bias), weights(s.middle), weights(s.half), map(s.gate), map(s.out), s.out_stride};
  each(s.out_height, 15.0 * s.out_width * vectors(s.channels), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) k_.depth_wise_row(job, h);
  });
}

void Run::local(const Step& s) const {
  // weights: the table, then the kernels of the rows, then those of the columns
  const float* table = weights(s.weight);
  const Local job{s.channels, s.height, s.width, map(s.x), s.x_stride, table, s.channels, weights(s.bias),
                  weights(s.middle), map(s.third), map(s.fourth), map(s.out), s.out_stride, map(s.second)};
  each(s.height, 40.0 * s.width * vectors(s.channels), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) k_.local_row(job, h);
  });
}

void Run::mean(const Step& s) const {
  const float factor = 1.0f / static_cast<float>(s.count);
  float* out = map(s.out);
  for (int64_t i = 0; i < s.height * s.width; ++i) k_.axpy(map(s.x) + i * s.x_stride, 1.0f, s.channels, i == 0, out);
  k_.axpy(out, factor, s.channels, true, out);
}

void Run::dim_conv(const Step& s) const {
  const float* x = map(s.x);
  DimConv job{1, s.channels, s.height, s.width, 3, static_cast<int>(s.kernel), {x, x, x}, s.x_stride, nullptr,
              weights(s.weight), weights(s.weight), map(s.out), s.out_stride, nullptr};
  each(s.height, 12.0 * s.width * vectors(s.channels), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) k_.dim_conv_row(job, h, false);
  });
}

/// Weighted sums of rows or columns. The weights hold, for each of them: the first index, the count, `count` weights.
void Run::resize(const Step& s) const {
  const bool rows = s.kind == Kind::kResizeRows;
  const float* table = weights(s.weight);
  const int64_t entry = 2 + s.kernel;  // kernel: the largest count
  each(s.out_height, 4.0 * s.out_width * vectors(s.channels), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      if (rows) {
        const float* taps = table + h * entry;
        for (int64_t i = 0; i < static_cast<int64_t>(taps[1]); ++i) {
          const int64_t row = static_cast<int64_t>(taps[0]) + i;
          k_.axpy(map(s.x) + row * s.width * s.x_stride, taps[2 + i], s.width * s.x_stride, i == 0,
                  map(s.out) + h * s.width * s.x_stride);
        }
        continue;
      }
      for (int64_t w = 0; w < s.out_width; ++w) {
        const float* taps = table + w * entry;
        for (int64_t i = 0; i < static_cast<int64_t>(taps[1]); ++i) {
          const int64_t column = static_cast<int64_t>(taps[0]) + i;
          k_.axpy(map(s.x) + (h * s.width + column) * s.x_stride, taps[2 + i], s.channels, i == 0,
                  map(s.out) + (h * s.out_width + w) * s.out_stride);
        }
      }
    }
  });
}

/// Steps that take one pixel after the other.
void Run::pixelwise(const Step& s) const {
  const NormAct norm{s.channels, weights(s.weight), weights(s.bias), weights(s.middle)};
  each(s.height * s.width, 3.0 * vectors(s.channels), [&](int64_t begin, int64_t end) {
    const float* x = map(s.x) + begin * s.x_stride;
    float* out = map(s.out) + begin * s.out_stride;
    if (s.kind == Kind::kNormAct) {
      return k_.scale_shift_act(x, end - begin, s.x_stride, s.channels, norm, out, s.out_stride);
    }
    for (int64_t p = begin; p < end; ++p, x += s.x_stride, out += s.out_stride) {
      const float* second = s.second < 0 ? nullptr : map(s.second) + (s.kind == Kind::kMultiply ? 0 : p * s.second_stride);
      if (s.kind == Kind::kInterleave) {
        k_.interleave(x, second, s.channels, out);
      } else if (s.kind == Kind::kCopy) {
        std::memcpy(out, x, s.channels * sizeof(float));
        std::memset(out + s.channels, 0, s.count * sizeof(float));  // count: padding behind the last part
      } else if (s.kind == Kind::kAdd) {
        for (int64_t c = 0; c < s.channels; ++c) out[c] = x[c] + second[c];
      } else {
        for (int64_t c = 0; c < s.channels; ++c) out[c] = x[c] * second[c];
      }
    }
  });
}

void Run::one(const Step& s) const {
  switch (s.kind) {
    case Kind::kLoad:
      return load(s);
    case Kind::kStore:
      return store(s);
    case Kind::kStem:
      return stem(s);
    case Kind::kMaxPool:
    case Kind::kAveragePool:
      return each(s.out_height, 10.0 * s.out_width * vectors(s.channels), [&](int64_t begin, int64_t end) {
        for (int64_t h = begin; h < end; ++h) {
          k_.pool_row(map(s.x), s.height, s.width, s.channels, s.kind == Kind::kMaxPool, h, s.out_width, map(s.out));
        }
      });
    case Kind::kGemm:
      return gemm(s);
    case Kind::kDepthWise:
      return depth_wise(s);
    case Kind::kLocal:
      return local(s);
    case Kind::kMean:
      return mean(s);
    case Kind::kSigmoid:
      for (int64_t c = 0; c < s.channels; ++c) map(s.out)[c] = 1.0f / (1.0f + std::exp(-map(s.x)[c]));
      return;
    case Kind::kResizeRows:
    case Kind::kResizeColumns:
      return resize(s);
    case Kind::kDimConv:
      return dim_conv(s);
    case Kind::kInterleave:
    case Kind::kCopy:
    case Kind::kNormAct:
    case Kind::kAdd:
    case Kind::kMultiply:
      return pixelwise(s);
  }
}

}  // namespace

void run_plan(const Plan& plan, const std::vector<Outside>& inputs, const std::vector<Outside>& outputs,
              int64_t images) {
  const int64_t threads_there = threads().count();
  const bool by_image = images >= threads_there && (images % threads_there == 0 || images >= 4 * threads_there);
  const auto some = [&](int64_t begin, int64_t end, bool split) {
    const Borrowed arena(plan.arena);
    for (int64_t image = begin; image < end; ++image) {
      Run(plan, inputs, outputs, image, arena.data(), split).all();
    }
  };
  if (by_image && threads_there > 1) {
    parallel_for(images, 1e9, [&](int64_t begin, int64_t end) { some(begin, end, false); });
  } else if (images > 0) {
    const FlushDenormals flush;
    some(0, images, threads_there > 1);
  }
}

}  // namespace dicenet
