"""`speechssl extract --units`: the codes of every source, written whole, read back, and made once."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechssl.analysis.dmel import DMelConfig, discretize, log_mel
from speechssl.audio import read_audio
from speechssl.cli import main
from speechssl.errors import SpeechsslError
from speechssl.extraction import extract
from speechssl.loading import load_upstream
from speechssl.targets.kmeans import KMeans
from speechssl.unit_extraction import read_units, write_units
from speechssl.unit_sources import open_units
from upstreams.vq_wav2vec.model import VqWav2VecUpstream


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "recordings", np.random.default_rng(0)
    folder.mkdir()
    for i, name in enumerate("abc"):
        soundfile.write(folder / f"{name}.wav", rng.uniform(-0.3, 0.3, 9_000 + 5_000 * i), 16_000)
    return folder


@pytest.fixture
def clusters(tmp_path: Path) -> Path:
    upstream = load_upstream("hubert_tiny", random_weights=0)
    centroids = torch.randn(6, upstream.hidden_sizes[1], generator=torch.Generator().manual_seed(0))
    about = {"upstream": "hubert_tiny", "upstream_fingerprint": upstream.fingerprint(), "config": {"layer": 1}}
    KMeans(centroids, about).save(tmp_path / "km")
    return tmp_path / "km"


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    return int(stop.value.code or 0)


def test_units_are_the_nearest_centroids_of_the_layer_and_durations_undo_the_deduplication(
    recordings: Path, clusters: Path, tmp_path: Path
) -> None:
    options = ("hubert_tiny", recordings, "--units", clusters, "--random-weights", "0")
    assert run("extract", *options, "-o", tmp_path / "all") == 0
    assert run("extract", *options, "-o", tmp_path / "dedup", "--deduplicate") == 0
    upstream = load_upstream("hubert_tiny", random_weights=0)
    centroids = open_units("hubert_tiny", str(clusters), random_weights=0).encode.__self__.centroids  # type: ignore[attr-defined]
    expected = {u.id: torch.cdist(f[1], centroids).argmin(dim=1) for u, f in extract(upstream, recordings, layers=[1])}
    for folder in ("all", "dedup"):
        found = read_units(tmp_path / folder)
        assert all(torch.equal(found[name], codes) for name, codes in expected.items())
        assert len(found) == 3
    rows = [json.loads(line) for line in (tmp_path / "dedup" / "units.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert all(sum(row["durations"]) == row["frames"] == len(expected[row["id"]]) for row in rows)
    assert all(a != b for row in rows for a, b in zip(row["units"], row["units"][1:], strict=False))
    text = dict(line.split("|") for line in (tmp_path / "dedup" / "units.txt").read_text().splitlines())
    assert text["b"] == " ".join(map(str, rows[1]["units"]))
    about = json.loads((tmp_path / "dedup" / "units.json").read_text())
    assert (about["layer"], about["entries"], about["deduplicated"], about["frame_rate"]) == (1, 6, True, 50.0)


def test_a_second_run_makes_only_what_is_new_or_changed(recordings: Path, clusters: Path, tmp_path: Path) -> None:
    source = open_units("hubert_tiny", str(clusters), random_weights=0)
    out = tmp_path / "units"
    assert write_units(source, [str(recordings)], out, dedup=False).computed == 3
    before = (out / "units.jsonl").read_text()
    with (out / "units.jsonl").open("a") as file:
        file.write('{"id": "torn", "uni')
    again = write_units(source, [str(recordings)], out, dedup=False)
    assert (again.computed, again.kept) == (0, 3)
    assert (out / "units.jsonl").read_text() == before
    soundfile.write(recordings / "b.wav", np.random.default_rng(9).uniform(-0.3, 0.3, 7_000), 16_000)
    changed = write_units(source, [str(recordings)], out, dedup=False)
    assert (changed.computed, changed.kept) == (1, 2)
    with pytest.raises(SpeechsslError, match="holds units with deduplicated False, not True"):
        write_units(source, [str(recordings)], out, dedup=True)


def test_a_models_own_codewords_and_dmel_are_written_with_all_their_codebooks(recordings: Path, tmp_path: Path) -> None:
    model = load_upstream("vq_wav2vec_tiny", random_weights=0)
    assert isinstance(model, VqWav2VecUpstream)
    source = open_units("vq_wav2vec_tiny", "own", random_weights=0)
    write_units(source, [str(recordings)], tmp_path / "vq", dedup=False)
    waveform = read_audio(str(recordings / "b.wav"), sample_rate=16_000)[None]
    assert torch.equal(read_units(tmp_path / "vq")["b"], model.codes(waveform)[0].squeeze(1))
    assert run("extract", "dmel", recordings, "--units", "dmel", "-o", tmp_path / "dmel") == 0
    found = read_units(tmp_path / "dmel")["b"]
    assert torch.equal(found, discretize(log_mel(waveform)[0], DMelConfig().entries))
    assert not (tmp_path / "dmel" / "units.txt").exists()


def test_wav2vec2_chooses_the_entries_that_transformers_chooses(tmp_path: Path, recordings: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, conv_dim=(32,) * 7,
        codevector_dim=16, num_codevectors_per_group=20, proj_codevector_dim=16, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    theirs = transformers.Wav2Vec2ForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path / "model")
    source = open_units(str(tmp_path / "model"), "own")
    write_units(source, [str(recordings)], tmp_path / "units", dedup=False)
    assert (source.groups, source.entries) == (2, 20)
    waveform = read_audio(str(recordings / "c.wav"), sample_rate=16_000)[None]
    with torch.no_grad():
        normalised = waveform if not source.upstream.normalize else torch.nn.functional.layer_norm(
            waveform, waveform.shape[1:]
        )  # fmt: skip
        heard = theirs.wav2vec2(normalised).extract_features
        logits = theirs.quantizer.weight_proj(heard[0]).view(-1, 2, 20)
    assert torch.equal(read_units(tmp_path / "units")["c"], logits.argmax(dim=2))


def test_sources_that_do_not_fit_are_told(
    recordings: Path, clusters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SpeechsslError, match="with other weights"):
        open_units("hubert_tiny", str(clusters), random_weights=1)
    with pytest.raises(SpeechsslError, match="is of layer 1, not 2"):
        open_units("hubert_tiny", str(clusters), layer=2, random_weights=0)
    with pytest.raises(SpeechsslError, match="no quantizer of its own"):
        open_units("hubert_tiny", "own", random_weights=0)
    with pytest.raises(SpeechsslError, match="without the quantizer"):
        open_units("wav2vec2_tiny", "own", random_weights=0)
    assert run("extract", "fbank", recordings, "--units", "dmel", "-o", tmp_path / "x") == 1
    assert "dMel hears no upstream" in capsys.readouterr().err.replace("\n", " ")
    assert run("extract", "fbank", recordings, "--deduplicate", "-o", tmp_path / "x") == 1
