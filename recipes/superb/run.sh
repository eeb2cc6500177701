#!/usr/bin/env bash
# SUPERB on upstreams: corpora listed and checked, every task run, one table, one page.
#   bash recipes/superb/run.sh [--smoke] UPSTREAM... [-- OPTIONS OF speechssl run]
#   bash recipes/superb/run.sh hubert_base wavlm_base -- --sweep lr=1e-2,1e-3,1e-4 --seed 0 --seed 1 --seed 2
# SOURCES     folder that holds what the corpora unpack to, in folders of the names below
# DATA, EXP, REPORT   prepared corpora, results, the page
# SUITE       superb (the ten tasks), superb_sg (separation, enhancement), superb_mini
# --smoke     the tasks that the demo corpus has labels for, a few steps each on generated speech
set -euo pipefail
cd "$(dirname "$0")/../.."
smoke= upstreams=() options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --smoke) smoke=1 ;;
    --) shift; options=("$@"); break ;;
    -*) echo "Unknown option $1: see the head of $0." >&2; exit 2 ;;
    *) upstreams+=(-u "$1") ;;
  esac
  shift
done
[ ${#upstreams[@]} -gt 0 ] || { echo "Name an upstream, such as hubert_base: see the head of $0." >&2; exit 2; }
data=${DATA:-data} exp=${EXP:-exp/superb} suite=${SUITE:-superb}
stage() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS" >&2; }

case "$suite" in
  superb) corpora=(librispeech speech_commands quesst14 voxceleb1 libri2mix_diarization fluent_speech_commands
    audio_snips iemocap) ;;
  superb_sg) corpora=(libri2mix_separation voicebank_demand) ;;
  superb_mini) corpora=(voxceleb1 librispeech libri2mix_separation voicebank_demand) ;;
  *) echo "SUITE must be superb, superb_sg or superb_mini, but is $suite." >&2; exit 2 ;;
esac
if [ "$smoke" ]; then
  suite=superb_demo data=$data/smoke
  options+=(--config recipes/superb/smoke.yaml --only language_identification_demo,speaker_verification_demo,asr_demo)
  stage "generated speech"
  speechssl prepare demo "$data" --source synthetic --config recipes/pretrain/smoke_corpus.yaml
else
  for corpus in "${corpora[@]}"; do # all are audited before hours go into the first
    stage "audit of $corpus"
    speechssl prepare "$corpus" "$data/$corpus" --from "${SOURCES:?the folder of the corpora}/$corpus" --audit
  done
  for corpus in "${corpora[@]}"; do
    stage "$corpus"
    speechssl prepare "$corpus" "$data/$corpus" --from "$SOURCES/$corpus"
  done
fi

stage "$suite"
speechssl run "$suite" "${upstreams[@]}" --corpus "$data" -o "$exp/runs" --cache "$exp/cache" "${options[@]}"
stage "report"
speechssl report "$exp/runs" -o "${REPORT:-$exp/report}"
stage "done: open ${REPORT:-$exp/report}/index.html"
