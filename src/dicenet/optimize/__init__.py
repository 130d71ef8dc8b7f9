"""Changes of whole networks: made faster with the same outputs, or made of other units."""

from dicenet.optimize.accelerate import accelerate
from dicenet.optimize.network import OptimizedNetwork, optimize_for_inference
from dicenet.optimize.replace import ConversionReport, replace_separable_convs

__all__ = [
    "ConversionReport",
    "OptimizedNetwork",
    "accelerate",
    "optimize_for_inference",
    "replace_separable_convs",
]
