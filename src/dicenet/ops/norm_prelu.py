"""Batch norm and PReLU as one operation, fused where the C++ operators can take it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dicenet.ops.dim_conv import uses_cpp


def _fuses(x: Tensor, norm: nn.Module, slope: Tensor) -> bool:
    return (
        type(norm) is nn.BatchNorm2d  # not a subclass, which may do anything
        and x.dim() == 4
        and x.numel() > 0
        and slope.numel() == x.shape[1]
        and uses_cpp(x, slope, *(t for t in (norm.weight, norm.running_mean) if t is not None))
    )


def _batch_statistics(x: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the batch; running statistics move as torch moves them."""
    mean, var = torch.ops.dicenet.batch_moments(x.detach())
    tracks = norm.training and norm.track_running_stats
    if tracks and norm.running_mean is not None and norm.running_var is not None:
        count = x.numel() // x.shape[1]
        share = norm.momentum if norm.momentum is not None else 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            share = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
        with torch.no_grad():
            norm.running_mean.mul_(1 - share).add_(mean, alpha=share)
            norm.running_var.mul_(1 - share).add_(var, alpha=share * count / (count - 1))
    return mean, var


def norm_prelu(x: Tensor, norm: nn.BatchNorm2d, slope: Tensor) -> Tensor:
    """``prelu(norm(x))``: the module's mode, statistics and running averages are as in torch.

    Args:
        x: (N, C, H, W).
        norm: the batch norm.
        slope: (C,), of the PReLU.

    Returns:
        The same shape.
    """
    if not _fuses(x, norm, slope):
        return F.prelu(norm(x), slope)
    by_batch = norm.training or norm.running_mean is None
    if by_batch and x.numel() == x.shape[1]:
        return F.prelu(norm(x), slope)  # torch's own error for a single value per channel
    if by_batch:
        mean, var = _batch_statistics(x, norm)
    else:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, var = norm.running_mean, norm.running_var
    return torch.ops.dicenet.norm_prelu(x, norm.weight, norm.bias, mean, var, slope, norm.eps, by_batch)
