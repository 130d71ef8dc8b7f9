"""Names in the official code (EdgeNets): units, blocks, the classifier, and the backbone of its other networks."""

from collections.abc import Mapping

from torch import Tensor

from dicenet.weights.key_map import KeyMap

#: What the official segmentation networks call their backbone.
BACKBONE_PREFIX = "base_net."

EDGENETS = KeyMap(
    name="EdgeNets",
    mark=r"(^|\.)conv_channel\.weight$",
    renames=(
        (r"level1\.cbr", "stem.cbr"),
        (r"level3", "stages.0"),
        (r"level4", "stages.1"),
        (r"level5", "stages.2"),
        (r"left_layer", "left"),
        (r"right_layer", "right"),
        (r"layer_right", "transform"),
        (r"conv_channel\.weight", "dim_conv.weight_depth"),
        (r"conv_height\.weight", "dim_conv.weight_height"),
        (r"conv_width\.weight", "dim_conv.weight_width"),
        (r"br_act\.br\.0", "norm_act.norm"),
        (r"br_act\.br\.1", "norm_act.act"),
        (r"weight_avg_layer", "dim_fuse.local"),
        (r"proj_layer", "dim_fuse.spatial"),
        (r"linear_comb_layer\.1", "dim_fuse.excitation.squeeze"),
        (r"linear_comb_layer\.3", "dim_fuse.excitation.excite"),
        (r"cbr\.0", "conv"),
        (r"cbr\.1", "norm"),
        (r"cbr\.2", "act"),
        (r"classifier\.0", "conv_head"),
        (r"classifier\.2", "classifier"),
    ),
)


def backbone_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of an official segmentation checkpoint, under the names of the official classifier."""
    return {key.removeprefix(BACKBONE_PREFIX): value for key, value in state.items() if key.startswith(BACKBONE_PREFIX)}
