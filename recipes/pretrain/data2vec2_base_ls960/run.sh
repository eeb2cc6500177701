#!/usr/bin/env bash
# data2vec 2.0 base on the 960 hours of LibriSpeech (Baevski et al. 2022, arXiv:2212.07525).
#   bash recipes/pretrain/data2vec2_base_ls960/run.sh [--smoke]
cd "$(dirname "$0")"
source ../common.sh "$@"
[ -z "$smoke" ] || small+=(model.conv_channels=32 objective.target_layers=2)

stage "corpus"
librispeech

stage "pre-training"
pretrain data2vec2_base pretrain.yaml "$exp/pretrain"
stage "done: speechssl extract $exp/pretrain my.wav"
