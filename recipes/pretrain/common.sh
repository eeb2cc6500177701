# Sourced by the recipes in the folders beside it, from inside their folder: options, corpus, and how commands start.
# Folders may add to `small` where their model has other sizes.
# DATA, EXP   folders of data and results            NPROC, NNODES, RENDEZVOUS   processes, see README.md
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
  small=(model.width=32 model.depth=2 model.heads=2 model.ffn_width=64 train.steps=3 train.batches_per_step=2
    train.batch_seconds=4 train.max_seconds=2 train.min_seconds=0.5 train.log_every=1 train.save_every=2
    train.accelerator=cpu train.precision=float32 train.num_workers=0)
fi

stage() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS" >&2; }

launch() { # a verb of speechssl with its arguments, in NPROC processes on each of NNODES machines
  local command=(speechssl "$@") code=0 asked=
  # shellcheck disable=SC2206  # RENDEZVOUS holds several options
  [ "${NPROC:-1}${NNODES:-1}" = 11 ] || command=(torchrun "--nproc-per-node=${NPROC:-1}" "--nnodes=${NNODES:-1}"
    --max-restarts=3 ${RENDEZVOUS:---standalone} -m "${command[@]}")
  # In a session of its own: a scheduler signals the whole group, and torchrun gives its processes 30 s at most.
  setsid "${command[@]}" &
  local child=$!
  trap 'asked=1; ask_to_stop "$child" "$1"' TERM INT USR1
  wait "$child" || code=$?
  if [ "$asked" ]; then wait "$child" || true; leave; fi
  trap - TERM INT USR1
  return "$code"
}

ask_to_stop() { # what was launched, its verb: the processes that train save and end by themselves, and torchrun then does
  if [ "$2" = pretrain ] && [ "${NPROC:-1}${NNODES:-1}" != 11 ]; then
    # shellcheck disable=SC2046  # several numbers
    kill -USR1 $(cat "/proc/$1/task/$1/children")
  else
    kill -TERM "$1"
  fi
}

leave() { # asked to stop: back into Slurm's queue, to go on from there
  if [ -n "${SLURM_JOB_ID:-}" ] && [ "${SLURM_NODEID:-0}" = 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
  exit 143
}

librispeech() { # sets `corpus` to the 960 hours of LibriSpeech, fetched and listed by Lhotse; or to generated speech
  corpus=$data/librispeech/cuts_train_960.jsonl.gz
  if [ "$smoke" ]; then
    corpus=$data/smoke
    speechssl prepare demo "$corpus" --source synthetic --config ../smoke_corpus.yaml
  elif [ "${SLURM_NODEID:-0}" != 0 ]; then # the first machine makes it, on a disk that all share
    until [ -e "$corpus" ]; do sleep 10; done
  elif [ ! -e "$corpus" ]; then
    lhotse download librispeech --full "$data/librispeech"
    lhotse prepare librispeech -j 8 "$data/librispeech/LibriSpeech" "$data/librispeech/manifests"
    local parts=()
    for part in train-clean-100 train-clean-360 train-other-500; do
      lhotse cut simple -r "$data/librispeech/manifests/librispeech_recordings_$part.jsonl.gz" \
        -s "$data/librispeech/manifests/librispeech_supervisions_$part.jsonl.gz" "$data/librispeech/cuts_$part.jsonl.gz"
      parts+=("$data/librispeech/cuts_$part.jsonl.gz")
    done
    lhotse combine "${parts[@]}" "$data/librispeech/partial.jsonl.gz"
    mv "$data/librispeech/partial.jsonl.gz" "$corpus"
  fi
}

clusters() { # what to cluster, its layer, how many clusters, the folder of the labels, further options
  local layer=$2 count=$3
  [ -z "$smoke" ] || layer=$((layer > 2 ? 2 : layer)) count=8
  launch cluster --upstream "$1" --layer "$layer" --clusters "$count" --corpus "$corpus" -o "$4" --fraction 0.1 "${@:5}"
}

pretrain() { # preset, settings, folder, further options
  launch pretrain "$1" --config "$2" --corpus "$corpus" -o "$3" "${@:4}" "${small[@]}"
  [ -e "$3/config.json" ] || leave # one of its processes was asked to stop
}
