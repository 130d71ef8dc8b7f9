#!/usr/bin/env bash
# dicenet_050 on CIFAR-10 for three epochs, from scratch; about 12 minutes on 2 cores without other load.
# Run it from the repository, with dicenet on the path: bash benchmarks/cifar10.sh [DATA]
set -euo pipefail
data=${1:-../shared/data/cifar10}
dicenet train classify --model dicenet_050 --data "$data" --epochs 3 --out runs/cifar10_050
dicenet evaluate classify --weights runs/cifar10_050/best.safetensors --data "$data" --out runs/cifar10_050_evaluation
python benchmarks/record.py runs/cifar10_050 runs/cifar10_050_evaluation results/cifar10_dicenet_050.csv
