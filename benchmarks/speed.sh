#!/bin/sh
# Everything that docs/performance.md states, three processes each: about two hours on two cores, nothing beside it.
#
#     pip install -e ".[benchmark]"
#     benchmarks/speed.sh runs/speed && python benchmarks/verdicts.py runs/speed results/speed.csv
#
# What is finished is not measured again, so a stopped run goes on where it was.
set -e
out=${1:?folder for the runs}

measure() { # folder, verb, arguments
  folder=$out/$1
  shift
  [ -e "$folder/results.csv" ] && return
  if [ -e "$folder" ]; then
    dicenet benchmark "$1" --resume "$folder"
  else
    dicenet benchmark "$@" --out "$folder"
  fi
}

for run in 1 2 3; do
  measure "slow_side_$run" latency --models dicenet_200,dicenet_w2 \
    --modes eager,reference,channels_last,optimized --batch-size 1,32 --core 0 --round-ms 60 --trials 11 --warmup 3
  measure "training_$run" training --models dicenet_200,dicenet_240,dicenet_w2,shufflenet_v2_x1_5 \
    --baseline dicenet_w2:nchw --core 0 --trials 9 --warmup 2
  for threads in 1 2; do
    core=$([ $threads = 1 ] && echo "--core 0" || true)
    measure "peers_${threads}_$run" latency --models dicenet_240,shufflenet_v2_x1_5,mobilenet_v3_large \
      --modes channels_last,freeze,compile,optimized,onnxruntime --batch-size 1,32 --threads $threads $core \
      --round-ms 60 --trials 11 --warmup 3
  done
done
measure training_2_threads training --models dicenet_200,dicenet_240,dicenet_w2,shufflenet_v2_x1_5 \
  --baseline dicenet_w2:nchw --threads 2 --trials 9 --warmup 2
# a batch of 64 takes a minute a round
measure table latency --batch-size 1,32,64 --trials 100,100,25 --core 0
