#!/usr/bin/env bash
# HiFi-GAN V1 of the log-mel of S3PRL-VC, 24 kHz, on VCTK (Kong et al. 2020, arXiv:2010.05646; Huang et al. 2022, arXiv:2110.06280).
#   SOURCES=/corpora bash recipes/vocoder/hifigan_24k/run.sh [--smoke]
# SOURCES     folder that holds the unpacked corpus, in `vctk`
cd "$(dirname "$0")"
source ../common.sh "$@"

stage "corpus"
if [ "$smoke" ]; then
  generated
  small+=(model.mel.sample_rate=16000 model.channels=16 train.segment=2560 train.discriminator_divisor=8)
else
  corpus=$data/vctk
  speechssl prepare vctk "$corpus" --from "${SOURCES:?the folder of the corpora}/vctk"
fi

stage "training: $exp is a vocoder folder from its first checkpoint on"
exec speechssl vocoder hifigan_v1 --config mel.yaml --corpus "$corpus" -o "$exp" "${small[@]}"
