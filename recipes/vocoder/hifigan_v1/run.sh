#!/usr/bin/env bash
# HiFi-GAN V1 on LJSpeech, log-mel at 22.05 kHz (Kong et al. 2020, arXiv:2010.05646).
#   bash recipes/vocoder/hifigan_v1/run.sh [--smoke]
cd "$(dirname "$0")"
source ../common.sh "$@"

stage "corpus"
if [ "$smoke" ]; then
  generated
  small+=(model.mel.sample_rate=16000 model.channels=16 train.segment=2560 train.discriminator_divisor=8)
else
  corpus=$data/ljspeech/cuts.jsonl.gz
  if [ ! -e "$corpus" ]; then
    lhotse download ljspeech "$data/ljspeech"
    lhotse prepare ljspeech "$data/ljspeech/LJSpeech-1.1" "$data/ljspeech"
    lhotse cut simple -r "$data/ljspeech/ljspeech_recordings_all.jsonl.gz" \
      -s "$data/ljspeech/ljspeech_supervisions_all.jsonl.gz" "$data/ljspeech/partial.jsonl.gz"
    mv "$data/ljspeech/partial.jsonl.gz" "$corpus"
  fi
fi

stage "training: $exp is a vocoder folder from its first checkpoint on"
exec speechssl vocoder hifigan_v1 --corpus "$corpus" -o "$exp" "${small[@]}"
