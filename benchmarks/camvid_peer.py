"""Writes a fresh segmentation network of a ShuffleNetV2 that costs as much as that of dicenet_100.

python benchmarks/camvid_peer.py OUT.safetensors
"""

import sys

import torch

import dicenet
from dicenet.analysis.count import count

#: Channels of the first stage, in place of the 116 of shufflenetv2_sep_146: gives dicenet_100's multiply-adds.
CHANNELS = 96
#: Of the decoder: those of the official network for VOC's 21 classes, that the other runs have too.
DECODER_CHANNELS = 10
SIZE = (360, 480)


def main(out: str) -> None:
    torch.manual_seed(1882)
    decoder = {"num_classes": 11, "img_size": SIZE, "decoder_channels": DECODER_CHANNELS}
    peer = dicenet.create_segmentation_model("shufflenetv2_sep_146", **decoder, channels=CHANNELS)
    ours = dicenet.create_segmentation_model("dicenet_100", **decoder)
    for net in (ours, peer):
        cost = count(net, (3, *SIZE))
        print(f"{net.architecture}: {cost.macs / 1e6:.1f} M multiply-adds, {cost.parameters:,} parameters")
    dicenet.save(peer, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
