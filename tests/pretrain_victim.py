"""A run that is killed again and again: python pretrain_victim.py CORPUS LABELS OUTPUT SEED [SETTINGS].

It forks, so that the libraries are imported but once; each child goes on with the run until it is killed at random.
Prints how many were killed, and how many of them while a checkpoint was being written.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from pretraining_runs import arguments

from speechssl.cli import main

LONGEST = 60.0  # seconds that a child may take
MOST = 12  # that are killed


def _child(words):
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        main(words)
    except SystemExit as end:
        os._exit(end.code or 0)
    os._exit(70)


def _writing(folder):
    return any(path.name.startswith(".") for path in (folder / "checkpoints").glob(".*"))


def run(words, folder, chance):
    killed = inside = 0
    longest = 1.0
    while True:
        child = os.fork()
        if child == 0:
            _child(words)
        begin = time.monotonic()
        moment = begin + chance.uniform(0.0, longest)
        catch = chance.random() < 0.5  # wait for a checkpoint that is being written
        while time.monotonic() - begin < LONGEST:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status), killed, inside
            if time.monotonic() > moment and (not catch or _writing(folder)) and killed < MOST:
                break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        inside += _writing(folder)
        killed += 1
        longest *= 1.15


if __name__ == "__main__":
    corpus, labels, output = map(Path, sys.argv[1:4])
    status, killed, inside = run(
        arguments(corpus, labels, output, *sys.argv[5:]), output, random.Random(int(sys.argv[4]))
    )
    print(status, killed, inside)
