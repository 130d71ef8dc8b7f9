"""Shapes, gradients and work of the C++ operators, for torch's compiler, autograd and FLOP counter."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dicenet.ops import reference

Gradients = tuple[Tensor | None, ...]


def _map(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _by_torch(function: Callable[..., Tensor], grad: Tensor, *tensors: Tensor | None) -> Gradients:
    """Gradients that can be differentiated once more: the C++ ones cannot, so torch's own operators compute them.

    Gradients of tensors that need none are None.
    """
    # as views, so that a tensor that depends on another one here does not pass its gradient on to it
    views = [t.view_as(t) if t is not None and t.requires_grad else t for t in tensors]
    wanted = [t for t in views if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(function(*views), wanted, grad, create_graph=True))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in views)


# -- dim_conv


def _dim_conv_fake(x: Tensor, depth: Tensor | None, height: Tensor | None, width: Tensor | None) -> Tensor:
    n, c, h, w = x.shape
    branches = sum(weight is not None for weight in (depth, height, width))
    return _map(x, n, branches * c, h, w)


def _dim_conv_backward_fake(
    grad: Tensor,
    x: Tensor,
    depth: Tensor | None,
    height: Tensor | None,
    width: Tensor | None,
    of_x: bool,
    of_weights: bool,
) -> tuple[Tensor, ...]:
    def like(weight: Tensor | None) -> Tensor:
        # the kernels' gradients come densely packed, whatever the kernels' own strides are
        return grad.new_empty(weight.shape if weight is not None and of_weights else (0,))

    return _map(x, *x.shape) if of_x else grad.new_empty(0), like(depth), like(height), like(width)


def _dim_conv_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _dim_conv_grad(ctx: Any, grad: Tensor) -> Gradients:
    x, *weights = ctx.saved_tensors
    if torch.is_grad_enabled():
        return _by_torch(reference.dim_conv, grad, x, *weights)
    needed = ctx.needs_input_grad
    results = torch.ops.dicenet.dim_conv_backward(grad, x, *weights, needed[0], any(needed[1:]))
    return tuple(result if wanted else None for result, wanted in zip(results, needed, strict=True))


# -- norm_prelu


def _batch_moments_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _norm_prelu_fake(x: Tensor, *rest: Any) -> Tensor:
    return _map(x, *x.shape)


def _norm_prelu_backward_fake(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    vectors = (x.new_empty(x.shape[1]) for _ in range(3))
    return (_map(x, *x.shape) if rest[-1] else x.new_empty(0), *vectors)


def _norm_prelu_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.training = inputs
    ctx.save_for_backward(*tensors)


def _norm_prelu_grad(ctx: Any, grad: Tensor) -> Gradients:
    x, weight, bias, mean, var, slope = ctx.saved_tensors
    if torch.is_grad_enabled():
        # in training mean and var are functions of x, which torch's norm computes itself
        fixed_mean, fixed_var = (None, None) if ctx.training else (mean, var)

        def by_torch(x: Tensor, weight: Tensor | None, bias: Tensor | None, slope: Tensor) -> Tensor:
            return F.prelu(F.batch_norm(x, fixed_mean, fixed_var, weight, bias, ctx.training, 0.0, ctx.eps), slope)

        grad_x, grad_weight, grad_bias, grad_slope = _by_torch(by_torch, grad, x, weight, bias, slope)
        return grad_x, grad_weight, grad_bias, None, None, grad_slope, None, None
    needed = ctx.needs_input_grad
    grad_x, grad_weight, grad_bias, grad_slope = torch.ops.dicenet.norm_prelu_backward(
        grad, x, weight, bias, mean, var, slope, ctx.eps, ctx.training, needed[0]
    )
    # mean and var are functions of x in training: their share is in grad_x already
    results = (grad_x, grad_weight, grad_bias, None, None, grad_slope)
    chosen = (result if wanted else None for result, wanted in zip(results, needed, strict=False))
    return (*chosen, None, None)


# -- join_branches


def _join_branches_fake(x: Tensor, weight: Tensor) -> Tensor:
    n, _, h, w = x.shape
    return _map(x, n, weight.shape[0], h, w)


def _join_branches_backward_fake(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return _map(x, *x.shape), weight.new_empty(weight.shape[0], 3, 1, 1)


def _join_branches_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _join_branches_by_torch(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.channel_shuffle(x, 3), weight, groups=weight.shape[0])


def _join_branches_grad(ctx: Any, grad: Tensor) -> Gradients:
    if torch.is_grad_enabled():
        return _by_torch(_join_branches_by_torch, grad, *ctx.saved_tensors)
    return torch.ops.dicenet.join_branches_backward(grad, *ctx.saved_tensors)


# -- inference


def _fold_local_fake(weight_depth: Tensor, *rest: Any) -> Tensor:
    return weight_depth.new_empty(21, weight_depth.shape[0])


def _fold_spatial_fake(kernel: Tensor, *rest: Any) -> Tensor:
    return kernel.new_empty(12, kernel.shape[0])


def _dice_local_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _map(x, *x.shape), x.new_empty(x.shape[0], x.shape[1])


def _dice_spatial_fake(x: Tensor, *rest: Any) -> Tensor:
    return _map(x, *x.shape)


def _run_plan_fake(
    inputs: Sequence[Tensor], program: Tensor, weights: Tensor, out_shapes: Sequence[int], *rest: int
) -> list[Tensor]:
    images = inputs[0].shape[0]
    results = []
    for channels, height, width in zip(out_shapes[::3], out_shapes[1::3], out_shapes[2::3], strict=True):
        if height == 0:
            results.append(inputs[0].new_empty(images, channels))
        else:
            results.append(_map(inputs[0], images, channels, height, width))
    return results


# -- work, in floating-point operations (two per multiply-add), as torch's counter counts convolutions


def _taps(weights: Sequence[Sequence[int] | None]) -> int:
    return sum(shape[-1] * shape[-2] for shape in weights if shape is not None)


def _dim_conv_flops(x: Sequence[int], *weights: Any, out_shape: Any = None, **_: Any) -> int:
    n, c, h, w = x
    return 2 * n * c * h * w * _taps(weights)


def _dim_conv_backward_flops(grad: Sequence[int], x: Sequence[int], *rest: Any, out_shape: Any = None, **_: Any) -> int:
    *weights, of_x, of_weights = rest
    return (of_x + of_weights) * _dim_conv_flops(x, *weights)


def _join_branches_flops(x: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    n, c, h, w = x
    return 2 * n * c * h * w


def _join_branches_backward_flops(grad: Any, x: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * _join_branches_flops(x)


def _dice_local_flops(x: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    n, c, h, w = x
    return 2 * n * c * h * w * (27 + 3)  # three branches of 3x3, and the 1x1 that joins them


def _dice_spatial_flops(
    x: Sequence[int], means: Any, table: Any, squeeze: Sequence[int], *_: Any, out_shape: Any = None, **__: Any
) -> int:
    n, c, h, w = x
    return 2 * n * (9 * c * h * w + 2 * squeeze[0] * c)


def _run_plan_flops(inputs: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    return 2 * inputs[0][0] * rest[-1]


_FAKES: dict[str, Callable[..., Any]] = {
    "dim_conv": _dim_conv_fake,
    "dim_conv_backward": _dim_conv_backward_fake,
    "batch_moments": _batch_moments_fake,
    "norm_prelu": _norm_prelu_fake,
    "norm_prelu_backward": _norm_prelu_backward_fake,
    "join_branches": _join_branches_fake,
    "join_branches_backward": _join_branches_backward_fake,
    "fold_local": _fold_local_fake,
    "fold_spatial": _fold_spatial_fake,
    "dice_local": _dice_local_fake,
    "dice_spatial": _dice_spatial_fake,
    "run_plan": _run_plan_fake,
}
_FLOPS: dict[str, Callable[..., Any]] = {
    "dim_conv": _dim_conv_flops,
    "dim_conv_backward": _dim_conv_backward_flops,
    "join_branches": _join_branches_flops,
    "join_branches_backward": _join_branches_backward_flops,
    "dice_local": _dice_local_flops,
    "dice_spatial": _dice_spatial_flops,
    "run_plan": _run_plan_flops,
}


def register() -> None:
    """Tell torch. Once, after the library is loaded."""
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"dicenet::{name}", fake)
    torch.library.register_autograd("dicenet::dim_conv", _dim_conv_grad, setup_context=_dim_conv_context)
    torch.library.register_autograd("dicenet::norm_prelu", _norm_prelu_grad, setup_context=_norm_prelu_context)
    torch.library.register_autograd("dicenet::join_branches", _join_branches_grad, setup_context=_join_branches_context)
    for name, formula in _FLOPS.items():
        register_flop_formula(getattr(torch.ops.dicenet, name))(formula)
