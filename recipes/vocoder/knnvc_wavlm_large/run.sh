#!/usr/bin/env bash
# The vocoder of kNN-VC: HiFi-GAN on prematched features of WavLM-Large, layer 6 (Baas et al. 2023, arXiv:2305.18975).
#   bash recipes/vocoder/knnvc_wavlm_large/run.sh [--smoke]
# SOURCES     folder that holds the unpacked corpus, in `librispeech`
cd "$(dirname "$0")"
source ../common.sh "$@"

stage "corpus"
upstream=wavlm_large:raw layer=6 # waveforms as they are, though the checkpoint says that they are normalised
if [ "$smoke" ]; then
  generated
  upstream=hubert_tiny:random layer=2
  small+=(model.channels=16 model.projection=16 train.segment=2560 train.discriminator_divisor=8)
else
  corpus=$data/librispeech
  speechssl prepare librispeech "$corpus" --from "${SOURCES:?the folder of the corpora}/librispeech"
fi

stage "features, their neighbours, training: $exp is a vocoder folder from its first checkpoint on"
exec speechssl vocoder knnvc --upstream "$upstream" --layer "$layer" --prematch --corpus "$corpus" -o "$exp" "${small[@]}"
