"""Names in the official code (EdgeNets): units, blocks, classifiers, and the segmentation networks made of them."""

from dicenet.weights.key_map import KeyMap

#: What the official segmentation and detection networks call their backbone.
BACKBONE_PREFIX = "base_net."

#: Of the decoder, whose parts each backbone's network calls otherwise: from the smallest map to the largest.
_POOLS = (
    "eff_pool_16x16|bu_dec_l1",
    "eff_pool_32x32|bu_dec_l2",
    "eff_pool_64x64|bu_dec_l3",
    "eff_pool_128x128|bu_dec_l4",
)
_SKIPS = ("proj_enc_32x32|merge_enc_dec_l2", "proj_enc_64x64|merge_enc_dec_l3", "proj_enc_128x128|merge_enc_dec_l4")
_NORMS = ("bu_br_32x32|bu_br_l2", "bu_br_64x64|bu_br_l3", "bu_br_128x128|bu_br_l4")

_DECODER = (
    (r"stages", "branches"),  # of pyramid pooling; must come before the levels get this name
    (r"projection_layer", "project"),
    (r"merge_layer\.0\.br\.0", "norm_act.norm"),
    (r"merge_layer\.0\.br\.1", "norm_act.act"),
    (r"merge_layer\.2", "merge"),
    (r"merge_layer\.3", "expand"),
    (r"br\.br\.0", "out.norm"),
    (r"br\.br\.1", "out.act"),
    (r"wt_layer\.1", "excitation.excite"),
    (r"expansion_layer", "spatial"),
    *((f"({names})", f"decoder.pools.{index}") for index, names in enumerate(_POOLS)),
    *((f"({names})", f"decoder.skips.{index}") for index, names in enumerate(_SKIPS)),
    *((rf"({names})\.0", f"decoder.norm_acts.{index}.norm") for index, names in enumerate(_NORMS)),
    *((rf"({names})\.1", f"decoder.norm_acts.{index}.act") for index, names in enumerate(_NORMS)),
)
#: Of ESPNetv2's detector.
_DETECTOR = (
    (r"base_net\.basenet", "base_net"),
    (r"base_net\.extra_level6\.layer", "head.extras.0"),
    (r"base_net\.extra_level7\.layer", "head.extras.1"),
    (r"base_net\.extra_level8", "head.extras.2"),
    *(
        (rf"base_net\.bu_{name}", f"head.fusions.{index}")
        for index, name in enumerate(("3x3_5x5", "5x5_10x10", "10x10_19x19", "19x19_38x38"))
    ),
    (r"loc_layers", "head.predictors.boxes"),
    (r"cls_layers", "head.predictors.scores"),
)
_CONV_NORM_ACT = ((r"cbr\.0", "conv"), (r"cbr\.1", "norm"), (r"cbr\.2", "act"))

#: DiCENet: units, blocks, whole networks.
EDGENETS = KeyMap(
    name="EdgeNets",
    mark=r"(^|\.)conv_channel\.weight$",
    renames=(
        *_DETECTOR,
        *_DECODER,
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
        *_CONV_NORM_ACT,
        (r"classifier\.0", "conv_head"),
        (r"classifier\.2", "classifier"),
    ),
)

#: ESPNetv2: the same. Behind the down-sampling block of a level, its units are counted from 0 there.
EDGENETS_ESPNETV2 = KeyMap(
    name=EDGENETS.name,
    mark=r"(^|\.)spp_dw\.0\.conv\.weight$",
    renames=(
        *_DETECTOR,
        *_DECODER,
        (r"level1", "stem"),
        *((rf"level{level}_0", f"stages.{level - 2}.0") for level in range(2, 6)),
        *(
            (rf"level{level}\.{unit}", f"stages.{level - 2}.{unit + 1}")
            for level, units in ((3, 3), (4, 7), (5, 5))
            for unit in range(units)
        ),
        (r"proj_1x1", "project"),
        (r"spp_dw\.(\d)\.conv", r"branches.\1"),
        (r"br_after_cat", "norm_act"),
        (r"conv_1x1_exp", "expand"),
        (r"module_act", "act"),
        (r"inp_reinf", "reinforce"),
        *_CONV_NORM_ACT,
        (r"bn", "norm"),
    ),
)
