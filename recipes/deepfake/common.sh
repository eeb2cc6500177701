# Sourced by the recipes in the folders beside it, from inside their folder.
# SOURCES     folder that holds what the corpora unpack to, in folders of the names that are given to `corpora`
# DATA, EXP   folders of prepared corpora and results            SEEDS, DEVICES   "0 1 2", "cuda"
source ../../pretrain/common.sh "$@" # the option --smoke, the folders, `stage`
read -ra seeds <<<"${SEEDS:-0 1 2}"
options=(--devices "${DEVICES:-cpu}" --cache "$exp/cache")
small=() # settings that make a recipe end within seconds
if [ "$smoke" ]; then
  seeds=(0 1)
  small=(-s train.steps=4 -s train.evaluate_every=2 -s train.batch_seconds=16 -s head.window=1.0)
fi

corpora() { # the corpus to train on, further ones to test: sets `corpus` and `tested`
  if [ "$smoke" ]; then
    made_speech
    return
  fi
  local name
  for name in "$@"; do # all are audited before hours go into the first
    stage "audit of $name"
    speechssl prepare "$name" "$data/$name" --from "${SOURCES:?the folder of the corpora}/$name" --audit
  done
  for name in "$@"; do
    stage "$name"
    speechssl prepare "$name" "$data/$name" --from "$SOURCES/$name"
  done
  corpus=$data/$1 tested=()
  for name in "${@:2}"; do tested+=("$data/$name"); done
}

made_speech() { # generated speech and its fakes, with labels as a published corpus has them
  local found=("$data"/smoke/deepfake/*/corpus.json)
  if [ ! -e "${found[0]}" ]; then
    speechssl prepare demo "$data/smoke" --source synthetic --config "$repository/recipes/pretrain/smoke_corpus.yaml"
    speechssl run deepfake_detection --config ../smoke.yaml -u fbank --corpus "$data/smoke" -o "$exp/made"
    found=("$data"/smoke/deepfake/*/corpus.json)
  fi
  corpus=${found[0]%/corpus.json} tested=("$corpus:dev")
}

detect() { # folder of the results, settings, upstream, further options: one run for each seed
  local list=${tested[*]}
  speechssl run deepfake_detection_labelled --config "$2" -u "$3" --corpus "$corpus" -o "$1" \
    -s "test_corpora=[${list// /,}]" "${seeds[@]/#/--seed=}" "${options[@]}" "${@:4}" "${small[@]}"
}
