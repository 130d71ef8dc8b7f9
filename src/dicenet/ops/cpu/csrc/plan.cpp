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

/// A group of images on its way through the plan.
class Run {
 public:
  Run(const Plan& plan, const std::vector<Outside>& inputs, const std::vector<Outside>& outputs, float* arena,
      bool split)
      : plan_(plan), inputs_(inputs), outputs_(outputs), arena_(arena), split_(split), k_(kernels()) {}

  void all(int64_t first, int64_t images) {
    for (int64_t i = 0; i < images; ++i) {
      go_to(first, i);
      for (int64_t step = 0; step < plan_.group_from; ++step) one(plan_.steps[step]);
    }
    for (int64_t step = plan_.group_from; step < plan_.count; ++step) {
      const Step& s = plan_.steps[step];
      go_to(first, 0);
      if (images > 1 && s.kind == Kind::kGemm && follow(s)) {
        gemm(s, images);
        continue;
      }
      for (int64_t i = 0; i < images; ++i) {
        go_to(first, i);
        one(s);
      }
    }
  }

 private:
  /// Which image the next steps are for: one of the whole batch, and of the group.
  void go_to(int64_t first, int64_t in_group) {
    image_ = first + in_group;
    in_group_ = in_group;
  }
  /// Whether the maps of a group's images lie one after the other, like one long map.
  static bool follow(const Step& s) {
    const int64_t pixels = s.height * s.width;
    return s.x_image == pixels * s.x_stride && s.out_image == pixels * s.out_stride;
  }
  void one(const Step& s) const;
  void load(const Step&) const;
  void store(const Step&) const;
  Stem stem_of(const Step&) const;
  void stem(const Step&) const;
  void stem_pool(const Step&) const;
  void pool(const Step&) const;
  void gemm(const Step&, int64_t images) const;
  void depth_wise(const Step&) const;
  void local(const Step&) const;
  void mean(const Step&) const;
  void dim_conv(const Step&) const;
  void resize(const Step&) const;
  void pixelwise(const Step&) const;

  float* map(int64_t place, int64_t image_stride) const {
    return place < 0 ? nullptr : arena_ + place + in_group_ * image_stride;
  }
  float* x(const Step& s) const {
    return map(s.x, s.x_image);
  }
  float* second(const Step& s) const {
    return map(s.second, s.second_image);
  }
  float* out(const Step& s) const {
    return map(s.out, s.out_image);
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
  float* const arena_;
  const bool split_;
  const Kernels& k_;
  int64_t image_ = 0, in_group_ = 0;
};

/// Calls f(pointers, their number, row) for the rows of 3x3 windows with stride 2 and padding 1.
template <class RowAt, class F>
void each_window(int64_t height, int64_t begin, int64_t end, const RowAt& row_at, const F& f) {
  for (int64_t h = begin; h < end; ++h) {
    const float* rows[3];
    int count = 0;
    for (int64_t row = std::max<int64_t>(2 * h - 1, 0); row < std::min(2 * h + 2, height); ++row) {
      rows[count++] = row_at(row);
    }
    f(rows, count, h);
  }
}

void Run::load(const Step& s) const {
  const Outside& in = inputs_[s.input];
  const float* base = in.data + image_ * in.image_stride;
  each(s.height, static_cast<double>(s.width * s.channels), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      for (int64_t w = 0; w < s.width; ++w) {
        const float* pixel = base + h * in.row_stride + w * in.column_stride;
        float* to = out(s) + (h * s.width + w) * s.out_stride;
        if (in.channel_stride == 1) {
          std::memcpy(to, pixel, s.channels * sizeof(float));
        } else {
          for (int64_t c = 0; c < s.channels; ++c) to[c] = pixel[c * in.channel_stride];
        }
        for (int64_t c = s.channels; c < s.out_stride; ++c) to[c] = 0;
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
        std::memcpy(pixel, x(s) + (h * s.width + w) * s.x_stride, s.channels * sizeof(float));
      }
    }
  });
}

Stem Run::stem_of(const Step& s) const {
  const Outside& in = inputs_[s.input];
  return {s.channels, s.height, s.width, s.kernel, s.stride, s.padding, (s.width + 2 * s.padding - s.kernel) / s.stride + 1,
          in.data + image_ * in.image_stride, in.channel_stride, in.row_stride, in.column_stride,
          weights(s.weight), weights(s.bias), weights(s.middle), weights(s.half), s.out_channels};
}

void Run::stem(const Step& s) const {
  const Stem job = stem_of(s);
  const double taps = static_cast<double>(s.kernel * s.kernel * s.channels * s.out_width);
  each(s.out_height, taps * vectors(s.out_channels), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) k_.stem_row(job, h, out(s) + h * s.out_width * s.out_channels);
  });
}

void Run::stem_pool(const Step& s) const {
  const Stem job = stem_of(s);
  const int64_t row = job.out_width * s.out_channels;
  const int64_t height = (s.height + 2 * s.padding - s.kernel) / s.stride + 1;
  const double taps = static_cast<double>(s.kernel * s.kernel * s.channels * job.out_width);
  each(s.out_height, 2.0 * taps * vectors(s.out_channels), [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> window;  // three rows, by their number modulo 3
    if (static_cast<int64_t>(window.size()) < 3 * row) window.resize(3 * row);
    int64_t next = 0;  // the first row that is not there yet
    const auto row_at = [&](int64_t h) {
      float* to = window.data() + h % 3 * row;
      if (h >= next) k_.stem_row(job, h, to), next = h + 1;
      return to;
    };
    each_window(height, begin, end, row_at, [&](const float* const rows[3], int count, int64_t h) {
      k_.pool_row(rows, count, job.out_width, s.out_channels, true, s.out_width,
                  out(s) + h * s.out_width * s.out_channels);
    });
  });
}

void Run::pool(const Step& s) const {
  each(s.out_height, 10.0 * s.out_width * vectors(s.channels), [&](int64_t begin, int64_t end) {
    const auto row_at = [&](int64_t h) { return x(s) + h * s.width * s.channels; };
    each_window(s.height, begin, end, row_at, [&](const float* const rows[3], int count, int64_t h) {
      k_.pool_row(rows, count, s.width, s.channels, s.kind == Kind::kMaxPool, s.out_width,
                  out(s) + h * s.out_width * s.channels);
    });
  });
}

void Run::gemm(const Step& s, int64_t images) const {
  const Gemm job{images * s.height * s.width, s.channels, s.out_channels, x(s), s.x_stride, weights(s.weight),
                 weights(s.bias), weights(s.middle), weights(s.half), out(s), s.out_stride, s.count};
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
  const DepthWise job{s.channels, s.height, s.width, s.stride, s.out_width, x(s), s.x_stride, weights(s.weight),
                      weights(s.bias), weights(s.middle), weights(s.half), map(s.gate, s.gate_image), out(s),
                      s.out_stride, second(s), s.second_stride, s.count};
  each(s.out_height, 15.0 * s.out_width * vectors(s.channels), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) k_.depth_wise_row(job, h);
  });
}

void Run::local(const Step& s) const {
  // weights: the table, then the kernels of the rows, then those of the columns
  const float* table = weights(s.weight);
  const Local job{s.channels, s.height, s.width, x(s), s.x_stride, table, s.channels, weights(s.bias),
                  weights(s.middle), map(s.third, s.third_image), map(s.fourth, s.fourth_image), out(s), s.out_stride,
                  0};
  const int64_t rows = local_block_rows(s.height), blocks = (s.height + rows - 1) / rows;
  each(blocks, 40.0 * rows * s.width * vectors(s.channels), [&](int64_t begin, int64_t end) {
    if (end - begin == blocks) {
      k_.local_rows(job, 0, s.height, second(s));
      std::memset(second(s) + s.channels, 0, (blocks - 1) * s.channels * sizeof(float));
      return;
    }
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * rows;
      k_.local_rows(job, first, std::min(s.height, first + rows), second(s) + block * s.channels);
    }
  });
}

void Run::mean(const Step& s) const {
  const float factor = 1.0f / static_cast<float>(s.count);
  float* to = out(s);
  for (int64_t i = 0; i < s.height * s.width; ++i) k_.axpy(x(s) + i * s.x_stride, 1.0f, s.channels, i == 0, to);
  k_.axpy(to, factor, s.channels, true, to);
}

void Run::dim_conv(const Step& s) const {
  const float* from = x(s);
  DimConv job{1, s.channels, s.height, s.width, 3, static_cast<int>(s.kernel), {from, from, from}, s.x_stride,
              nullptr, weights(s.weight), weights(s.weight), out(s), s.out_stride, nullptr};
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
          k_.axpy(x(s) + row * s.width * s.x_stride, taps[2 + i], s.width * s.x_stride, i == 0,
                  out(s) + h * s.width * s.x_stride);
        }
        continue;
      }
      for (int64_t w = 0; w < s.out_width; ++w) {
        const float* taps = table + w * entry;
        for (int64_t i = 0; i < static_cast<int64_t>(taps[1]); ++i) {
          const int64_t column = static_cast<int64_t>(taps[0]) + i;
          k_.axpy(x(s) + (h * s.width + column) * s.x_stride, taps[2 + i], s.channels, i == 0,
                  out(s) + (h * s.out_width + w) * s.out_stride);
        }
      }
    }
  });
}

/// Steps that take one pixel after the other.
void Run::pixelwise(const Step& s) const {
  const NormAct norm{s.channels, weights(s.weight), weights(s.bias), weights(s.middle)};
  each(s.height * s.width, 3.0 * vectors(s.channels), [&](int64_t begin, int64_t end) {
    const float* from = x(s) + begin * s.x_stride;
    float* to = out(s) + begin * s.out_stride;
    if (s.kind == Kind::kNormAct) {
      return k_.scale_shift_act(from, end - begin, s.x_stride, s.channels, norm, to, s.out_stride);
    }
    for (int64_t p = begin; p < end; ++p, from += s.x_stride, to += s.out_stride) {
      const float* other = second(s);
      if (other && s.kind != Kind::kMultiply) other += p * s.second_stride;
      if (s.kind == Kind::kInterleave) {
        k_.interleave(from, other, s.channels, to);
      } else if (s.kind == Kind::kCopy) {
        std::memcpy(to, from, s.channels * sizeof(float));
        std::memset(to + s.channels, 0, s.count * sizeof(float));  // count: padding behind the last part
      } else if (s.kind == Kind::kAdd) {
        for (int64_t c = 0; c < s.channels; ++c) to[c] = from[c] + other[c];
      } else {
        for (int64_t c = 0; c < s.channels; ++c) to[c] = from[c] * other[c];
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
      return pool(s);
    case Kind::kStemPool:
      return stem_pool(s);
    case Kind::kGemm:
      return gemm(s, 1);
    case Kind::kDepthWise:
      return depth_wise(s);
    case Kind::kLocal:
      return local(s);
    case Kind::kMean:
      return mean(s);
    case Kind::kSigmoid:
      for (int64_t c = 0; c < s.channels; ++c) out(s)[c] = 1.0f / (1.0f + std::exp(-x(s)[c]));
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
    Run run(plan, inputs, outputs, arena.data(), split);
    for (int64_t first = begin; first < end; first += plan.group) run.all(first, std::min(plan.group, end - first));
  };
  if (by_image && threads_there > 1) {
    parallel_for(images, 1e9, [&](int64_t begin, int64_t end) { some(begin, end, false); });
  } else if (images > 0 && threads_there > 1) {
    // each part of a step flushes denormals by itself: a thread that starts here would inherit it, and keep it
    some(0, images, true);
  } else if (images > 0) {
    const FlushDenormals flush;
    some(0, images, false);
  }
}

}  // namespace dicenet
