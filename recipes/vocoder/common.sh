# Sourced by the recipes in the folders beside it, from inside their folder.
# DATA, EXP   folders of data and results
source ../../pretrain/common.sh "$@" # the option --smoke, the folders, `stage`
small=() # settings that make a recipe end within seconds
if [ "$smoke" ]; then
  small=(train.steps=2 train.batch_size=2 train.log_every=1 train.accelerator=cpu train.num_workers=0)
fi

generated() { # sets `corpus` to six minutes of generated speech, 16 kHz
  corpus=$data/smoke
  speechssl prepare demo "$corpus" --source synthetic --config "$repository/recipes/pretrain/smoke_corpus.yaml"
}
