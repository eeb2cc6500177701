"""Slow references for test_k2.py: every alignment, every word sequence, n-gram models by the textbook."""

import itertools
import math
import random


def alignments(log_probs, *, modified=False):
    """Best score of each token sequence (blank 0) over all alignments, every one of which is tried."""
    best = {}
    rows = [list(map(float, row)) for row in log_probs]
    for path in itertools.product(range(len(rows[0])), repeat=len(rows)):
        score = sum(row[k] for row, k in zip(rows, path, strict=False))
        for tokens in collapse(path) if modified else [tuple(k for k, _ in itertools.groupby(path) if k)]:
            best[tokens] = max(best.get(tokens, -math.inf), score)
    return best


def collapse(path):
    """All token sequences of an alignment where a repeated class may be the same token or another."""
    found = {()}
    for last, k in zip((0, *path), path, strict=False):
        if k:
            found = {(*s, k) for s in found} | (found if k == last else set())
    return found


def sentences(tokens, lexicon, separator):
    """All word sequences that spell a token sequence; lexicon = [(word, tokens)]."""
    if separator is None:
        return (
            {()}
            if not tokens
            else {
                (word, *rest)
                for word, spelling in lexicon
                if tokens[: len(spelling)] == spelling
                for rest in sentences(tokens[len(spelling) :], lexicon, None)
            }
        )
    parts = [tuple(group) for is_word, group in itertools.groupby(tokens, lambda k: k != separator) if is_word]
    choices = [[word for word, spelling in lexicon if spelling == part] for part in parts]
    return set(itertools.product(*choices))


def best_sentences(log_probs, lexicon, language, *, separator=None, modified=False, scale=1.0):
    """(score, words) of all word sequences, the best first; `language` scores a sentence."""
    found = {}
    for tokens, score in alignments(log_probs, modified=modified).items():
        for words in sentences(tokens, lexicon, separator):
            found[words] = max(found.get(words, -math.inf), score)
    return sorted(((score + scale * language(words), words) for words, score in found.items()), reverse=True)


class Ngrams:
    """A back-off model in base 10: {words: (log10 probability, log10 back-off weight)}."""

    def __init__(self, entries, order):
        self.entries, self.order = entries, order

    @classmethod
    def random(cls, words, order, seed):
        """Any numbers will do for a back-off model; half of the longer n-grams are missing."""
        draw = random.Random(seed)
        entries = {("<s>",): (-99.0, -draw.random())}
        for n in range(1, order + 1):
            for gram in itertools.product(["<s>", *words, "</s>"], repeat=n):
                if "</s>" in gram[:-1] or "<s>" in gram[1:] or gram == ("<s>",):
                    continue
                if n == 1 or (gram[:-1] in entries and draw.random() < 0.5):
                    entries[gram] = (-2 * draw.random() - 0.05, -draw.random() if gram[-1] != "</s>" else 0.0)
        return cls(entries, order)

    def text(self):
        lines = ["\\data\\"]
        by_order = {n: [g for g in self.entries if len(g) == n] for n in range(1, self.order + 1)}
        lines += [f"ngram {n}={len(grams)}" for n, grams in by_order.items()]
        for n, grams in by_order.items():
            lines += ["", f"\\{n}-grams:"]
            lines += [f"{self.entries[g][0]!r}\t{' '.join(g)}\t{self.entries[g][1]!r}" for g in grams]
        return "\n".join([*lines, "", "\\end\\", ""])

    def _known(self, sentence):
        return [w if (w,) in self.entries else "<unk>" for w in sentence]

    def exact(self, sentence):
        """Natural logarithm; p(w | h) = p of the n-gram if there is one, else back-off weight of h times p(w | h')."""
        words = ["<s>", *self._known(sentence), "</s>"]
        return math.log(10) * sum(
            self._conditional(tuple(words[max(0, i - self.order + 1) : i]), words[i]) for i in range(1, len(words))
        )

    def _conditional(self, history, word):
        if (*history, word) in self.entries:
            return self.entries[(*history, word)][0]
        return self.entries.get(history, (0.0, 0.0))[1] + self._conditional(history[1:], word)

    def optimistic(self, sentence):
        """As `exact`, but backing off is allowed where there is an n-gram too: the best of all ways."""
        return math.log(10) * self._best(("<s>",), [*self._known(sentence), "</s>"])

    def _best(self, history, rest):
        if not rest:
            return 0.0
        history = history[-(self.order - 1) :] if self.order > 1 else ()
        found, paid = [], 0.0
        for start in range(len(history) + 1):
            gram = (*history[start:], rest[0])
            if gram in self.entries:
                found.append(paid + self.entries[gram][0] + self._best(gram, rest[1:]))
            paid += self.entries.get(history[start:], (0.0, 0.0))[1]
        return max(found)
