#!/usr/bin/env bash
# A light iSTFT vocoder on the demo corpus, log-mel at 16 kHz, spectral losses alone (after Siuzdak 2023, arXiv:2306.00814).
#   bash recipes/vocoder/istft_demo/run.sh [--smoke]
cd "$(dirname "$0")"
source ../common.sh "$@"

stage "corpus"
if [ "$smoke" ]; then
  generated
  small+=(model.width=32 model.inner=48 model.blocks=2 train.segment=6400)
else
  corpus=$data/demo
  speechssl prepare demo "$corpus" --config "$repository/recipes/demo/default/corpus.yaml"
fi

stage "training: $exp is a vocoder folder from its first checkpoint on"
exec speechssl vocoder istft_demo --corpus "$corpus" -o "$exp" "${small[@]}"
