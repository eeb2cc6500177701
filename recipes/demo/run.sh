#!/usr/bin/env bash
# Real speech in, a tiny HuBERT pre-trained, four tasks measured, one page to look at.
#   bash recipes/demo/run.sh [--quick | --smoke] [--synthetic] [--full]
# --quick      the same line on about an hour of speech, in at most 6 minutes
# --smoke      the same line on a few synthetic utterances, to check that it runs
# --synthetic  speech from a synthesiser instead of the Debian packages
# --full       the whole corpus instead of the subset
# Started again, it goes on from where it was. DATA and EXP name the folders (data/demo and exp/demo).
set -euo pipefail
cd "$(dirname "$0")/../.."
size=default prepare=()
for option in "$@"; do
  case "$option" in
    --quick | --smoke) size=${option#--} ;;
    --synthetic) prepare+=(--source synthetic) ;;
    --full) prepare+=(--full) ;;
    *) echo "Unknown option $option: see the head of $0." >&2; exit 2 ;;
  esac
done
suffix=$([ "$size" = default ] || echo "_$size")
config=recipes/demo/$size
data=${DATA:-data/demo$suffix} exp=${EXP:-exp/demo$suffix} report=${REPORT:-report$suffix}
[ "$size" != quick ] || report=${REPORT:-report}
[ "$size" != smoke ] || prepare+=(--source synthetic)

stage() { printf '\n== %s (%s s)\n' "$*" "$SECONDS" >&2; }

stage "corpus"
speechssl prepare demo "$data" --config "$config/corpus.yaml" "${prepare[@]}"

stage "pre-training, iteration 1: clusters of MFCC"
speechssl cluster --upstream mfcc --corpus "$data" --config "$config/cluster1.yaml" -o "$exp/cluster1"
speechssl pretrain hubert_tiny --corpus "$data" --labels "$exp/cluster1" --config "$config/pretrain1.yaml" -o "$exp/pretrain1"

stage "pre-training, iteration 2: clusters of a layer of iteration 1"
speechssl cluster --upstream "$exp/pretrain1/upstream" --corpus "$data" --config "$config/cluster2.yaml" -o "$exp/cluster2"
speechssl pretrain hubert_tiny --corpus "$data" --labels "$exp/cluster2" --config "$config/pretrain2.yaml" -o "$exp/pretrain2"

for task in asr speaker_verification deepfake_detection voice_conversion; do
  stage "$task"
  speechssl run "$task" --config "$config/$task.yaml" --corpus "$data" -o "$exp/runs" --jobs 2 --seed 0 --seed 1 --seed 2 \
    --upstream fbank --upstream random=hubert_tiny:random --upstream "pretrained=$exp/pretrain2/upstream"
done

stage "report"
speechssl report "$exp" -o "$report"
stage "done: open $report/index.html"
