#!/usr/bin/env bash
# A light iSTFT vocoder on features of speechssl_tiny: kNN-VC on a laptop (Baas et al. 2023, arXiv:2305.18975).
#   bash recipes/vocoder/istft_speechssl_tiny/run.sh [--smoke]
cd "$(dirname "$0")"
source ../common.sh "$@"

stage "corpus"
if [ "$smoke" ]; then
  generated
  small+=(model.width=32 model.inner=48 model.blocks=2 train.segment=6400 train.precision=float32)
else
  corpus=$data/demo
  speechssl prepare demo "$corpus" --config "$repository/recipes/demo/default/corpus.yaml"
fi

stage "features and training: $exp is a vocoder folder from its first checkpoint on"
exec speechssl vocoder istft_demo --config vocoder.yaml --upstream speechssl_tiny --layer 2 --corpus "$corpus" -o "$exp" \
  "${small[@]}"
