#!/usr/bin/env bash
# Real speech in, a tiny HuBERT pre-trained, four tasks measured, one page to look at.
#   bash recipes/demo/run.sh [--quick] [--start=speechssl_tiny] [--synthetic] [--full]
# --quick      the same line on about an hour of speech, to see how it goes
# --start=NAME from a trained upstream with the shape of hubert_tiny, which takes the place of iteration 1
# --synthetic  speech from a synthesiser instead of the Debian packages
# --full       the whole corpus instead of the subset
# Started again, it goes on from where it was. DATA, EXP and REPORT name the folders.
set -euo pipefail
cd "$(dirname "$0")/../.."
size=default start= prepare=() full= seeds=(--seed 0 --seed 1 --seed 2)
for option in "$@"; do
  case "$option" in
    --quick) size=quick seeds=(--seed 0) ;;
    --start=?*) start=${option#*=} ;;
    --synthetic) prepare+=(--source synthetic) ;;
    --full) full=1 ;;
    *) echo "Unknown option $option: see the head of $0." >&2; exit 2 ;;
  esac
done
[ "$size" = default ] && suffix="" || suffix="_$size"
config=recipes/demo/$size data=${DATA:-data/demo$suffix} report=${REPORT:-report}
exp=${EXP:-exp/demo$suffix${start:+_from_$(basename "$start")}}
[ "$full" ] && prepare+=(--full) || prepare+=(--config "$config/corpus.yaml")
stage() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS" >&2; }

stage "corpus"
speechssl prepare demo "$data" "${prepare[@]}"

stage "clusters of MFCC"
speechssl cluster --upstream mfcc --clusters 100 --corpus "$data" -o "$exp/cluster1"

if [ -z "$start" ]; then
  stage "iteration 1: predict clusters of MFCC"
  first=$exp/pretrain1 second=() upstreams=()
  speechssl pretrain hubert_tiny --labels "$exp/cluster1" --config "$config/pretrain1.yaml" --corpus "$data" -o "$first"
else # what is trained keeps more of what it knows at a lower rate
  first=$start second=(train.learning_rate=3e-4) upstreams=(-u "$start")
fi

# Both label sets (the paper's sec. 2.3): the upper layers then keep what tells voices apart, which the second set lacks.
stage "iteration 2: predict clusters of a layer of $first, and of MFCC still"
speechssl cluster --upstream "$first" --layer 4 --clusters 200 --precision bf16 --corpus "$data" -o "$exp/cluster2"
speechssl pretrain hubert_tiny --labels "$exp/cluster1" --labels "$exp/cluster2" --init "$first" \
  --config "$config/pretrain2.yaml" --corpus "$data" -o "$exp/pretrain2" "${second[@]}"

for task in asr speaker_verification deepfake_detection voice_conversion; do
  stage "$task"
  also=()
  [ "$task" = voice_conversion ] && also=(-s "detector=$exp/runs/deepfake_detection/pretrained/seed0")
  speechssl run "${task}_demo" --config "$config/$task.yaml" --corpus "$data" -o "$exp/runs" "${seeds[@]}" --jobs 2 \
    --precision bf16 --cache "$exp/cache" \
    -u fbank -u random=hubert_tiny:random "${upstreams[@]}" -u "pretrained=$exp/pretrain2" "${also[@]}"
done

stage "report"
speechssl report "$exp" -o "$report"
stage "done: open $report/index.html"
