// The operators' registration with torch, through its stable interface only: one build serves later versions.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include "parallel.h"
#include "plan.h"
#include "unit.h"

#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

dicenet::Threads torch_threads() {
  return {[] { return static_cast<int>(torch::stable::get_num_threads()); },
          [](int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
            torch_parallel_for(0, count, grain, body, context);
          }};
}

Tensor new_tensor(std::vector<int64_t> size, bool channels_last = false) {
  return torch::stable::empty(
      {size.data(), size.size()}, ScalarType::Float, std::nullopt, std::nullopt, std::nullopt,
      channels_last ? std::optional(MemoryFormat::ChannelsLast) : std::nullopt);
}

void check_float(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, name, " must be float32");
  STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU");
}

bool is_dense_channels_last(const Tensor& t) {
  const int64_t order[4] = {1, 3, 2, 0};
  int64_t expected = 1;
  for (const int64_t d : order) {
    if (t.size(d) > 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

/// A map as the kernels read it, copied only if it has another layout.
Tensor channels_last(const Tensor& t, const char* name) {
  check_float(t, name);
  STD_TORCH_CHECK(t.dim() == 4, name, " must have 4 dimensions");
  return is_dense_channels_last(t) ? t : torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
}

Tensor dense(const Tensor& t, const char* name) {
  check_float(t, name);
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

const float* data(const Tensor& t) {
  return static_cast<const float*>(t.const_data_ptr());
}

float* mutable_data(const Tensor& t) {
  return static_cast<float*>(t.mutable_data_ptr());
}

/// A vector or small matrix of known size; holds a dense copy alive while its pointer is used.
class Vector {
 public:
  Vector(const Tensor& t, int64_t size, const char* name) : tensor_(dense(t, name)) {
    STD_TORCH_CHECK(t.numel() == size, name, " must have ", size, " values, not ", t.numel());
  }
  Vector(const OptionalTensor& t, int64_t size, const char* name) {
    if (t) *this = Vector(*t, size, name);
  }
  const float* get() const {
    return tensor_ ? data(*tensor_) : nullptr;
  }

 private:
  OptionalTensor tensor_;
};

dicenet::MapShape shape_of(const Tensor& t) {
  return {t.size(0), t.size(1), t.size(2), t.size(3)};
}

/// The kernels of the branches that are there, checked against the map.
struct Weights {
  Weights(const OptionalTensor& depth, const OptionalTensor& height, const OptionalTensor& width,
          const dicenet::MapShape& s) {
    for (const OptionalTensor* t : {&depth, &height, &width}) {
      if (*t) kernel = (*t)->size((*t)->dim() - 1);
    }
    const int64_t taps = kernel * kernel;
    STD_TORCH_CHECK(s.channels > 0 && s.height > 0 && s.width > 0, "dim_conv needs a map of at least one channel, row "
                    "and column");
    STD_TORCH_CHECK(kernel % 2 == 1, "dim_conv needs kernels of an odd size");
    depth_ = Vector(depth, s.channels * taps, "weight_depth");
    height_ = Vector(height, s.height * taps, "weight_height");
    width_ = Vector(width, s.width * taps, "weight_width");
  }
  dicenet::BranchWeights get() const {
    return {depth_.get(), height_.get(), width_.get(), kernel};
  }
  int64_t kernel = 0;

 private:
  Vector depth_{OptionalTensor(), 0, ""}, height_{OptionalTensor(), 0, ""}, width_{OptionalTensor(), 0, ""};
};

int64_t count_branches(const dicenet::BranchWeights& w) {
  return (w.depth != nullptr) + (w.height != nullptr) + (w.width != nullptr);
}

Tensor dim_conv(const Tensor& x_, const OptionalTensor& depth, const OptionalTensor& height,
                const OptionalTensor& width) {
  const Tensor x = channels_last(x_, "x");
  const auto s = shape_of(x);
  const Weights weights(depth, height, width, s);
  const Tensor out = new_tensor({s.images, count_branches(weights.get()) * s.channels, s.height, s.width}, true);
  dicenet::dim_conv(s, weights.get(), data(x), mutable_data(out));
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dim_conv_backward(const Tensor& grad_, const Tensor& x_,
                                                             const OptionalTensor& depth, const OptionalTensor& height,
                                                             const OptionalTensor& width, bool of_x, bool of_weights) {
  const Tensor x = channels_last(x_, "x"), grad = channels_last(grad_, "grad");
  const auto s = shape_of(x);
  const Weights weights(depth, height, width, s);
  const auto w = weights.get();
  STD_TORCH_CHECK(grad.size(0) == s.images && grad.size(1) == count_branches(w) * s.channels &&
                      grad.size(2) == s.height && grad.size(3) == s.width,
                  "grad must have the shape of dim_conv's output");
  const auto like = [&](const OptionalTensor& t, int64_t planes) {
    return t && of_weights ? new_tensor({planes, 1, w.kernel, w.kernel}) : new_tensor({0});
  };
  const Tensor grad_x = of_x ? new_tensor({s.images, s.channels, s.height, s.width}, true) : new_tensor({0});
  const Tensor grad_depth = like(depth, s.channels), grad_height = like(height, s.height),
               grad_width = like(width, s.width);
  const auto wanted = [](const Tensor& t) { return t.dim() == 1 ? nullptr : mutable_data(t); };
  dicenet::dim_conv_backward(s, w, data(x), data(grad), of_x ? mutable_data(grad_x) : nullptr, wanted(grad_depth),
                             wanted(grad_height), wanted(grad_width));
  return {grad_x, grad_depth, grad_height, grad_width};
}

/// A batch norm's tensors, checked.
class NormTensors {
 public:
  NormTensors(const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean, const Tensor& variance,
              double eps, const Tensor& slope, int64_t channels)
      : weight_(weight, channels, "weight"),
        bias_(bias, channels, "bias"),
        mean_(mean, channels, "mean"),
        variance_(variance, channels, "var"),
        slope_(slope, channels, "slope"),
        eps_(eps) {}
  dicenet::Norm get() const {
    return {weight_.get(), bias_.get(), mean_.get(), variance_.get(), eps_, slope_.get()};
  }

 private:
  Vector weight_, bias_, mean_, variance_, slope_;
  double eps_;
};

std::tuple<Tensor, Tensor> batch_moments(const Tensor& x_) {
  const Tensor x = channels_last(x_, "x");
  const auto s = shape_of(x);
  const Tensor mean = new_tensor({s.channels}), variance = new_tensor({s.channels});
  dicenet::batch_moments(s, data(x), mutable_data(mean), mutable_data(variance));
  return {mean, variance};
}

Tensor norm_prelu(const Tensor& x_, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
                  const Tensor& variance, const Tensor& slope, double eps, bool) {
  const Tensor x = channels_last(x_, "x");
  const auto s = shape_of(x);
  const NormTensors norm(weight, bias, mean, variance, eps, slope, s.channels);
  const Tensor out = new_tensor({s.images, s.channels, s.height, s.width}, true);
  dicenet::norm_prelu(s, norm.get(), data(x), mutable_data(out));
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_prelu_backward(const Tensor& grad_, const Tensor& x_,
                                                               const OptionalTensor& weight,
                                                               const OptionalTensor& bias, const Tensor& mean,
                                                               const Tensor& variance, const Tensor& slope, double eps,
                                                               bool training, bool of_x) {
  const Tensor x = channels_last(x_, "x"), grad = channels_last(grad_, "grad");
  const auto s = shape_of(x);
  STD_TORCH_CHECK(grad.numel() == x.numel(), "grad must have the shape of x");
  const NormTensors norm(weight, bias, mean, variance, eps, slope, s.channels);
  const Tensor grad_x = of_x ? new_tensor({s.images, s.channels, s.height, s.width}, true) : new_tensor({0});
  const Tensor grad_weight = new_tensor({s.channels}), grad_bias = new_tensor({s.channels}),
               grad_slope = new_tensor({s.channels});
  dicenet::norm_prelu_backward(s, norm.get(), training, data(x), data(grad), of_x ? mutable_data(grad_x) : nullptr,
                               mutable_data(grad_weight), mutable_data(grad_bias), mutable_data(grad_slope));
  return {grad_x, grad_weight, grad_bias, grad_slope};
}

Tensor join_branches(const Tensor& x_, const Tensor& weight) {
  const Tensor x = channels_last(x_, "x");
  const dicenet::MapShape s{x.size(0), weight.size(0), x.size(2), x.size(3)};
  STD_TORCH_CHECK(x.size(1) == 3 * s.channels, "x must have 3 times as many channels as the result");
  const Vector factors(weight, 3 * s.channels, "weight");
  const Tensor out = new_tensor({s.images, s.channels, s.height, s.width}, true);
  dicenet::join_branches(s, factors.get(), data(x), mutable_data(out));
  return out;
}

std::tuple<Tensor, Tensor> join_branches_backward(const Tensor& grad_, const Tensor& x_, const Tensor& weight) {
  const Tensor x = channels_last(x_, "x"), grad = channels_last(grad_, "grad");
  const auto s = shape_of(grad);
  STD_TORCH_CHECK(x.numel() == 3 * grad.numel(), "grad must have a third of the values of x");
  const Vector factors(weight, 3 * s.channels, "weight");
  const Tensor grad_x = new_tensor({s.images, 3 * s.channels, s.height, s.width}, true);
  const Tensor grad_weight = new_tensor({s.channels, 3, 1, 1});
  dicenet::join_branches_backward(s, factors.get(), data(x), data(grad), mutable_data(grad_x),
                                  mutable_data(grad_weight));
  return {grad_x, grad_weight};
}

Tensor fold_local(const Tensor& depth, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
                  const Tensor& variance, const Tensor& slope, double eps, const Tensor& join,
                  const OptionalTensor& join_weight, const OptionalTensor& join_bias, const Tensor& join_mean,
                  const Tensor& join_variance, const Tensor& join_slope, double join_eps) {
  const int64_t channels = depth.size(0);
  const Vector kernels(depth, 9 * channels, "weight_depth"), joins(join, 3 * channels, "join");
  const NormTensors norm(weight, bias, mean, variance, eps, slope, 3 * channels);
  const NormTensors joined(join_weight, join_bias, join_mean, join_variance, join_eps, join_slope, channels);
  const Tensor table = new_tensor({dicenet::kLocalRows, channels});
  dicenet::fold_local(channels, kernels.get(), norm.get(), joins.get(), joined.get(), mutable_data(table));
  return table;
}

std::tuple<Tensor, Tensor> dice_local(const Tensor& x_, const Tensor& table, const Tensor& height,
                                      const Tensor& width) {
  const Tensor x = channels_last(x_, "x");
  const auto s = shape_of(x);
  STD_TORCH_CHECK(dicenet::kernels().dim_conv_is_fast(s.channels, 3), "dice_local needs at least ",
                  dicenet::kernels().lanes, " channels");
  STD_TORCH_CHECK(s.height > 0 && s.width > 0, "dice_local needs maps that are not empty");
  const Vector rows(table, dicenet::kLocalRows * s.channels, "table"), heights(height, 9 * s.height, "weight_height"),
      widths(width, 9 * s.width, "weight_width");
  const Tensor out = new_tensor({s.images, s.channels, s.height, s.width}, true);
  const Tensor means = new_tensor({s.images, s.channels});
  dicenet::dice_local(s, rows.get(), heights.get(), widths.get(), data(x), mutable_data(out), mutable_data(means));
  return {out, means};
}

Tensor fold_spatial(const Tensor& kernel, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
                    const Tensor& variance, const Tensor& slope, double eps) {
  const int64_t channels = kernel.size(0);
  const Vector kernels(kernel, 9 * channels, "kernel");
  const NormTensors norm(weight, bias, mean, variance, eps, slope, channels);
  const Tensor table = new_tensor({12, channels});
  dicenet::fold_spatial(channels, kernels.get(), norm.get(), mutable_data(table));
  return table;
}

Tensor dice_spatial(const Tensor& x_, const Tensor& means, const Tensor& table, const Tensor& squeeze,
                    const Tensor& excite) {
  const Tensor x = channels_last(x_, "x");
  const auto s = shape_of(x);
  const int64_t hidden = squeeze.size(0);
  STD_TORCH_CHECK(dicenet::kernels().dim_conv_is_fast(s.channels, 3), "dice_spatial needs at least ",
                  dicenet::kernels().lanes, " channels");
  STD_TORCH_CHECK(s.height > 0 && s.width > 0, "dice_spatial needs maps that are not empty");
  const Vector rows(table, 12 * s.channels, "table"), mean(means, s.images * s.channels, "means"),
      squeezes(squeeze, hidden * s.channels, "squeeze"), excites(excite, hidden * s.channels, "excite");
  const Tensor out = new_tensor({s.images, s.channels, s.height, s.width}, true);
  dicenet::dice_spatial(s, rows.get(), squeezes.get(), excites.get(), hidden, data(x), mean.get(), mutable_data(out));
  return out;
}

dicenet::Outside outside(const Tensor& t) {
  if (t.dim() == 2) return {mutable_data(t), t.stride(0), t.stride(1), 0, 0};
  return {mutable_data(t), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

std::vector<Tensor> run_plan(const std::vector<Tensor>& inputs, const Tensor& program, const Tensor& weights,
                             const std::vector<int64_t>& out_shapes, int64_t arena, int64_t group,
                             int64_t group_from, int64_t) {
  check_float(weights, "weights");
  STD_TORCH_CHECK(program.scalar_type() == ScalarType::Long && program.is_contiguous() && program.dim() == 2 &&
                      program.size(1) == dicenet::kStepFields,
                  "program must be (steps, ", dicenet::kStepFields, ") whole numbers");
  STD_TORCH_CHECK(!inputs.empty() && out_shapes.size() % 3 == 0, "a plan needs inputs, and outputs of 3 sizes");
  const int64_t images = inputs[0].size(0);
  std::vector<dicenet::Outside> ins, outs;
  for (const Tensor& t : inputs) {
    check_float(t, "input");
    STD_TORCH_CHECK(t.size(0) == images, "inputs of a plan must hold equally many images");
    // read only: the same view serves results, which are written
    ins.push_back({const_cast<float*>(data(t)), t.stride(0), t.stride(1), t.dim() == 4 ? t.stride(2) : 0,
                   t.dim() == 4 ? t.stride(3) : 0});
  }
  std::vector<Tensor> results;
  for (size_t i = 0; i < out_shapes.size(); i += 3) {
    const int64_t channels = out_shapes[i], height = out_shapes[i + 1], width = out_shapes[i + 2];
    results.push_back(height == 0 ? new_tensor({images, channels}) : new_tensor({images, channels, height, width}, true));
    outs.push_back(outside(results.back()));
  }
  STD_TORCH_CHECK(group >= 1 && 0 <= group_from && group_from <= program.size(0),
                  "a plan's last steps take at least one image");
  const dicenet::Plan plan{static_cast<const dicenet::Step*>(program.const_data_ptr()), program.size(0),
                           data(weights), arena, group, group_from};
  dicenet::run_plan(plan, ins, outs, images);
  return results;
}

std::string cpu_level() {
  return dicenet::kernels().level;
}

/// Makes denormal numbers zero, or not, in all of torch's threads that run now.
void flush_denormals(bool on) {
  const auto threads = dicenet::threads();
  dicenet::set_flush(on);
  threads.run(
      threads.count(), 1, [](int64_t, int64_t, void* context) { dicenet::set_flush(*static_cast<bool*>(context)); },
      &on);
}

}  // namespace

STABLE_TORCH_LIBRARY(dicenet, m) {
  m.def("dim_conv(Tensor x, Tensor? weight_depth, Tensor? weight_height, Tensor? weight_width) -> Tensor");
  m.def(
      "dim_conv_backward(Tensor grad, Tensor x, Tensor? weight_depth, Tensor? weight_height, Tensor? weight_width, "
      "bool of_x, bool of_weights) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("batch_moments(Tensor x) -> (Tensor, Tensor)");
  m.def(
      "norm_prelu(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, Tensor slope, float eps, "
      "bool training) -> Tensor");
  m.def(
      "norm_prelu_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, Tensor slope, "
      "float eps, bool training, bool of_x) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("join_branches(Tensor x, Tensor weight) -> Tensor");
  m.def("join_branches_backward(Tensor grad, Tensor x, Tensor weight) -> (Tensor, Tensor)");
  m.def(
      "fold_local(Tensor weight_depth, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, Tensor slope, float eps, "
      "Tensor join, Tensor? join_weight, Tensor? join_bias, Tensor join_mean, Tensor join_var, Tensor join_slope, "
      "float join_eps) -> Tensor");
  m.def("dice_local(Tensor x, Tensor table, Tensor weight_height, Tensor weight_width) -> (Tensor, Tensor)");
  m.def(
      "fold_spatial(Tensor kernel, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, Tensor slope, float eps) -> "
      "Tensor");
  m.def("dice_spatial(Tensor x, Tensor means, Tensor table, Tensor squeeze, Tensor excite) -> Tensor");
  m.def(
      "run_plan(Tensor[] inputs, Tensor program, Tensor weights, int[] out_shapes, int arena, int group, "
      "int group_from, int macs) -> Tensor[]");
  m.def("cpu_level() -> str");
  m.def("flush_denormals(bool on) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dicenet, CPU, m) {
  m.impl("dim_conv", TORCH_BOX(&dim_conv));
  m.impl("dim_conv_backward", TORCH_BOX(&dim_conv_backward));
  m.impl("batch_moments", TORCH_BOX(&batch_moments));
  m.impl("norm_prelu", TORCH_BOX(&norm_prelu));
  m.impl("norm_prelu_backward", TORCH_BOX(&norm_prelu_backward));
  m.impl("join_branches", TORCH_BOX(&join_branches));
  m.impl("join_branches_backward", TORCH_BOX(&join_branches_backward));
  m.impl("fold_local", TORCH_BOX(&fold_local));
  m.impl("dice_local", TORCH_BOX(&dice_local));
  m.impl("fold_spatial", TORCH_BOX(&fold_spatial));
  m.impl("dice_spatial", TORCH_BOX(&dice_spatial));
  m.impl("run_plan", TORCH_BOX(&run_plan));
}

STABLE_TORCH_LIBRARY_IMPL(dicenet, CompositeExplicitAutograd, m) {
  m.impl("cpu_level", TORCH_BOX(&cpu_level));
  m.impl("flush_denormals", TORCH_BOX(&flush_denormals));
}

namespace {

const bool registered = [] {
  dicenet::set_threads(torch_threads());
  return true;
}();

}  // namespace
