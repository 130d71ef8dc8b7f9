"""The public ``dim_conv``: checks its arguments and chooses the implementation."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from dicenet.errors import ConfigError
from dicenet.ops import cpu, reference

Dilation = tuple[int, int, int]
DimConvFunction = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None, Dilation], Tensor]


@dataclass(frozen=True)
class Backend:
    """One implementation of ``dim_conv``.

    ``supports`` says whether it can take these arguments; it is asked before every automatic choice.
    """

    function: DimConvFunction
    supports: Callable[[Tensor, Tensor, Dilation], bool]


_NO_DILATION = (1, 1, 1)
_CPP_TYPES = (torch.float32, torch.bfloat16)


def _cpp_supports(x: Tensor, weight: Tensor, dilation: Dilation) -> bool:
    return dilation == _NO_DILATION and all(t.device.type == "cpu" and t.dtype in _CPP_TYPES for t in (x, weight))


def _cpp(
    x: Tensor,
    weight_depth: Tensor | None,
    weight_height: Tensor | None,
    weight_width: Tensor | None,
    dilation: Dilation,
) -> Tensor:
    weights = (weight_depth, weight_height, weight_width)
    for weight in weights:
        if weight is not None and not _cpp_supports(x, weight, dilation):
            raise ConfigError(
                "backend 'cpp' takes float32 or bfloat16 on the CPU and dilation 1, not "
                f"{x.dtype} on {x.device} with dilation {dilation}: use the backend 'auto' or 'reference'"
            )
    # bfloat16 is summed in float32
    widened = (weight.float() if weight is not None else None for weight in weights)
    return torch.ops.dicenet.dim_conv(x.float(), *widened).to(x.dtype)


_REFERENCE = Backend(reference.dim_conv, lambda x, weight, dilation: True)
#: Known implementations, fastest first. The reference is last and takes everything.
_BACKENDS: dict[str, Backend] = {
    **({"cpp": Backend(_cpp, _cpp_supports)} if cpu.available else {}),
    "reference": _REFERENCE,
}
_AUTO = "auto"


def register_backend(name: str, backend: Backend) -> None:
    """Make a faster implementation known. It is asked before all that are registered already."""
    known = dict(_BACKENDS)
    _BACKENDS.clear()
    _BACKENDS.update({name: backend, **known})


def available_backends() -> tuple[str, ...]:
    """Names of the implementations that can be used here, in order of preference."""
    return tuple(_BACKENDS)


def _checked(name: str) -> str:
    if name != _AUTO and name not in _BACKENDS:
        raise ConfigError(f"backend {name!r} is not available here: choose one of {', '.join((_AUTO, *_BACKENDS))}")
    return name


_FROM_ENVIRONMENT = os.environ.get("DICENET_BACKEND", _AUTO)
_selected: ContextVar[str] = ContextVar("dicenet_backend", default=_FROM_ENVIRONMENT)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use one implementation of ``dim_conv`` inside a ``with`` block, in this thread or task only.

    ``name`` is one of :func:`available_backends` or ``"auto"``; others raise
    :class:`~dicenet.errors.ConfigError`. The environment variable ``DICENET_BACKEND`` sets the same for a process.
    """
    token = _selected.set(_checked(name))
    try:
        yield
    finally:
        _selected.reset(token)


def uses_cpp(*tensors: Tensor) -> bool:
    """Whether the C++ operators that surround ``dim_conv`` may take these tensors: float32 on the CPU.

    They follow the backend of ``dim_conv``, so that ``use_backend("reference")`` means torch's operators only.
    """
    if not cpu.available or torch.compiler.is_exporting():
        return False
    name = _checked(_selected.get())
    if name not in (_AUTO, "cpp") or not all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors):
        return False
    if name == _AUTO:
        for known, backend in _BACKENDS.items():
            if known == "cpp":
                break
            if backend.supports(tensors[0], tensors[-1], _NO_DILATION):  # registered later, so asked first
                return False
    return True


def _choose(x: Tensor, weight: Tensor, dilation: Dilation) -> DimConvFunction:
    # Exported programs must hold standard operators only, so that they run where dicenet is not installed.
    if torch.compiler.is_exporting():
        return reference.dim_conv
    name = _checked(_selected.get())
    if name != _AUTO:
        return _BACKENDS[name].function
    for backend in _BACKENDS.values():
        if backend.supports(x, weight, dilation):
            return backend.function
    return reference.dim_conv


def _check_shapes(x: Tensor, weights: dict[str, Tensor]) -> None:
    if x.dim() != 4:
        raise ConfigError(f"dim_conv needs x of shape (N, C, H, W), got {tuple(x.shape)}")
    if any(side == 0 for side in x.shape[1:]):
        raise ConfigError(f"dim_conv needs a map of at least one channel, row and column, got {tuple(x.shape)}")
    if not weights:
        raise ConfigError("dim_conv needs the kernels of at least one branch")
    kernel = next(iter(weights.values())).shape[-1]
    if kernel % 2 == 0:
        raise ConfigError(f"dim_conv needs an odd kernel size, got {kernel}: an even one would change the map's size")
    _, channels, height, width = x.shape
    planes = {"depth": channels, "height": height, "width": width}
    for name, weight in weights.items():
        if weight.dim() != 4 or weight.shape[1:] != (1, kernel, kernel):
            raise ConfigError(
                f"dim_conv needs weight_{name} of shape (planes, 1, {kernel}, {kernel}), got {tuple(weight.shape)}"
            )
        if weight.shape[0] != planes[name]:
            raise ConfigError(
                f"dim_conv got {weight.shape[0]} {name} kernels for a map of {channels} channels, height {height}, "
                f"width {width}: the numbers must be equal (the layer dicenet.DimConv scales other sizes)"
            )


def dim_conv(
    x: Tensor,
    weight_depth: Tensor | None,
    weight_height: Tensor | None,
    weight_width: Tensor | None,
    dilation: Dilation = _NO_DILATION,
) -> Tensor:
    """Dimension-wise convolution (paper, section 3.1): filter a map along each of its three dimensions.

    Args:
        x: the map, (N, C, H, W).
        weight_depth: (C, 1, k, k), last axes (H, W), k odd.
        weight_height: (H, 1, k, k), last axes (C, W).
        weight_width: (W, 1, k, k), last axes (H, C).
        dilation: of the depth, height and width kernels.

    None instead of a branch's kernels leaves the branch out.

    Returns:
        (N, 3C, H, W): all depth planes, then all height planes, then all width planes.

    Raises:
        ConfigError: the map is empty (N may be 0), H, W or C differ from the number of kernels, or k is even.
    """
    given = {"depth": weight_depth, "height": weight_height, "width": weight_width}
    weights = {name: weight for name, weight in given.items() if weight is not None}
    _check_shapes(x, weights)
    function = _choose(x, next(iter(weights.values())), dilation)
    return function(x, weight_depth, weight_height, weight_width, dilation)
