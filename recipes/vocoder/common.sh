# Sourced by the recipes in the folders beside it, from inside their folder: options, and generated speech.
# DATA, EXP   folders of data and results
set -euo pipefail
smoke=
for option in "$@"; do
  case "$option" in
    --smoke) smoke=1 ;;
    *) echo "Unknown option $option: there is --smoke, which runs the whole recipe small on generated speech." >&2; exit 2 ;;
  esac
done
repository=$(cd ../../.. && pwd)
data=${DATA:-$repository/data} exp=${EXP:-$repository/exp/$(basename "$PWD")}
small=() # settings that make a recipe end within seconds
if [ "$smoke" ]; then
  exp=${EXP:-$repository/exp/smoke/$(basename "$PWD")}
  small=(train.steps=2 train.batch_size=2 train.log_every=1 train.accelerator=cpu train.num_workers=0)
fi

stage() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS" >&2; }

generated() { # sets `corpus` to six minutes of generated speech, 16 kHz
  corpus=$data/smoke
  speechssl prepare demo "$corpus" --source synthetic --config "$repository/recipes/pretrain/smoke_corpus.yaml"
}
