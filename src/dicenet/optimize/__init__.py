"""Graph changes that make a trained network faster without changing what it computes."""

from dicenet.optimize.accelerate import accelerate
from dicenet.optimize.network import OptimizedNetwork, optimize_for_inference

__all__ = ["OptimizedNetwork", "accelerate", "optimize_for_inference"]
