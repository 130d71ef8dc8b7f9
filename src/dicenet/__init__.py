"""dicenet: small, fast convolutional networks made of dimension-wise convolutions.

Importing the package registers its networks with timm::

    import dicenet, timm
    net = timm.create_model("dicenet_100", num_classes=10)
"""

from importlib.metadata import version

from dicenet import layers, models, ops, weights
from dicenet.errors import ConfigError, DataError, DicenetError, TrainingError, WeightsError
from dicenet.layers import DiCEUnit, DimConv, DimFuse
from dicenet.models.detection import DetectionNetwork, create_detection_model
from dicenet.models.dicenet import DiCENet
from dicenet.models.loading import load, load_edgenets, load_pytorchcv, save
from dicenet.models.segmentation import SegmentationNetwork, create_segmentation_model
from dicenet.optimize import (
    ConversionReport,
    OptimizedNetwork,
    accelerate,
    optimize_for_inference,
    replace_separable_convs,
)

__version__ = version("dicenet")

__all__ = [
    "ConfigError",
    "ConversionReport",
    "DataError",
    "DetectionNetwork",
    "DiCENet",
    "DiCEUnit",
    "DicenetError",
    "DimConv",
    "DimFuse",
    "OptimizedNetwork",
    "SegmentationNetwork",
    "TrainingError",
    "WeightsError",
    "__version__",
    "accelerate",
    "create_detection_model",
    "create_segmentation_model",
    "layers",
    "load",
    "load_edgenets",
    "load_pytorchcv",
    "models",
    "ops",
    "optimize_for_inference",
    "replace_separable_convs",
    "save",
    "weights",
]
