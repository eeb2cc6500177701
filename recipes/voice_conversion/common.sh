# Sourced by the recipes in the folders beside it, from inside their folder.
# SOURCES     folder that holds what the corpora unpack to            DEVICES   "cuda"
# DATA, EXP   folders of data and results                             DETECTOR  a finished run of deepfake_detection
# CACHE_GB    of the features, which are computed once
source ../../pretrain/common.sh "$@" # the option --smoke, the folders, `stage`
options=(--devices "${DEVICES:-cpu}" --cache "$exp/cache" --cache-gb "${CACHE_GB:-200}")
small=() # settings that make a recipe end within seconds
if [ "$smoke" ]; then
  small=(-s language=en -s "source_seconds=[1.0,6.0]" -s reference_seconds=4 -s profile_utterances=1 -s dev_pairs=2
    -s test_pairs=2 -s judges=none)
fi

generated() { # sets `corpus` to six minutes of generated speech, 16 kHz
  corpus=$data/smoke
  speechssl prepare demo "$corpus" --source synthetic --config "$repository/recipes/pretrain/smoke_corpus.yaml"
}

convert() { # preset, settings, upstream, further options: conversions, their judges, and what a detector says of them
  local found=()
  [ -z "${DETECTOR:-}" ] || found=(-s "detector=$DETECTOR")
  speechssl run "$1" --config "$2" -u "$3" --corpus "$corpus" -o "$exp/runs" "${options[@]}" "${found[@]}" "${@:4}" \
    "${small[@]}"
}
