#!/usr/bin/env bash
# Four WavLMs on ASVspoof 5, one frozen and three fine-tuned, fused by what dev says (Combei et al. 2024, arXiv:2408.07414).
#   SOURCES=/corpora bash recipes/deepfake/wavlm_ensemble_asvspoof5/run.sh [--smoke]
cd "$(dirname "$0")"
source ../common.sh "$@"
upstream=wavlm_base
[ -z "$smoke" ] || upstream=wavlm_tiny:random seeds=(0) # of four members one run is enough to see that it runs
[ -z "$smoke" ] || small+=(-s "features.layers=[2]" -s head.width=8 -s head.attention=8 -s train.max_duration=0.5)

stage "corpus"
corpora asvspoof5
stage "the frozen member"
detect "$exp/frozen" frozen.yaml "frozen=$upstream"
stage "fine-tuned"
detect "$exp/finetuned" finetune.yaml "finetuned=$upstream"
stage "fine-tuned with codecs"
detect "$exp/codecs" finetune.yaml "codecs=$upstream" -s "augment.codecs=[mp3,vorbis,opus]" -s augment.views=1
stage "fine-tuned with reverberation and RawBoost"
detect "$exp/rooms" finetune.yaml "rooms=$upstream" -s augment.room.reverb_prob=0.5 -s "augment.rawboost=[5]" -s augment.views=1

for seed in "${seeds[@]}"; do
  stage "fusion of the runs with seed $seed, learned on dev"
  members=()
  for member in frozen finetuned codecs rooms; do
    members+=("$exp/$member/deepfake_detection/$member/seed$seed")
  done
  speechssl score deepfake_detection "${members[@]}" -s fuse=logistic -o "$exp/fusion/seed$seed"
done
stage "report"
speechssl report "$exp" -o "$exp/report"
stage "done: open $exp/report/index.html; fusions are in $exp/fusion"
