"""The model in the package: music at once, from its own files alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import transformers

import musicgpt
from musicgpt import midi
from musicgpt.checkpoint import WEIGHTS
from musicgpt.cli import main
from musicgpt.compose import LanguageModel
from musicgpt.config import BOXED
from musicgpt.cpu_engine import CpuEngine
from musicgpt.marks import CONTROL_MARKS, FILL
from musicgpt.originality import compare_file
from musicgpt.phrases import PHRASES, read_phrase

STYLES = ("folk", "chorale", "lied", "quartet", "game", "drums")


@pytest.fixture(scope="module")
def boxed() -> LanguageModel:
    return musicgpt.load()


def test_it_fits_the_package_and_is_described() -> None:
    assert (BOXED / WEIGHTS).stat().st_size <= 25_000_000
    card = (BOXED / "README.md").read_text(encoding="utf-8")
    assert all(f"`{style}`" in card for style in STYLES)


def test_transformers_loads_it() -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(BOXED)
    assert model.config.n_positions == musicgpt.load().model.config.n_positions


def test_the_engine_for_cpus_serves_it(boxed: LanguageModel) -> None:
    """It is stored in half precision, in which torch would go on alone, several times as slow."""
    assert isinstance(boxed.engine, CpuEngine)
    assert musicgpt.load(weights="bfloat16").weights == "bfloat16"


def test_two_words_make_a_piece_without_a_network_or_a_home(tmp_path: Path) -> None:
    """No checkpoint is named; whatever reaches for the network is told that there is none."""
    blocked = tmp_path / "sitecustomize.py"
    blocked.write_text(
        "import socket\n"
        "def refuse(*args, **kwargs):\n"
        "    raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"HOME": str(tmp_path / "nobody")}
    command = [sys.executable, "-m", "musicgpt", "generate", "-o", "a.mid"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ((piece,), _) = midi.read_scores(tmp_path / "a.mid")
    assert piece.note_num() > 0
    assert "of the notes are in passages shared with training pieces" in done.stderr


@pytest.mark.parametrize("phrase", PHRASES)
def test_every_phrase_is_continued_by_eight_bars(phrase: str, boxed: LanguageModel) -> None:
    piece = boxed.generate(phrase, bars=8, max_new_tokens=4000)
    before, after = read_phrase(phrase)[0], piece.score
    assert midi.last_bar(after) == midi.last_bar(before) + 8
    assert after.note_num() > before.note_num() + 8


@pytest.mark.parametrize("style", STYLES)
def test_a_style_can_be_asked_for(style: str, boxed: LanguageModel) -> None:
    pieces = boxed.generate_many(8, bars=4, style=style)
    tracks = [track for piece in pieces for track in piece.score.tracks]
    drums = sum(len(track.notes) for track in tracks if track.is_drum)
    assert (drums > sum(len(track.notes) for track in tracks) / 2) == (style == "drums")


def test_it_knows_controls_and_filling_in(boxed: LanguageModel) -> None:
    assert boxed.tokenizer.has((*CONTROL_MARKS, *FILL))
    (filled,) = boxed.infill("reel", bars="3-4")
    assert filled.notes


def test_what_is_filled_in_is_compared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["infill", "--piece", "reel", "--bars", "3-4", "-o", str(tmp_path / "out.mid")])
    assert "of the notes are in passages shared with training pieces" in capsys.readouterr().err


def test_inspect_knows_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", "boxed", "--json"])
    assert json.loads(capsys.readouterr().out)["kind"] == "checkpoint"


def test_its_index_names_pieces_of_every_style(boxed: LanguageModel) -> None:
    index = boxed.index
    assert index is not None
    assert {name.partition("/")[0] for name in index.names} == set(STYLES)
    assert index.normal.keys() == {"", *STYLES} - {"drums"}  # they have no lines to compare


def test_without_against_a_piece_is_compared_with_that_index(
    boxed: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxed.generate(bars=4).save(tmp_path / "piece.mid")
    main(["originality", str(tmp_path / "piece.mid"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert boxed.index is not None
    assert found == json.loads(json.dumps(asdict(compare_file(tmp_path / "piece.mid", boxed.index))))
