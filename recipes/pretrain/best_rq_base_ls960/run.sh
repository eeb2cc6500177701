#!/usr/bin/env bash
# BEST-RQ on the 960 hours of LibriSpeech (Chiu et al. 2022, arXiv:2202.01855; Whetten et al. 2024, arXiv:2405.04296).
#   bash recipes/pretrain/best_rq_base_ls960/run.sh [--smoke]
cd "$(dirname "$0")"
source ../common.sh "$@"

stage "corpus"
librispeech

stage "pre-training"
pretrain best_rq_base pretrain.yaml "$exp/pretrain"
stage "done: speechssl extract $exp/pretrain my.wav"
