"""The modules that networks are made of."""

from dicenet.layers.blocks import BottleneckBlock, ShuffleBlock, StridedShuffleBlock, StridedUnit
from dicenet.layers.conv_norm_act import ConvNormAct, NormAct
from dicenet.layers.dice_unit import DiCEUnit
from dicenet.layers.dim_conv import DimConv
from dicenet.layers.dim_fuse import DimFuse, GlobalFusion, LocalFusion
from dicenet.layers.eesp import EESP, DownSampler
from dicenet.layers.pyramid_pooling import EfficientPyramidPooling
from dicenet.layers.units import FIRST_LAYERS, UNITS, first_layer, unit_layers

__all__ = [
    "EESP",
    "FIRST_LAYERS",
    "UNITS",
    "BottleneckBlock",
    "ConvNormAct",
    "DiCEUnit",
    "DimConv",
    "DimFuse",
    "DownSampler",
    "EfficientPyramidPooling",
    "GlobalFusion",
    "LocalFusion",
    "NormAct",
    "ShuffleBlock",
    "StridedShuffleBlock",
    "StridedUnit",
    "first_layer",
    "unit_layers",
]
