#!/usr/bin/env bash
# The two small networks of Table 1's ShuffleNetV2 on CIFAR-10 enlarged to 64x64, then both judged at other sizes.
# Run it from the repository, with dicenet on the path: bash benchmarks/sizes.sh [DATA]
set -euo pipefail
data=${1:-../shared/data/cifar10}
for model in dicenet_075 shufflenetv2_sep_041; do
  dicenet train classify --model $model --data "$data" --img-size 64 --stem standard \
    --augment resized-crop --min-scale 0.4 --epochs 8 --workers 1 --out runs/sizes/$model
done
python benchmarks/sizes.py "$data" results/sizes.csv docs/pictures/sizes.png \
  runs/sizes/dicenet_075 runs/sizes/shufflenetv2_sep_041
