"""What is computed, on tensors."""

from dicenet.ops.dim_conv import Backend, available_backends, dim_conv, register_backend, use_backend

__all__ = ["Backend", "available_backends", "dim_conv", "register_backend", "use_backend"]
