"""What becomes of networks of other packages: multiply-adds and parameters at width 1, and at the matching width.

python benchmarks/conversions.py results/conversions.csv
"""

import sys
import warnings
from pathlib import Path

import timm
import torchvision

import dicenet
from dicenet.engine.machine import machine, write_csv

NETWORKS = (
    *("timm/mobilenetv1_100", "timm/mobilenetv2_100", "timm/mobilenetv3_large_100", "timm/mobilenetv4_conv_small"),
    *("timm/mnasnet_100", "timm/mixnet_s", "timm/efficientnet_b0", "timm/convnext_atto"),
    *("torchvision/shufflenet_v2_x1_0", "torchvision/mobilenet_v2"),
)


def main(path: str, img_size: int = 224) -> None:
    rows = []
    for name in NETWORKS:
        library, _, own_name = name.partition("/")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            build = timm.create_model if library == "timm" else torchvision.models.get_model
            net = build(own_name)
        _, plain = dicenet.replace_separable_convs(net, img_size)
        _, matched = dicenet.replace_separable_convs(net, img_size, width="match")
        rows.append(
            {
                "network": name,
                "img_size": img_size,
                "replaced": len(plain.replaced),
                "left": len(plain.left),
                "macs_before": plain.macs[0],
                "macs_after": plain.macs[1],
                "parameters_before": plain.parameters[0],
                "parameters_after": plain.parameters[1],
                "matching_width": matched.width,
                "macs_matched": matched.macs[1],
                "parameters_matched": matched.parameters[1],
                **machine(["timm"]),
            }
        )
        print(rows[-1], flush=True)
    write_csv(Path(path), rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
