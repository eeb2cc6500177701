#!/usr/bin/env bash
# speechssl_tiny, the upstream that comes with the package: HuBERT on all real speech of the demo corpus, two iterations.
#   bash recipes/pretrain/speechssl_tiny/run.sh [--smoke]
cd "$(dirname "$0")"
source ../common.sh "$@"

stage "corpus"
if [ "$smoke" ]; then
  librispeech # generated speech
else
  corpus=$data/demo_full
  speechssl prepare demo "$corpus" --full
fi

stage "iteration 1: 100 clusters of MFCC"
clusters mfcc 0 100 "$exp/cluster1" --fraction 1
pretrain hubert_tiny iteration1.yaml "$exp/pretrain1" --labels "$exp/cluster1"

# Both label sets (the paper's sec. 2.3): the upper layers then keep what tells voices apart, which the second set lacks.
stage "iteration 2: 500 clusters of layer 4 of iteration 1, and those of MFCC still"
clusters "$exp/pretrain1" 4 500 "$exp/cluster2" --fraction 0.2 --precision bf16
pretrain hubert_tiny iteration2.yaml "$exp/pretrain2" --labels "$exp/cluster1" --labels "$exp/cluster2" \
  --init "$exp/pretrain1"
stage "done: speechssl extract $exp/pretrain2 my.wav"
