#!/usr/bin/env bash
# kNN-VC on LibriSpeech: everyone of dev-clean and of test-clean to everyone else (Baas et al. 2023, arXiv:2305.18975).
#   SOURCES=/corpora VOCODER=prematch_g_02500000.pt bash recipes/voice_conversion/knnvc_librispeech/run.sh [--smoke]
# VOCODER     the public one, or what recipes/vocoder/knnvc_wavlm_large wrote; else that folder
cd "$(dirname "$0")"
source ../common.sh "$@"
upstream=wavlm_large:raw # waveforms as they are
vocoder=${VOCODER:-$repository/exp/knnvc_wavlm_large}

stage "corpus"
if [ "$smoke" ]; then
  generated
  upstream=hubert_tiny:random vocoder=$exp/vocoder
  small+=(-s "features.layers=[2]" -s targets=2)
  stage "a vocoder"
  speechssl vocoder istft_demo --upstream "$upstream" --layer 2 --prematch --corpus "$corpus" -o "$vocoder" \
    model.width=16 model.inner=24 model.blocks=1 train.steps=2 train.batch_size=2 train.segment=6400 \
    train.accelerator=cpu train.num_workers=0
else
  corpus=$data/librispeech_conversion
  speechssl prepare librispeech_conversion "$corpus" --from "${SOURCES:?the folder of the corpora}/librispeech"
fi

stage "conversions and their judges"
convert voice_conversion knnvc.yaml "$upstream" -s train.steps=0 -s "vocoder=$vocoder"
stage "report"
speechssl report "$exp/runs" -o "$exp/report"
stage "done: open $exp/report/index.html"
