#!/usr/bin/env bash
# wav2vec 2.0 large on many languages at once (Conneau et al. 2020, arXiv:2006.13979).
#   MANIFESTS="mls.jsonl.gz cv.jsonl.gz" bash recipes/pretrain/xlsr_multilingual/run.sh [--smoke]
# MANIFESTS names Lhotse manifests of cuts whose supervisions have a language (see README.md).
cd "$(dirname "$0")"
source ../common.sh "$@"
[ -z "$smoke" ] || small+=(model.conv_channels=32)

stage "corpora"
more=()
if [ "$smoke" ]; then
  librispeech # generated speech, in two languages
else
  read -r corpus rest <<<"${MANIFESTS:?names the manifests of cuts}"
  for manifest in $rest; do more+=(--corpus "$manifest"); done
fi

stage "pre-training"
pretrain wav2vec2_xlsr_53 pretrain.yaml "$exp/pretrain" "${more[@]}"
stage "done: speechssl extract $exp/pretrain my.wav"
