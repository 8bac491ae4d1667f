"""Sets of pieces against each other: known distributions, other people's densities, and the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import gaussian_kde
from test_cli import fails

from musicgpt import comparison
from musicgpt.cli import main
from musicgpt.comparison import compare
from musicgpt.errors import InputError
from musicgpt.metrics import HISTOGRAMS, MEASURES, Measured
from musicgpt.midi import cut, read_scores, write_midi


def overlaps(x: np.ndarray, y: np.ndarray, seed: int = 0) -> dict[str, object]:
    """Of two sets of pieces that have these values."""
    made, real = ([Measured(1, 1, {"polyphony": float(v)}, {}) for v in values] for values in (x, y))
    return comparison._measure(made, real, "polyphony", np.random.default_rng(seed))


def test_densities_are_those_of_scipy() -> None:
    random = np.random.default_rng(3)
    x, y = random.normal(1, 1, 60), random.gamma(4, 1, 80)
    found = overlaps(x, y)
    width = (x.std() * 60**-0.2 + y.std() * 80**-0.2) / 2
    at = np.linspace(-5, 20, 4001)
    f, g = (gaussian_kde(values, width / values.std(ddof=1))(at) for values in (x, y))
    assert found["overlap"] == pytest.approx(trapezoid(np.minimum(f, g), at), abs=0.005)

    intra = np.abs(y[:, None] - y)[np.triu_indices(80, 1)]
    inter = np.abs(x[:, None] - y).ravel()
    at = np.linspace(0, 20, 4001)
    p, q = (kde(at) + kde(-at) for kde in (gaussian_kde(intra), gaussian_kde(inter)))  # reflected at 0
    assert found["distance_overlap"] == pytest.approx(trapezoid(np.minimum(p, q), at), abs=0.005)
    kl = trapezoid(p * np.log(np.maximum(p, 1e-12) / np.maximum(q, 1e-12)), at)
    assert found["distance_kl"] == pytest.approx(kl, abs=0.005)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_the_interval_holds_the_true_overlap_nineteen_times_of_twenty_or_so(shift: float) -> None:
    random = np.random.default_rng(round(10 * shift))
    truth = 2 * NormalDist().cdf(-shift / 2)
    held = 0
    for _ in range(20):
        found = overlaps(random.normal(shift, 1, 60), random.normal(0, 1, 60))
        low, high = found["overlap_interval"]
        assert low <= found["overlap"] <= high
        assert high - low < 0.5
        held += low <= truth <= high
    assert held >= 16


def test_of_one_distribution_sets_overlap_as_far_as_their_size_lets_them() -> None:
    random = np.random.default_rng(0)
    found = overlaps(random.normal(0, 1, 100), random.normal(0, 1, 200))
    low, high = found["real_overlap_interval"]
    assert low < found["overlap"] < 1
    assert 0.8 < low < found["real_overlap"] < high < 1
    assert found["distance_overlap"] > 0.95
    assert found["distance_kl"] < 0.01


def test_too_few_pieces_have_means_and_no_overlap() -> None:
    one = overlaps(np.array([1.0]), np.array([2.0]))
    assert one["generated"] == {"pieces": 1, "mean": 1.0, "spread": None}
    assert one["overlap"] is one["real_overlap"] is one["distance_kl_interval"] is None
    some = overlaps(np.array([1.0]), np.array([2.0, 3.0, np.nan]))
    assert some["real"]["pieces"] == 2
    assert 0 <= some["overlap"] < 0.5
    assert some["real_overlap"] is None
    same = overlaps(np.full(5, 2.0), np.full(9, 2.0))
    for name in ("overlap", "real_overlap", "distance_overlap"):
        assert same[name] == pytest.approx(1)
    assert same["distance_kl"] >= 0
    none = overlaps(np.array([]), np.array([2.0, 3.0]))
    assert none["generated"] == {"pieces": 0, "mean": None, "spread": None}


def test_a_folder_overlaps_wholly_with_itself_and_little_with_other_music(folk: Path, shared: Path) -> None:
    same = compare(folk, folk, report=print)
    for row in (same["measures"] | same["histograms"]).values():
        assert row["overlap"] == pytest.approx(1)
        assert row["overlap_interval"][0] > 0.8
    for row in same["measures"].values():
        assert row["distance_overlap"] > 0.9  # the same pieces twice: each has one at the distance 0
    said: list[str] = []
    other = compare(folk, shared / "corpora" / "js_fakes", bars=8, report=said.append)
    assert not said
    for name in ("polyphony", "polyphony_rate", "pitch_range"):
        row = other["measures"][name]
        assert row["overlap_interval"][1] < 0.2 < 0.6 < row["real_overlap_interval"][0]
    assert other["measures"]["polyphony"]["generated"]["mean"] == pytest.approx(1, abs=0.1)
    assert other["measures"]["polyphony"]["real"]["mean"] == pytest.approx(4, abs=0.1)
    assert other["histograms"]["duration"]["overlap"] < other["histograms"]["duration"]["real_overlap_interval"][0]


def test_what_cannot_be_read_is_counted(folk: Path, tmp_path: Path) -> None:
    for path in sorted(folk.iterdir())[:6]:
        shutil.copy(path, tmp_path)
    (tmp_path / "broken.mid").write_bytes(b"MThd\0\0")
    (tmp_path / "notes.txt").write_text("no music")
    said: list[str] = []
    found = compare(tmp_path, folk, report=said.append)
    assert found["sets"]["generated"]["files"] == 7
    assert len(found["sets"]["generated"]["unreadable"]) == 1
    assert len(found["sets"]["generated"]["pieces"]) == 6
    assert any(line.startswith(f"1 of 7 files in {tmp_path} left out; the first: ") for line in said)
    with pytest.raises(InputError, match=r"broken\.mid"):
        compare(tmp_path / "broken.mid", folk, report=print)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no music to compare"):
        compare(folk, tmp_path / "empty", report=print)


def test_sets_of_other_lengths_want_as_many_bars(folk: Path, tmp_path: Path) -> None:
    said: list[str] = []
    short = tmp_path / "short"
    short.mkdir()
    for path in sorted(folk.iterdir())[:8]:
        write_midi(cut(read_scores(path)[0][0], 4)[0], short / path.name)
    compare(short, folk, report=said.append)
    assert any(line.endswith("for as much of both say --bars 4") for line in said)
    said.clear()
    found = compare(short, folk, bars=4, report=said.append)
    assert not said
    assert {piece["measured"].bars for piece in found["sets"]["real"]["pieces"]} == {4}
    assert compare(short, folk, bars=6, report=print)["sets"]["generated"]["shorter"] == 8


def test_evaluate_against_from_the_command_line(folk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = f"evaluate {folk / '003.mid'} --against {folk} --bars 8"
    picture = tmp_path / "out.png"
    main(f"{ask} --json --plot {picture}".split())
    first = json.loads(capsys.readouterr().out)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert list(first["measures"]) == list(MEASURES)
    assert list(first["histograms"]) == list(HISTOGRAMS)
    assert first["sets"]["generated"]["pieces"][0] == {
        "path": "003.mid",
        "bars": 8,
        **{name: pytest.approx(row["generated"]["mean"]) for name, row in first["measures"].items()},
    }
    again = picture.read_bytes()
    main(f"{ask} --json --plot {picture} --force".split())
    assert json.loads(capsys.readouterr().out) == first
    assert picture.read_bytes() == again
    main(f"{ask} --json --seed 1".split())
    other = json.loads(capsys.readouterr().out)
    assert other["measures"]["note_density"]["overlap"] == first["measures"]["note_density"]["overlap"]
    assert (
        other["measures"]["note_density"]["overlap_interval"] != first["measures"]["note_density"]["overlap_interval"]
    )

    main(ask.split())
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("generated: 1 pieces (the first 8 bars, 0 shorter) of 1 files in")
    for name in (*MEASURES, *HISTOGRAMS):
        assert [line[:20].rstrip() for line in table].count(name.replace("_", " ")) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("FOLK", "evaluate takes a checkpoint and a corpus, or pieces and --against real ones"),
        ("FOLK FOLK --against FOLK", "evaluate takes a checkpoint and a corpus, or pieces and --against real ones"),
        ("FOLK FOLK --bars 4", "--bars goes with pieces and --against; leave it out"),
        ("FOLK --against FOLK --weights int8", "--weights goes with a checkpoint and a corpus; leave it out"),
        ("FOLK --against FOLK --bars 0", "--bars 0: expected at least 1"),
        ("FOLK --against FOLK --seed -1", "--seed -1: expected at least 0"),
        ("FOLK --against nowhere", "nowhere is neither a file nor a folder"),
        ("FOLK --against FOLK --plot out.gif", "--plot out.gif: expected a name that ends in .png or .svg"),
        ("FOLK --against FOLK --plot nowhere/a.png", "the folder nowhere does not exist"),
    ],
)
def test_mistakes_are_one_line(words: str, message: str, folk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fails(f"evaluate {words.replace('FOLK', str(folk))}", capsys)
