"""What is computed, on tensors."""

from dicenet.ops.denormals import flush_denormals
from dicenet.ops.dim_conv import Backend, available_backends, dim_conv, register_backend, use_backend
from dicenet.ops.norm_prelu import norm_prelu
from dicenet.ops.unit import dice_unit, join_branches

__all__ = [
    "Backend",
    "available_backends",
    "dice_unit",
    "dim_conv",
    "flush_denormals",
    "join_branches",
    "norm_prelu",
    "register_backend",
    "use_backend",
]
