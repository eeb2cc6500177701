#!/usr/bin/env bash
# wav2vec 2.0 base on the 960 hours of LibriSpeech (Baevski et al. 2020, arXiv:2006.11477).
#   bash recipes/pretrain/wav2vec2_base_ls960/run.sh [--smoke]
cd "$(dirname "$0")"
source ../common.sh "$@"
[ -z "$smoke" ] || small+=(model.conv_channels=32)

stage "corpus"
librispeech

stage "pre-training"
pretrain wav2vec2_base pretrain.yaml "$exp/pretrain"
stage "done: speechssl extract $exp/pretrain my.wav"
