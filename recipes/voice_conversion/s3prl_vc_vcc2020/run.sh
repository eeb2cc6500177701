#!/usr/bin/env bash
# S3PRL-VC, any to one, on VCC2020 task 1: Taco2-AR on an upstream, one run for each target (Huang et al. 2022, arXiv:2110.06280).
#   SOURCES=/corpora VOCODER=exp/hifigan_24k bash recipes/voice_conversion/s3prl_vc_vcc2020/run.sh [--smoke]
# UPSTREAM    hubert_base by default            VOCODER   what recipes/vocoder/hifigan_24k wrote
cd "$(dirname "$0")"
source ../common.sh "$@"
upstream=${UPSTREAM:-hubert_base} vocoder=${VOCODER:-$repository/exp/hifigan_24k}
targets=(TEF1 TEF2 TEM1 TEM2)

stage "corpus"
if [ "$smoke" ]; then
  generated
  upstream=fbank vocoder=griffin_lim targets=(null) # the speaker with the most speech
  small+=(-s synthesis.network.hidden=16 -s synthesis.network.conv_channels=8 -s synthesis.network.prenet_width=8
    -s train.steps=4 -s train.evaluate_every=2 -s train.max_batch_size=2 -s train_minutes=0.2)
else
  corpus=$data/vcc2020
  speechssl prepare vcc2020 "$corpus" --from "${SOURCES:?the folder of the corpora}/vcc2020"
fi

for target in "${targets[@]}"; do
  stage "training, conversions to $target, and their judges"
  convert voice_conversion_a2o_taco2_ar vcc2020.yaml "$target=$upstream" -s "target=$target" -s "vocoder=$vocoder"
done
stage "report"
speechssl report "$exp/runs" -o "$exp/report"
stage "done: open $exp/report/index.html"
