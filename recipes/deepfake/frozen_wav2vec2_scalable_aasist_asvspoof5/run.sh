#!/usr/bin/env bash
# A frozen wav2vec 2.0 (XLS-R 300M) and a scalable AASIST on ASVspoof 5 (Viakhirev et al. 2025, arXiv:2507.11777).
#   SOURCES=/corpora bash recipes/deepfake/frozen_wav2vec2_scalable_aasist_asvspoof5/run.sh [--smoke]
# CACHE_GB    of the features, which are computed once: 24 hidden states are not needed, the last one takes 0.1 MB a second
cd "$(dirname "$0")"
source ../common.sh "$@"
upstream=wav2vec2_xls_r_300m
options+=(--cache-gb "${CACHE_GB:-1000}")
[ -z "$smoke" ] || upstream=wav2vec2_tiny:random
[ -z "$smoke" ] || small+=(-s "features.layers=[2]" -s head.scalable_aasist.projected=24
  -s "head.scalable_aasist.channels=[8,8]" -s "head.scalable_aasist.widths=[8,8]" -s first_seconds=0.5)

stage "corpora"
corpora asvspoof5 in_the_wild
stage "training, one run for each of the seeds ${seeds[*]}"
detect "$exp/runs" train.yaml "$upstream"
stage "report"
speechssl report "$exp/runs" -o "$exp/report"
stage "done: open $exp/report/index.html"
