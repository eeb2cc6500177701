"""Seconds that a conversion takes on this CPU, and the memory it peaks at, with vocoders of the published size.

    python benchmarks/conversion.py                  # 10 s of source, a voice of 60 s
    python benchmarks/conversion.py --seconds 600    # a long file, in windows

The vocoders have random weights, which cost as much as trained ones: HiFi-GAN V1 as kNN-VC has it (16.1 M parameters on
features 256 wide) and the paper's iSTFT vocoder (14.1 M), both at 16 kHz on layer 4 of `speechssl_tiny`.
"""

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

import speechssl
from speechssl.vocoder import FeatureSource, MelConfig
from speechssl.vocoder.folder import build_generator, save_vocoder
from speechssl.vocoder.hifigan import KNNVC, HifiGanConfig
from speechssl.vocoder.istft import IstftConfig

RATE, UPSTREAM, LAYER = 16_000, "speechssl_tiny", 4
KINDS: dict[str, HifiGanConfig | IstftConfig] = {
    "hifigan": KNNVC,
    "istft": IstftConfig(MelConfig(sample_rate=RATE, hop=320)),
}


def main() -> None:
    """Prints one line per vocoder and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the source")
    parser.add_argument("--voice", type=float, default=60.0, help="seconds of the target's speech")
    parser.add_argument("--kinds", default="hifigan,istft")
    parser.add_argument("--precisions", default="float32,bf16")
    arguments = parser.parse_args()
    upstream = speechssl.load_upstream(UPSTREAM)
    source = FeatureSource(UPSTREAM, LAYER, upstream.fingerprint(), prematched=True)
    print(f"{torch.get_num_threads()} threads; {arguments.seconds:g} s of source, a voice of {arguments.voice:g} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, seconds in (("source.wav", arguments.seconds), ("voice.wav", arguments.voice)):
            noise = np.random.default_rng(0).standard_normal(round(seconds * RATE))
            soundfile.write(folder / file, 0.05 * noise, RATE)
        for kind in arguments.kinds.split(","):
            width = upstream.hidden_sizes[LAYER]
            save_vocoder(
                build_generator(replace(KINDS[kind], features=width), name=kind, source=source),
                folder / f"{kind}_vocoder",
                weights="random",
            )
            for precision in arguments.precisions.split(","):
                _measure(folder, kind, precision)


def _measure(folder: Path, kind: str, precision: Any) -> None:
    converter = speechssl.load_converter(vocoder=folder / f"{kind}_vocoder", precision=precision, trim=False)
    begin = time.perf_counter()
    voice = converter.voice(folder / "voice.wav")
    encoded = time.perf_counter() - begin
    begin = time.perf_counter()
    converter.convert(folder / "source.wav", voice, out=folder / "converted.wav")
    converted = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{kind} {precision}: voice {encoded:.1f} s, conversion {converted:.1f} s, peak so far {peak:.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
