"""Names in pytorchcv's dicenet."""

from dicenet.weights.key_map import KeyMap

PYTORCHCV = KeyMap(
    name="pytorchcv",
    mark=r"(^|\.)convs\.ch_conv\.weight$",
    renames=(
        (r"features\.init_block\.conv", "stem"),
        # their units count from 1 and their stages too
        *((rf"features\.stage{s + 1}\.unit{u + 1}", f"stages.{s}.{u}") for s in range(3) for u in range(8)),
        (r"branches\.left_branch\.conv1", "left.0"),
        (r"branches\.left_branch\.conv2", "left.1"),
        (r"branches\.right_branch\.dice", "right.1"),
        (r"branches\.right_branch\.conv", "right.2"),
        (r"right_branch\.conv", "transform.0"),
        (r"right_branch\.dice", "transform.1"),
        (r"base_block\.convs\.ch_conv\.weight", "dim_conv.weight_depth"),
        (r"base_block\.convs\.h_conv\.conv\.weight", "dim_conv.weight_height"),
        (r"base_block\.convs\.w_conv\.conv\.weight", "dim_conv.weight_width"),
        (r"base_block\.norm_activ\.bn", "norm_act.norm"),
        (r"base_block\.norm_activ\.activ", "norm_act.act"),
        (r"base_block\.squeeze_conv", "dim_fuse.local"),
        (r"proj_conv", "dim_fuse.spatial"),
        (r"att\.conv1", "dim_fuse.excitation.squeeze"),
        (r"att\.conv2", "dim_fuse.excitation.excite"),
        (r"bn", "norm"),
        (r"activ", "act"),
        (r"output\.conv1", "conv_head"),
        (r"output\.conv2", "classifier"),
    ),
)
