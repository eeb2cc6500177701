#!/usr/bin/env bash
# Goes on pre-training a published model on speech of your own (Hsu et al. 2021, arXiv:2104.01027).
#   INIT=facebook/wav2vec2-base CORPUS=mine.jsonl.gz bash recipes/pretrain/continue_from_checkpoint/run.sh [--smoke]
# INIT is whatever `speechssl extract` takes; PRESET the preset of the same shape. CORPUS: a manifest or corpus.
cd "$(dirname "$0")"
source ../common.sh "$@"
[ -z "$smoke" ] || small+=(model.conv_channels=32)
preset=${PRESET:-wav2vec2_base}

stage "corpus"
if [ "$smoke" ]; then
  librispeech # generated speech
  pretrain "$preset" pretrain.yaml "$exp/first"
  init=$exp/first
else
  corpus=${CORPUS:?names a corpus or manifest} init=${INIT:?names the model to start from}
fi

stage "pre-training, from $init"
pretrain "$preset" pretrain.yaml "$exp/pretrain" --init "$init"
stage "done: speechssl extract $exp/pretrain my.wav"
