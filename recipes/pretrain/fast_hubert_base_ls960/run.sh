#!/usr/bin/env bash
# Fast-HuBERT base on the 960 hours of LibriSpeech (Yang et al. 2023, arXiv:2309.13860), on clusters of a HuBERT.
#   bash recipes/pretrain/fast_hubert_base_ls960/run.sh [--smoke]
# HUBERT names the model whose layer 9 is clustered.
cd "$(dirname "$0")"
source ../common.sh "$@"
[ -z "$smoke" ] || small+=("objective.layers=[1, 2]")
hubert=${HUBERT:-$repository/exp/hubert_base_ls960/pretrain2}

stage "corpus"
librispeech

stage "500 clusters of layer 9 of a HuBERT of two iterations"
[ -z "$smoke" ] || hubert=${HUBERT:-mfcc}
clusters "$hubert" "$([ "$hubert" = mfcc ] && echo 0 || echo 9)" 500 "$exp/cluster"

stage "pre-training"
pretrain fast_hubert_base pretrain.yaml "$exp/pretrain" --labels "$exp/cluster"
stage "done: speechssl extract $exp/pretrain my.wav"
