#!/usr/bin/env bash
# dicenet_100 on CamVid from the official PASCAL VOC network and from random weights, and a ShuffleNetV2 of equal cost
# from random weights; about 26 minutes each on 2 cores without other load. Started again, it goes on where it was.
# Run it from the repository, with dicenet on the path: bash benchmarks/camvid.sh [DATA] [VOC_CHECKPOINT]
set -euo pipefail
data=${1:-../shared/data/camvid}
voc=${2:-../shared/weights/dicenet_s_1.0_pascal_384x384.pth}
task=segment config=camvid/dicenet_100 record=benchmarks/record_segmentation.py
source benchmarks/pyramid_run.sh

mkdir -p runs
train camvid_voc --weights "$voc"
[ -e runs/peer.safetensors ] || python benchmarks/camvid_peer.py runs/peer.safetensors
train camvid_peer --model shufflenetv2_sep_146 --weights runs/peer.safetensors
train camvid_random --model dicenet_100 --decoder-channels 10
python benchmarks/pyramid_plot.py camvid
