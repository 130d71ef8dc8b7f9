"""The modules that networks are made of."""

from dicenet.layers.conv_norm_act import ConvNormAct, NormAct
from dicenet.layers.dice_unit import DiCEUnit
from dicenet.layers.dim_conv import DimConv
from dicenet.layers.dim_fuse import DimFuse

__all__ = ["ConvNormAct", "DiCEUnit", "DimConv", "DimFuse", "NormAct"]
