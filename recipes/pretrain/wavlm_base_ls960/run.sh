#!/usr/bin/env bash
# WavLM base on the 960 hours of LibriSpeech (Chen et al. 2022, arXiv:2110.13900), on clusters of a HuBERT.
#   bash recipes/pretrain/wavlm_base_ls960/run.sh [--smoke]
# HUBERT names the model whose layer 6 is clustered; NOISE a folder or corpus of noise to mix in (none by
# default, as in the paper; then a tenth of what is mixed in, as in base+).
cd "$(dirname "$0")"
source ../common.sh "$@"
[ -z "$smoke" ] || small+=(model.conv_channels=32)
hubert=${HUBERT:-$repository/exp/hubert_base_ls960/pretrain1}
noise=()
[ -z "${NOISE:-}" ] || noise=("train.noise=$NOISE" objective.mixing.noise_prob=0.1)

stage "corpus"
librispeech

stage "500 clusters of layer 6 of a HuBERT of one iteration"
[ -z "$smoke" ] || hubert=${HUBERT:-mfcc}
clusters "$hubert" "$([ "$hubert" = mfcc ] && echo 0 || echo 6)" 500 "$exp/cluster"

stage "pre-training"
pretrain wavlm_base pretrain.yaml "$exp/pretrain" --labels "$exp/cluster" "${noise[@]}"
stage "done: speechssl extract $exp/pretrain my.wav"
