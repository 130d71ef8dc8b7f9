#!/usr/bin/env bash
# dicenet_100 on BCCD (blood cells) from the official PASCAL VOC segmentation network and from random weights, and
# MobileNetV2 from random weights, with SSDLite's head and with the same head; 13 to 24 minutes each on 2 cores with
# other work beside them. Started again, it goes on where it was. Run it from the repository, with dicenet on the path:
# bash benchmarks/bccd.sh [DATA] [VOC_CHECKPOINT]
set -euo pipefail
data=${1:-../shared/data/bccd}
voc=${2:-../shared/weights/dicenet_s_1.0_pascal_384x384.pth}
task=detect config=bccd/dicenet_100 record=benchmarks/record_detection.py
source benchmarks/pyramid_run.sh

mkdir -p runs
train bccd_voc --weights "$voc"
train bccd_peer --model mobilenetv2_050 --head ssdlite --priors auto
train bccd_peer_fpnlite --model mobilenetv2_050
train bccd_random
python benchmarks/pyramid_plot.py bccd
python benchmarks/doubts.py runs/bccd_voc/best.safetensors "$data" val results/bccd_doubts
