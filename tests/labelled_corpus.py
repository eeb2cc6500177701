"""The corpus of the fixture `tiny_corpus`, with the labels that every task wants."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from speechssl.data.corpus import open_corpus
from speechssl.data.manifests import Clip, write_corpus
from speechssl.types import Utterance

FOLDS = 5


def write_labelled(tiny: Path, root: Path) -> Path:
    """Copies the corpus and adds labels that are made up, but the same each time."""
    root.mkdir(parents=True)
    shutil.copytree(tiny / "audio", root / "audio")
    corpus = open_corpus(tiny)
    splits = {name: list(_clips(tiny, corpus.utterances(name))) for name in corpus.splits()}
    splits |= {f"fold{k}_{name}": splits[name] for k in range(1, FOLDS + 1) for name in ("train", "dev", "test")}
    splits["documents"] = splits["train"]
    lists = {}
    (root / "lists").mkdir()
    for name in ("dev", "test"):
        pairs = [f"{q.id} {d.id}\n" for q in splits[name] for d in splits["documents"] if _shares_word(q, d)]
        lists[f"ground_truth_{name}"] = f"lists/ground_truth_{name}.txt"
        (root / lists[f"ground_truth_{name}"]).write_text("".join(pairs))
    write_corpus(root, splits, name="labelled", source="synthetic", sources=[], extra={"files": lists})
    return root


def _clips(root: Path, utterances: list[Utterance]) -> Iterator[Clip]:
    for utterance in utterances:
        number = int(utterance.labels["sentence"])
        text = utterance.labels.get("text")
        words = str(text or "").split()
        custom = {
            "sentence": number,
            "keyword": f"word{number % 2}",
            "action": f"action{number % 2}",
            "object": f"object{number % 2}",
            "location": ("there", "here")[number % 2],
            "emotion": ("neu", "ang")[number % 2],
            "phones": " ".join(" ".join(word) for word in words) or None,
            "slots": " ".join(["B-first", *words[:1], "E-first", *words[1:]]) if words else None,
            "quality": 1.0 + number % 4,
        }  # fmt: skip
        yield Clip(
            id=utterance.id, path=str(Path(utterance.path).relative_to(root.resolve())),
            samples=round((utterance.duration or 0.0) * 16_000), source="tones", licence="CC0-1.0", text=text,
            raw_text=text, language=str(utterance.labels["language"]), speaker=str(utterance.labels["speaker"]),
            custom={key: value for key, value in custom.items() if value is not None},
        )  # fmt: skip


def _shares_word(query: Clip, document: Clip) -> bool:
    return bool(set((query.text or "").split()) & set((document.text or "").split()))
