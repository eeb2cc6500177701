"""Runs jobs of test_k2.py in the environment of k2: `python -m tests.k2_worker JOBS.json RESULTS.json`.

A job is {"kind": "topology" | "words" | "commands", ...}; the result of each is what the test compares.
"""

import contextlib
import io
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from speechssl.decode.arpa import read_arpa
from speechssl.decode.k2 import Beams, best_paths, nbest, rescore_lattice, rescore_nbest, search
from speechssl.decode.k2_command import main, read_log_probs
from speechssl.decode.k2_graph import compile_graph, compile_topology, load_graph, save_graph
from speechssl.decode.lexicon import read_lexicon

WIDE = Beams(search=1e4, output=1e4, min_active=0, max_active=1_000_000)


def run_topology(job):
    given = read_log_probs(Path(job["log_probs"]))
    graph = compile_topology(given.tokens, modified=job["modified"])
    lattice = search(list(given.utterances.values()), graph, beams=WIDE)
    return dict(zip(given.utterances, map(plain, best_paths(lattice)), strict=True))


def run_words(job):
    given = read_log_probs(Path(job["log_probs"]))
    graph = compile_graph(
        given.tokens,
        read_lexicon(Path(job["lexicon"]), given.tokens),
        grammar=read_arpa(Path(job["arpa"])),
        separator=job["separator"],
        lm_scale=job["lm_scale"],
        modified=job["modified"],
    )
    save_graph(graph, Path(job["log_probs"] + ".graph"))
    lattice = search(list(given.utterances.values()), graph, beams=WIDE)
    again = search(list(given.utterances.values()), load_graph(Path(job["log_probs"] + ".graph")), beams=WIDE)
    larger = read_arpa(Path(job["rescore"]))
    lists = nbest(lattice, 500, draws=3000, scale=0.1)
    found = {
        "best": best_paths(lattice),
        "of saved graph": best_paths(again),
        "rescored": rescore_lattice(lattice, larger, lm_scale=job["rescore_scale"]),
        "rescored list": [rescore_nbest(rows, larger.score, lm_scale=job["rescore_scale"])[0] for rows in lists],
    }
    rows = {name: dict(zip(given.utterances, map(plain, found[name]), strict=True)) for name in found}
    return {**rows, "nbest": {name: list(map(plain, hs)) for name, hs in zip(given.utterances, lists, strict=True)}}


def run_commands(job):
    logging.getLogger().setLevel(logging.INFO)
    results = []
    for arguments in job["commands"]:
        logs, status, message = io.StringIO(), 0, ""
        handler = logging.StreamHandler(logs)
        logging.getLogger().addHandler(handler)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                main(arguments)
        except SystemExit as error:
            status, message = 1, str(error.code)
        logging.getLogger().removeHandler(handler)
        results.append({"status": status, "message": message, "log": logs.getvalue()})
    return results


def plain(hypothesis):
    return None if hypothesis is None else {**asdict(hypothesis), "score": hypothesis.score}


if __name__ == "__main__":
    run = {"topology": run_topology, "words": run_words, "commands": run_commands}
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps([run[job["kind"]](job) for job in jobs]), encoding="utf-8")
