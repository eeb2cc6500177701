"""Frame labels as fairseq's HuBERT reads them: a manifest, a line of codes per file, and a dictionary.

<split>.tsv     the folder of the audio, then per file its path below that and its samples, parted by a tab
<split>.km      per file its codes, parted by blanks, in the order of the manifest
dict.km.txt     per code a line `code 1`

Reference: fairseq `examples/hubert/simple_kmeans` and `data/audio/hubert_dataset.py`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from speechssl.audio import audio_info
from speechssl.errors import SpeechsslError
from speechssl.files import replacing
from speechssl.targets.labels import LabelSet
from speechssl.types import Utterance


def write_fairseq_labels(labels: LabelSet, utterances: Sequence[Utterance], folder: Path, *, split: str) -> None:
    """Writes the three files; utterances without labels are in none of them.

    Raises:
        SpeechsslError: an utterance that is part of a file, which fairseq's manifest can't say.
    """
    codes = labels.by_id()
    kept = [u for u in utterances if u.id in codes]
    if not kept:
        raise SpeechsslError(f"No utterance of '{split}' is labelled: there is nothing to write for fairseq.")
    infos = [audio_info(u.path) for u in kept]
    for utterance, info in zip(kept, infos, strict=True):
        length = info.duration if utterance.duration is None else utterance.duration
        if utterance.start > 0 or info.duration - length > 1 / labels.label_rate:
            raise SpeechsslError(
                f"Utterance '{utterance.id}' is a part of {utterance.path}, but fairseq's manifests know only whole "
                "files: cut the files first (`speechssl prepare`), or leave out `--fairseq`."
            )
    paths = [Path(u.path).resolve() for u in kept]
    root = os.path.commonpath([path.parent for path in paths])
    rows = [
        f"{path.relative_to(root)}\t{round(info.duration * info.sample_rate)}"
        for path, info in zip(paths, infos, strict=True)
    ]
    lines = [" ".join(map(str, codes[u.id].tolist())) for u in kept]
    for name, content in {
        f"{split}.tsv": [root, *rows],
        f"{split}.km": lines,
        "dict.km.txt": [f"{code} 1" for code in range(labels.num_labels)],
    }.items():
        with replacing(folder / name) as partial:
            partial.write_text("".join(line + "\n" for line in content), encoding="utf-8")
