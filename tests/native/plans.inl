// Small plans by hand, each step beside plain loops in double: included by driver.cpp, which has the random numbers
// and the comparison.

using dicenet::Kind;
using dicenet::Step;

/// A map of the plan, or channels of one: where it lies in the arena, and what it should hold for every image.
struct Value {
  int64_t place, channels, height, width, stride, image;
  Doubles is;  // (images, height, width, channels)

  int64_t pixels() const {
    return height * width;
  }
};

/// A picture or map outside of the plan, in a block of its exact size.
struct Given {
  int64_t channels, height, width;
  bool channels_last;  // else planes; both with something beside the rows
  Input data;
  dicenet::Outside outside;

  Given(int64_t images, int64_t c, int64_t h, int64_t w, bool last)
      : channels(c), height(h), width(w), channels_last(last), data(images * (c + 1) * h * w) {
    float* begin = const_cast<float*>(data.get());
    if (last) {
      outside = {begin + 1, h * w * (c + 1), 1, w * (c + 1), c + 1};
    } else {
      outside = {begin, (c + 1) * h * w, h * w, w, 1};
    }
  }
  double at(int64_t n, int64_t ch, int64_t h, int64_t w) const {
    return outside.data[n * outside.image_stride + ch * outside.channel_stride + h * outside.row_stride +
                        w * outside.column_stride];
  }
};

/// Writes a plan step by step and computes the same in double.
class PlanCase {
 public:
  PlanCase(std::string name, int64_t images, int64_t group) : name_(std::move(name)), images_(images), group_(group) {}

  /// The steps from here on take a group of images together.
  void group_from_here() {
    group_from_ = static_cast<int64_t>(steps_.size());
  }

  /// `alone`: memory for one image, for maps that only steps before the group's use.
  Value map(int64_t channels, int64_t height, int64_t width, bool alone = false) {
    const int64_t stride = dicenet::padded(channels), size = stride * height * width;
    const Value v{arena_, channels, height, width, stride, alone ? 0 : size, Doubles(images_ * height * width * channels)};
    arena_ += alone ? size : group_ * size;
    return v;
  }
  Value part(const Value& v, int64_t start, int64_t channels) const {
    Value p{v.place + start, channels, v.height, v.width, v.stride, v.image, {}};
    for (int64_t i = 0; i < images_ * v.pixels(); ++i) {
      for (int64_t c = 0; c < channels; ++c) p.is.push_back(v.is[i * v.channels + start + c]);
    }
    return p;
  }

  Value load(const Given& given, bool alone = false) {
    Value out = map(given.channels, given.height, given.width, alone);
    Step s = step(Kind::kLoad, nullptr, &out);
    s.input = input(given);
    s.channels = given.channels, s.height = given.height, s.width = given.width;
    steps_.push_back(s);
    each_value(out, [&](int64_t n, int64_t h, int64_t w, int64_t c) { return given.at(n, c, h, w); });
    return out;
  }

  /// `padding`: compares the zeros behind the channels too.
  void store(const Value& v, bool padding = true) {
    Step s = step(Kind::kStore, &v, nullptr);
    s.input = static_cast<int64_t>(results_.size());
    s.channels = padding ? v.stride : v.channels;
    steps_.push_back(s);
    Doubles expected;
    for (int64_t p = 0; p < images_ * v.pixels(); ++p) {
      for (int64_t c = 0; c < s.channels; ++c) expected.push_back(c < v.channels ? v.is[p * v.channels + c] : 0.0);
    }
    results_.push_back({s.channels, v.height, v.width, expected, static_cast<int64_t>(steps_.size()) - 1});
  }

  /// Any convolution of a picture; with `pooled`, its 3x3 maximum alone.
  Value stem(const Given& given, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding, bool activated,
             bool pooled) {
    const int64_t height = (given.height + 2 * padding - kernel) / stride + 1;
    const int64_t width = (given.width + 2 * padding - kernel) / stride + 1;
    const int64_t taps = kernel * kernel * given.channels, columns = dicenet::padded(outputs);
    const Input weight(taps * outputs, 0.3f), bias(outputs), slope(outputs);
    Value rows = map(outputs, height, width);
    each_value(rows, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      double sum = bias.at(c);
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t i = tap / (kernel * given.channels), j = tap / given.channels % kernel;
        const int64_t y = h * stride + i - padding, x = w * stride + j - padding;
        if (y < 0 || y >= given.height || x < 0 || x >= given.width) continue;
        sum += weight.at(tap * outputs + c) * given.at(n, tap % given.channels, y, x);
      }
      return activated ? prelu(sum, slope.at(c)) : sum;
    });
    Value out = rows;
    if (pooled) {
      out = map(outputs, (height + 1) / 2, (width + 1) / 2);
      pool_values(rows, true, out);
    }
    Step s = step(pooled ? Kind::kStemPool : Kind::kStem, nullptr, &out);
    s.input = input(given);
    s.channels = given.channels, s.height = given.height, s.width = given.width;
    s.kernel = kernel, s.stride = stride, s.padding = padding;
    s.out_channels = columns;
    s.weight = weights(weight, taps, outputs);
    s.bias = weights(bias, 1, outputs);
    if (activated) activation(s, slope, 0, outputs);
    steps_.push_back(s);
    return out;
  }

  Value pool(const Value& x, bool maximum) {
    Value out = map(x.channels, (x.height + 1) / 2, (x.width + 1) / 2);
    Step s = step(maximum ? Kind::kMaxPool : Kind::kAveragePool, &x, &out);
    s.channels = x.stride;
    steps_.push_back(s);
    pool_values(x, maximum, out);
    return out;
  }

  /// 1x1 convolution; `counted`: the step knows how many outputs there are without padding.
  Value gemm(const Value& x, int64_t outputs, int64_t groups, bool activated, bool counted) {
    const int64_t each = outputs / groups, inputs = x.channels / groups, columns = dicenet::padded(each);
    Value out = map(outputs, x.height, x.width);
    const Input weight(outputs * inputs, 0.3f), bias(outputs), slope(outputs);
    for (int64_t g = 0; g < groups; ++g) {
      Step s = step(Kind::kGemm, &x, &out);
      s.x += g * inputs, s.out += g * each;
      s.channels = inputs, s.out_channels = columns;
      s.count = counted ? each : -1;
      s.weight = static_cast<int64_t>(weights_.size());
      for (int64_t first = 0; first < columns; first += dicenet::kPanel) {
        for (int64_t k = 0; k < inputs; ++k) {
          for (int64_t c = first; c < std::min(columns, first + dicenet::kPanel); ++c) {
            weights_.push_back(c < each ? static_cast<float>(weight.at((g * each + c) * inputs + k)) : 0.0f);
          }
        }
      }
      s.bias = weights(bias, 1, each, g * each);
      if (activated) activation(s, slope, g * each, each);
      steps_.push_back(s);
    }
    each_value(out, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      double sum = bias.at(c);
      for (int64_t k = 0; k < inputs; ++k) sum += weight.at(c * inputs + k) * of(x, n, h, w, c / each * inputs + k);
      return activated ? prelu(sum, slope.at(c)) : sum;
    });
    return out;
  }

  /// Depth-wise 3x3, times a gate; with `left`, that and the result channel by channel.
  Value depth_wise(const Value& x, int64_t stride, bool activated, const Value* gate, const Value* left) {
    const Input weight(9 * x.channels, 0.3f), bias(x.channels), slope(x.channels);
    Value alone = x;  // only the values count
    alone.height = (x.height - 1) / stride + 1, alone.width = (x.width - 1) / stride + 1;
    alone.is.resize(images_ * alone.pixels() * x.channels);
    each_value(alone, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      double sum = bias.at(c);
      for (int64_t i = 0; i < 9; ++i) {
        const int64_t y = h * stride + i / 3 - 1, column = w * stride + i % 3 - 1;
        if (y < 0 || y >= x.height || column < 0 || column >= x.width) continue;
        sum += weight.at(i * x.channels + c) * of(x, n, y, column, c);
      }
      return (activated ? prelu(sum, slope.at(c)) : sum) * (gate ? of(*gate, n, 0, 0, c) : 1.0);
    });
    Value out = map(left ? 2 * x.channels : x.channels, alone.height, alone.width);
    each_value(out, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      if (!left) return of(alone, n, h, w, c);
      return of(c % 2 ? alone : *left, n, h, w, c / 2);
    });
    Step s = step(Kind::kDepthWise, &x, &out);
    s.channels = x.stride, s.stride = stride, s.count = x.channels;
    s.weight = weights(weight, 9, x.channels);
    s.bias = weights(bias, 1, x.channels);
    if (activated) activation(s, slope, 0, x.channels);
    if (gate) s.gate = gate->place, s.gate_image = gate->image;
    if (left) s.second = left->place, s.second_stride = left->stride, s.second_image = left->image;
    steps_.push_back(s);
    return out;
  }

  /// The local part of a unit, and the means of its channels. `trained`: sizes that the kernels are made for.
  std::pair<Value, Value> local(const Value& x, int64_t trained_height, int64_t trained_width) {
    const int64_t channels = x.channels;
    const Input depth(9 * channels, 0.3f), join(3 * channels, 0.5f);
    const Input height(9 * trained_height, 0.3f), width(9 * trained_width, 0.3f);
    const NormCase norm(3 * channels, true), joined(channels, true);
    Output table(dicenet::kLocalRows * channels);
    dicenet::fold_local(channels, depth.get(), norm.get(), join.get(), joined.get(), table.get());
    const int64_t rows = dicenet::local_block_rows(x.height);
    Value out = map(channels, x.height, x.width), means = map(channels, 1, 1);
    Value sums = map(channels, (x.height + rows - 1) / rows, 1);
    const Value by_depth = branch(x, dicenet::kDepth, depth);
    Step s = step(Kind::kLocal, &x, &out);
    s.channels = x.stride;
    s.second = sums.place, s.second_image = sums.image;
    s.weight = static_cast<int64_t>(weights_.size());
    for (int64_t row = 0; row < dicenet::kLocalRows; ++row) {
      for (int64_t c = 0; c < x.stride; ++c) weights_.push_back(c < channels ? table.get()[row * channels + c] : 0.0f);
    }
    s.bias = weights(height, 1, height.size());
    s.middle = weights(width, 1, width.size());
    Value by_height, by_width;
    if (trained_height == x.height && trained_width == x.width) {
      by_height = branch(x, dicenet::kHeight, height), by_width = branch(x, dicenet::kWidth, width);
    } else {  // their steps come first
      by_height = resize(dim_conv(resize(x, true, trained_height), dicenet::kHeight, height), true, x.height);
      by_width = resize(dim_conv(resize(x, false, trained_width), dicenet::kWidth, width), false, x.width);
      s.third = by_height.place, s.third_image = by_height.image;
      s.fourth = by_width.place, s.fourth_image = by_width.image;
    }
    steps_.push_back(s);
    each_value(out, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      const double branches[] = {of(by_depth, n, h, w, c), of(by_height, n, h, w, c), of(by_width, n, h, w, c)};
      double sum = 0;
      for (int b = 0; b < 3; ++b) sum += join.at(3 * c + b) * norm.y(b * channels + c, branches[b]);
      return joined.y(c, sum);
    });
    // how the sums are shared out among the blocks depends on the threads: only their total counts
    each_value(sums, [&](int64_t n, int64_t block, int64_t, int64_t c) {
      double sum = 0;
      for (int64_t p = 0; p < x.pixels() && block == 0; ++p) sum += of(out, n, p / x.width, p % x.width, c);
      return sum;
    });
    mean_into(sums, x.pixels(), means);
    return {out, means};
  }

  Value mean(const Value& x) {
    Value out = map(x.channels, 1, 1);
    mean_into(x, x.pixels(), out);
    return out;
  }

  /// In place: what a gate is made of has one use.
  void sigmoid(Value& x) {
    Step s = step(Kind::kSigmoid, &x, &x);
    s.channels = x.stride;
    steps_.push_back(s);
    for (double& v : x.is) v = 1 / (1 + std::exp(-v));
  }

  Value interleave(const Value& first, const Value& second) {
    Value out = map(2 * first.channels, first.height, first.width);
    Step s = step(Kind::kInterleave, &first, &out);
    s.second = second.place, s.second_stride = second.stride, s.second_image = second.image;
    steps_.push_back(s);
    each_value(out, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      return of(c % 2 ? second : first, n, h, w, c / 2);
    });
    return out;
  }

  Value concatenate(const std::vector<Value>& parts) {
    int64_t channels = 0, start = 0;
    for (const Value& v : parts) channels += v.channels;
    Value out = map(channels, parts[0].height, parts[0].width);
    for (const Value& v : parts) {
      Step s = step(Kind::kCopy, &v, &out);
      s.out += start;
      s.count = &v == &parts.back() ? out.stride - out.channels : 0;
      steps_.push_back(s);
      for (int64_t p = 0; p < images_ * v.pixels(); ++p) {
        for (int64_t c = 0; c < v.channels; ++c) out.is[p * channels + start + c] = v.is[p * v.channels + c];
      }
      start += v.channels;
    }
    return out;
  }

  Value norm_act(const Value& x, bool activated) {
    const Input scale(x.channels), shift(x.channels), slope(x.channels);
    Value out = map(x.channels, x.height, x.width);
    Step s = step(Kind::kNormAct, &x, &out);
    s.channels = x.stride;
    s.weight = weights(scale, 1, x.channels);
    s.bias = weights(shift, 1, x.channels);
    if (activated) s.middle = weights(slope, 1, x.channels);
    steps_.push_back(s);
    each_value(out, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      const double z = scale.at(c) * of(x, n, h, w, c) + shift.at(c);
      return activated ? prelu(z, slope.at(c)) : z;
    });
    return out;
  }

  /// A sum of maps, or a map times a vector.
  Value together(Kind kind, const Value& x, const Value& second) {
    Value out = map(x.channels, x.height, x.width);
    Step s = step(kind, &x, &out);
    s.channels = x.stride;
    s.second = second.place, s.second_stride = second.stride, s.second_image = second.image;
    steps_.push_back(s);
    each_value(out, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      const double v = of(x, n, h, w, c);
      return kind == Kind::kAdd ? v + of(second, n, h, w, c) : v * of(second, n, 0, 0, c);
    });
    return out;
  }

  /// One side resized by any weighted sums.
  Value resize(const Value& x, bool rows, int64_t size) {
    const int64_t old = rows ? x.height : x.width;
    if (old == size) return x;
    Value out = rows ? map(x.channels, size, x.width) : map(x.channels, x.height, size);
    const int64_t longest = std::min<int64_t>(3, old);
    Step s = step(rows ? Kind::kResizeRows : Kind::kResizeColumns, &x, &out);
    s.channels = x.stride, s.kernel = longest;
    s.weight = static_cast<int64_t>(weights_.size());
    for (int64_t i = 0; i < size; ++i) {
      const int64_t count = 1 + i % longest, first = i * (old - count) / std::max<int64_t>(1, size - 1);
      const Input taps(longest);
      weights_.push_back(static_cast<float>(first)), weights_.push_back(static_cast<float>(count));
      for (int64_t t = 0; t < longest; ++t) weights_.push_back(t < count ? static_cast<float>(taps.at(t)) : 0.0f);
    }
    steps_.push_back(s);
    each_value(out, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      const float* taps = weights_.data() + s.weight + (rows ? h : w) * (2 + longest);
      double sum = 0;
      for (int64_t t = 0; t < static_cast<int64_t>(taps[1]); ++t) {
        const int64_t from = static_cast<int64_t>(taps[0]) + t;
        sum += static_cast<double>(taps[2 + t]) * (rows ? of(x, n, from, w, c) : of(x, n, h, from, c));
      }
      return sum;
    });
    fill_weights();
    return out;
  }

  /// Runs it, then from four threads at a time, and compares.
  void run() {
    fill_weights();
    Input packed(static_cast<int64_t>(weights_.size()));
    for (size_t i = 0; i < weights_.size(); ++i) packed[static_cast<int64_t>(i)] = weights_[i];
    const int64_t count = static_cast<int64_t>(steps_.size());
    const dicenet::Plan plan{steps_.data(), count, packed.get(), arena_, group_, std::min(group_from_, count)};
    struct Outputs {
      std::vector<std::unique_ptr<Output>> memory;
      std::vector<dicenet::Outside> outside;
    };
    std::vector<Outputs> runs(5);
    for (Outputs& o : runs) {
      for (const Result& r : results_) {
        o.memory.push_back(std::make_unique<Output>(static_cast<int64_t>(r.expected.size())));
        o.outside.push_back({o.memory.back()->get(), r.height * r.width * r.channels, 1, r.width * r.channels, r.channels});
      }
    }
    const auto work = [&](Outputs& o) { dicenet::run_plan(plan, inputs_, o.outside, images_); };
    work(runs[0]);
    std::vector<std::thread> hosts;
    for (size_t i = 1; i < runs.size(); ++i) hosts.emplace_back(work, std::ref(runs[i]));
    for (std::thread& t : hosts) t.join();
    for (Outputs& o : runs) {
      for (size_t i = 0; i < results_.size(); ++i) {
        char text[100];
        std::snprintf(text, sizeof text, ", result %zu (step %lld), %lld images in groups of %lld from step %lld", i,
                      static_cast<long long>(results_[i].step), static_cast<long long>(images_),
                      static_cast<long long>(group_), static_cast<long long>(plan.group_from));
        o.memory[i]->check(name_ + text, results_[i].expected, 400);
      }
    }
  }

 private:
  struct Result {
    int64_t channels, height, width;
    Doubles expected;
    int64_t step;
  };

  static Step step(Kind kind, const Value* x, const Value* out) {
    Step s;
    std::fill_n(reinterpret_cast<int64_t*>(&s), dicenet::kStepFields, int64_t{-1});
    s.kind = kind;
    s.x_image = s.second_image = s.out_image = s.gate_image = s.third_image = s.fourth_image = 0;
    if (x) {
      s.x = x->place, s.x_stride = x->stride, s.x_image = x->image;
      s.channels = x->channels, s.height = x->height, s.width = x->width;
    }
    if (out) {
      s.out = out->place, s.out_stride = out->stride, s.out_image = out->image;
      s.out_height = out->height, s.out_width = out->width;
    }
    return s;
  }

  double of(const Value& v, int64_t n, int64_t h, int64_t w, int64_t c) const {
    return v.is[((n * v.height + h) * v.width + w) * v.channels + c];
  }
  template <class F>
  void each_value(Value& v, const F& f) const {
    int64_t i = 0;
    for (int64_t n = 0; n < images_; ++n) {
      for (int64_t h = 0; h < v.height; ++h) {
        for (int64_t w = 0; w < v.width; ++w) {
          for (int64_t c = 0; c < v.channels; ++c) v.is[i++] = f(n, h, w, c);
        }
      }
    }
  }
  void pool_values(const Value& x, bool maximum, Value& out) const {
    each_value(out, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
      double best = -std::numeric_limits<double>::infinity(), sum = 0;
      for (int64_t y = std::max<int64_t>(0, 2 * h - 1); y < std::min(x.height, 2 * h + 2); ++y) {
        for (int64_t column = std::max<int64_t>(0, 2 * w - 1); column < std::min(x.width, 2 * w + 2); ++column) {
          best = std::max(best, of(x, n, y, column, c));
          sum += of(x, n, y, column, c);
        }
      }
      return maximum ? best : sum / 9;
    });
  }
  void mean_into(const Value& x, int64_t count, Value& out) {
    Step s = step(Kind::kMean, &x, &out);
    s.channels = x.stride, s.count = count;
    steps_.push_back(s);
    each_value(out, [&](int64_t n, int64_t, int64_t, int64_t c) {
      double sum = 0;
      for (int64_t p = 0; p < x.pixels(); ++p) sum += x.is[(n * x.pixels() + p) * x.channels + c];
      return sum / static_cast<double>(count);
    });
  }
  /// Values of one branch of a dimension-wise convolution.
  Value branch(const Value& x, int which, const Input& kernel) const {
    Value out = x;
    std::fill(out.is.begin(), out.is.end(), 0.0);
    each_product({{images_, x.channels, x.height, x.width}, 3, which}, x.channels,
                 [&](int, int64_t o, int64_t i, int64_t k) { out.is[o] += kernel.at(k) * x.is[i]; });
    return out;
  }
  Value dim_conv(const Value& x, int which, const Input& kernel) {
    Value out = map(x.channels, x.height, x.width);
    Step s = step(Kind::kDimConv, &x, &out);
    s.channels = x.stride, s.kernel = which;
    s.weight = weights(kernel, 1, kernel.size());
    steps_.push_back(s);
    out.is = branch(x, which, kernel).is;
    return out;
  }

  int64_t input(const Given& given) {
    inputs_.push_back(given.outside);
    return static_cast<int64_t>(inputs_.size()) - 1;
  }
  /// Every weight ends with a whole vector.
  void fill_weights() {
    weights_.resize(dicenet::padded(static_cast<int64_t>(weights_.size())));
  }
  /// Some rows of weights, each padded.
  int64_t weights(const Input& from, int64_t rows, int64_t columns, int64_t first = 0) {
    const auto place = static_cast<int64_t>(weights_.size());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) weights_.push_back(static_cast<float>(from.at(first + r * columns + c)));
      fill_weights();
    }
    return place;
  }
  /// The slopes of a PReLU as the kernels take them.
  void activation(Step& s, const Input& slope, int64_t first, int64_t channels) {
    Input middle(channels), half(channels);
    for (int64_t c = 0; c < channels; ++c) {
      middle[c] = static_cast<float>((1 + slope.at(first + c)) / 2);
      half[c] = static_cast<float>((1 - slope.at(first + c)) / 2);
    }
    s.middle = weights(middle, 1, channels);
    s.half = weights(half, 1, channels);
  }

  std::string name_;
  int64_t images_, group_;
  int64_t group_from_ = std::numeric_limits<int64_t>::max();  // no group: every image by itself
  std::vector<Step> steps_;
  std::vector<float> weights_;
  std::vector<dicenet::Outside> inputs_;
  std::vector<Result> results_;
  int64_t arena_ = 0;
};

/// Where the steps that a group takes together begin.
enum class Grouped { kAll, kSome, kNone };

void check_stems(int64_t images, int64_t group, Grouped grouped) {
  struct Shape {
    int64_t channels, outputs, height, width, kernel, stride, padding;
  };
  const Shape shapes[] = {{3, 24, 17, 40, 3, 2, 1}, {1, 5, 9, 8, 3, 1, 1}, {4, 48, 12, 31, 5, 2, 2},
                          {3, 33, 7, 6, 7, 4, 3},   {2, 16, 1, 1, 3, 2, 1}, {3, 8, 6, 30, 1, 1, 0}};
  for (const Shape& a : shapes) {
    for (const bool last : {false, true}) {
      const Given picture(images, a.channels, a.height, a.width, last);
      PlanCase plan("stem", images, group);
      if (grouped == Grouped::kAll) plan.group_from_here();
      const Value rows = plan.stem(picture, a.outputs, a.kernel, a.stride, a.padding, !last, false);
      plan.store(rows);
      if (grouped == Grouped::kSome) plan.group_from_here();
      plan.store(plan.pool(rows, true));
      plan.store(plan.stem(picture, a.outputs, a.kernel, a.stride, a.padding, last, true));
      plan.run();
    }
  }
}

/// Everything else, on maps of `channels` and, behind a pool, twice as many.
void check_steps(int64_t images, int64_t group, Grouped grouped, int64_t channels, int64_t height, int64_t width) {
  PlanCase plan("steps", images, group);
  if (grouped == Grouped::kAll) plan.group_from_here();
  const bool alone = grouped != Grouped::kAll;  // maps that no later step uses
  const Given first(images, channels, height, width, false), second(images, channels + 3, height, width, true);
  const Value x = plan.load(first, alone), y = plan.load(second, alone);
  plan.store(x), plan.store(y);
  const Value wide = plan.gemm(y, 2 * channels, 1, true, true);
  plan.store(wide);
  plan.store(plan.gemm(x, 50, 1, false, false));
  plan.store(plan.depth_wise(wide, 1, true, nullptr, nullptr));
  plan.store(plan.concatenate({x, wide, plan.part(y, 1, channels), x}));
  const Value shuffled = plan.interleave(plan.part(wide, channels, channels), x);
  plan.store(shuffled);
  const Value small = plan.pool(shuffled, false), peaks = plan.pool(wide, true);
  const Value strided = plan.depth_wise(wide, 2, false, nullptr, nullptr);
  if (grouped == Grouped::kSome) plan.group_from_here();
  plan.store(small), plan.store(peaks), plan.store(strided);
  const Value mixed = plan.gemm(plan.part(small, channels / 2, channels), 2 * channels, 1, true, true);
  plan.store(mixed);
  if (2 * channels % 64 == 0) plan.store(plan.gemm(mixed, 64, 4, true, true));  // outputs that begin at a vector
  plan.store(plan.gemm(mixed, 139, 1, false, true));
  for (const bool scaled : {false, true}) {
    const auto [local, means] = plan.local(mixed, mixed.height + (scaled ? 2 : 0), mixed.width - (scaled ? 1 : 0));
    plan.store(local), plan.store(means);
    Value gate = plan.gemm(plan.gemm(means, std::max<int64_t>(1, channels / 2), 1, true, true), 2 * channels, 1, false, true);
    plan.sigmoid(gate);
    plan.store(gate, false);
    plan.store(plan.depth_wise(local, 1, true, &gate, nullptr));
    plan.store(plan.together(Kind::kMultiply, local, gate), false);
    // interleaving takes whole vectors
    if (2 * channels >= dicenet::kPad) plan.store(plan.depth_wise(local, 1, scaled, &gate, &strided));
  }
  if (2 * channels >= dicenet::kPad) plan.store(plan.depth_wise(mixed, 1, true, nullptr, &mixed));
  plan.store(plan.together(Kind::kAdd, small, strided));
  plan.store(plan.norm_act(small, true), false);
  plan.store(plan.norm_act(peaks, false), false);
  plan.store(plan.mean(strided));
  plan.store(plan.resize(small, true, small.height + 3));
  plan.store(plan.resize(small, false, 1 + small.width / 2));
  plan.run();
}

void check_plans() {
  struct Batch {
    int64_t images, group;
  };
  const int64_t channels[] = {4, 8, 17, 24, 32, 70};
  int turn = 0;
  for (const Batch& batch : {Batch{1, 1}, Batch{3, 2}, Batch{0, 2}, Batch{5, 3}, Batch{12, 8}, Batch{2, 8}}) {
    for (const Grouped grouped : {Grouped::kAll, Grouped::kSome, Grouped::kNone}) {
      check_stems(batch.images, batch.group, grouped);
      for (int i = 0; i < 2; ++i, ++turn) {
        check_steps(batch.images, batch.group, grouped, channels[turn % 6], 3 + turn % 7, 3 + turn % 5);
      }
    }
  }
  // enough work for several threads in every step
  check_steps(3, 2, Grouped::kSome, 139, 21, 18);
}
