#!/usr/bin/env bash
# XLS-R and AASIST, trained together on ASVspoof 2019 LA and measured on 2019 LA, 2021 LA, 2021 DF and In-the-Wild
# (Tak et al. 2022, arXiv:2202.12233).
#   SOURCES=/corpora bash recipes/deepfake/xlsr_aasist_asvspoof2019la/run.sh [--smoke]
# RAWBOOST    algorithm of RawBoost: 5, which the authors take for LA; 3 for DF
cd "$(dirname "$0")"
source ../common.sh "$@"
upstream=wav2vec2_xls_r_300m
[ -z "$smoke" ] || upstream=wav2vec2_tiny:random
[ -z "$smoke" ] || small+=(-s "features.layers=[2]" -s head.aasist.projected=24 -s "head.aasist.channels=[8,8]"
  -s "head.aasist.widths=[8,8]" -s first_seconds=0.5 -s adapt.cache=false)

stage "corpora"
corpora asvspoof2019_la asvspoof2021_la asvspoof2021_df in_the_wild
stage "training, one run for each of the seeds ${seeds[*]}"
detect "$exp/runs" train.yaml "$upstream" -s "augment.rawboost=[${RAWBOOST:-5}]"
stage "report"
speechssl report "$exp/runs" -o "$exp/report"
stage "done: open $exp/report/index.html"
