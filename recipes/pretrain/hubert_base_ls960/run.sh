#!/usr/bin/env bash
# HuBERT base on the 960 hours of LibriSpeech, both iterations (Hsu et al. 2021, arXiv:2106.07447).
#   bash recipes/pretrain/hubert_base_ls960/run.sh [--smoke]
cd "$(dirname "$0")"
source ../common.sh "$@"
[ -z "$smoke" ] || small+=(model.conv_channels=32)

stage "corpus"
librispeech

stage "iteration 1: 100 clusters of MFCC"
clusters mfcc 0 100 "$exp/cluster1"
pretrain hubert_base_iter1 iteration1.yaml "$exp/pretrain1" --labels "$exp/cluster1"

stage "iteration 2: 500 clusters of layer 6 of iteration 1"
clusters "$exp/pretrain1" 6 500 "$exp/cluster2"
pretrain hubert_base iteration2.yaml "$exp/pretrain2" --labels "$exp/cluster2"
stage "done: speechssl extract $exp/pretrain2 my.wav"
