"""What each kind of file is said to be, against values worked out another way; pictures; refusals."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import mido
import pretty_midi
import pytest
import symusic

from musicgpt import midi
from musicgpt.checkpoint import load_model
from musicgpt.cli import main
from musicgpt.config import BOXED
from musicgpt.controls import measured
from musicgpt.describe import describe, in_words, loss_curve, picture
from musicgpt.errors import InputError, MusicGPTError, UsageError
from musicgpt.files import write_json
from musicgpt.marks import LEVELS, PER_INSTRUMENT
from musicgpt.midi import write_midi
from musicgpt.provenance import PROVENANCE, provenance_text
from musicgpt.shards import FORMAT
from musicgpt.tokenizer import load_tokenizer, new_tokenizer


@pytest.fixture
def lonely_run(run: Path, tmp_path: Path) -> Path:
    """The run without what grows in it: no checkpoint, no metrics, no baselines."""
    (tmp_path / "lonely").mkdir()
    shutil.copy(run / "run.json", tmp_path / "lonely")
    return tmp_path / "lonely"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def said(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    main(command.split())
    return capsys.readouterr().out


def refused(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    return output.err


def make_score() -> symusic.Score:
    """3 bars of 4/4, 2 of 6/8, half a bar of 3/4, 1 of 3/4, at 480 ticks a quarter note; two tempos; a late pedal."""
    score = symusic.Score(480)
    bars = 3 * 1920 + 2 * 1440
    for time, numerator, denominator in ((0, 4, 4), (5760, 6, 8), (bars, 3, 4), (bars + 720, 3, 4)):
        score.time_signatures.append(symusic.TimeSignature(time, numerator, denominator))
    score.tempos.append(symusic.Tempo(0, 120))
    score.tempos.append(symusic.Tempo(5760, 60))
    piano = symusic.Track("left\x1b[31m\nhand", 0, False)
    piano.notes.append(symusic.Note(0, 480, 60, 40))
    piano.notes.append(symusic.Note(bars + 720, 1440, 73, 101))
    piano.controls.append(symusic.ControlChange(50_000, 64, 0))
    drums = symusic.Track("", 0, True)
    drums.notes.append(symusic.Note(960, 10, 36, 90))
    score.tracks.append(piano)
    score.tracks.append(drums)
    return score


def test_a_piece_in_bars_beats_and_seconds_counted_by_hand(tmp_path: Path) -> None:
    write_midi(make_score(), tmp_path / "made.mid")
    found = describe(tmp_path / "made.mid")
    assert list(found)[:2] == ["kind", "path"]
    (piece,) = found["each"]
    assert (found["format"], found["pieces"], piece["ticks_per_quarter"], piece["notes"]) == ("MIDI", 1, 480, 3)
    assert piece["bars"] == 3 + 2 + 1 + 1
    assert piece["beats_of_the_metre"] == 3 * 4 + 2 * 6 + 1.5 + 3
    assert piece["end_of_track"] == {"bar": 7 + 28, "quarter_notes": round(50_001 / 480, 3)}  # behind the pedal
    write_midi(make_score(), tmp_path / "closed.mid", end=52_800)
    (closed,) = describe(tmp_path / "closed.mid")["each"]
    assert closed == piece | {"end_of_track": {"bar": 7 + 30, "quarter_notes": 110.0}}
    assert piece["seconds"] == pytest.approx(12 / 2 + (2 * 3 + 1.5 + 3) * 1.0)  # not the pedal's 90
    assert [s["bar"] for s in piece["time_signatures"]["first"]] == [1, 4, 6, 7]
    assert [(t["bar"], t["tempo_bpm"]) for t in piece["tempos"]["first"]] == [(1, 120), (4, 60)]
    assert piece["velocities"] == {"lowest": 40, "highest": 101}
    by_drum = {track["is_drum"]: track for track in piece["tracks"]}
    assert by_drum[False]["instrument"] == "Acoustic Grand Piano"
    assert (by_drum[False]["pitches"], by_drum[False]["pitch_names"]) == ([60, 73], ["C4", "C#5"])
    assert (by_drum[True]["instrument"], by_drum[True]["pitch_names"]) == ("Drums", None)
    words = in_words(found)
    assert "\x1b" not in words
    assert re.search(r"beats of the metre +28.5\n", words)
    assert re.search(r"end of track +bar 35, quarter notes 104.169\n", words)
    assert "4/4 from bar 1, 6/8 from bar 4, 3/4 from bar 6, 3/4 from bar 7" in words


def test_real_music_against_mido_and_pretty_midi(corpora: list[Path]) -> None:
    compared = 0
    for path in corpora:
        try:
            theirs = pretty_midi.PrettyMIDI(str(path))
        except RuntimeWarning:  # a tempo map in several tracks, of which it reads one
            continue
        found, compared = describe(path), compared + 1
        notes = [note for instrument in theirs.instruments for note in instrument.notes]
        assert found["seconds"] == pytest.approx(max(note.end for note in notes), abs=0.01), path
        assert found["each"][0]["ticks_per_quarter"] == mido.MidiFile(path).ticks_per_beat
        assert found["each"][0]["velocities"]["highest"] == max(note.velocity for note in notes)
        last = max(sum(message.time for message in track) for track in mido.MidiFile(path).tracks)
        assert found["each"][0]["end_of_track"]["quarter_notes"] == round(last / theirs.resolution, 3)
        sounding = [m for t in mido.MidiFile(path).tracks for m in t if m.type == "note_on" and m.velocity]
        assert abs(found["notes"] - len(sounding)) <= 0.01 * len(sounding), path  # notes that never end
        _, times = theirs.get_tempo_changes()
        assert found["each"][0]["tempos"]["count"] >= len(times) - 1
        assert len(in_words(found).splitlines()) <= 40
    assert compared > 20


def test_what_made_a_file_is_said_in_words_and_whole(
    tunes: list[symusic.Score], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {
        "version": "0.1.0",
        "seed": 1234567,
        "settings": {"temperature": 1.0, "top_k": 40, "top_p": None, "bars": 8, "prompt": "Früh\x1b[31mling.mid"},
        "sample": 2,
        "num_samples": 4,
        "checkpoint": "ab12cd34" * 8,
        "tokenizer": "0123456789abcdef" * 4,
        "prompt_ids": list(range(1312)),
    }
    path = tmp_path / "made.mid"
    write_midi(tunes[0], path, text=provenance_text(values))
    assert json.loads(said(f"inspect {path} --json", capsys))["provenance"] == values
    words = said(f"inspect {path}", capsys)
    assert "\x1b" not in words
    assert " ".join(words[words.index("made by") : words.index("notes")].split()) == (
        "made by musicgpt 0.1.0: seed 1234567, temperature 1.0, top_k 40, bars 8, prompt Früh?[31mling.mid, "
        "sample 2 of 4, checkpoint sha256 ab12cd34…, tokenizer sha256 01234567…, prompt of 1,312 ids"
    )
    write_midi(tunes[0], path)
    assert describe(path)["provenance"] is None
    assert "made by" not in said(f"inspect {path}", capsys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"seed": 7}', "musicgpt: seed 7"),
        ('{"version": "9", "prompt_ids": [], "num_samples": 1}', "musicgpt 9: no prompt"),
        ('{"prompt_ids": 3, "num_samples": [], "checkpoint": {}, "settings": []}', "musicgpt: sample null of []"),
        ('{"settings": {"a": NaN, "b": true, "c": {"d": 1}}, "mood": "x"}', 'musicgpt: b true, c {"d": 1}, mood x'),
        (json.dumps({"settings": {f"{'k' * 99}{i}": "v" * 999 for i in range(500)}}), "…"),
    ],
)
def test_any_words_about_its_making_are_shown(
    text: str, words: str, tunes: list[symusic.Score], tmp_path: Path
) -> None:
    write_midi(tunes[0], tmp_path / "made.mid", text=PROVENANCE + text)
    found = describe(tmp_path / "made.mid")
    json.dumps(found, allow_nan=False)
    assert words in in_words(found)
    assert len(in_words(found).splitlines()) <= 40


def test_many_changes_are_cut_short_with_their_count(tmp_path: Path) -> None:
    score = make_score()
    for i in range(1, 100):
        score.tempos.append(symusic.Tempo(5760 + i, 60 + i))
    write_midi(score, tmp_path / "rubato.mid")
    found = describe(tmp_path / "rubato.mid")
    tempos = found["each"][0]["tempos"]
    assert (tempos["count"], len(tempos["first"]), tempos["highest_bpm"]) == (101, 12, pytest.approx(159, abs=0.01))
    assert "(all: 101, 60 to 159)" in in_words(found)


def test_the_pieces_of_a_tune_book(folk_books: Path) -> None:
    path = folk_books / "oneills1850" / "0001-0050.abc"
    found = describe(path, Path("remi"))
    assert (found["format"], found["pieces"]) == ("ABC", len(re.findall(r"^X:", path.read_text(), re.MULTILINE)))
    assert found["notes"] == sum(piece["notes"] for piece in found["each"])
    words = in_words(found)
    assert "38 more" in words and len(words.splitlines()) <= 40


@pytest.mark.parametrize("where", ["", "best", "shards", "remi"])
def test_a_piece_in_tokens(where: str, run: Path, folk: Path) -> None:
    found = describe(folk / "001.mid", Path("remi") if where == "remi" else run / where)
    tokenizer = new_tokenizer("remi")
    (score,), _ = tokenizer.read(folk / "001.mid")
    ids = tokenizer.encode(score)
    assert found["tokens"]["ids"] == len(ids)
    assert found["tokens"]["ids_per_note"] == pytest.approx(len(ids) / score.note_num(), abs=0.001)
    spelled = {id: token for token, id in tokenizer.wrapped.vocab.items()}
    assert found["tokens"]["first"] == [spelled[id] for id in ids[:64]]
    assert found["tokens"]["losses"] == tokenizer.losses(score, ids)


def test_a_tokenizer_that_knows_controls_says_their_levels(folk: Path) -> None:
    plain, levelled = describe(folk / "001.mid"), describe(folk / "001.mid", Path("boxed"))
    bins = load_tokenizer(BOXED).bins
    segments = measured(midi.read_scores(folk / "001.mid")[0][0])
    assert len(segments) > 1
    for segment, before, after in zip(
        segments, plain["each"][0]["segments"], levelled["each"][0]["segments"], strict=True
    ):
        (instrument,) = after["instruments"]
        (unsaid,) = before["instruments"]
        said = instrument["levels"]
        assert instrument == unsaid | {"levels": said}
        assert said == {control: LEVELS[bins.levels(segment)[0, control]] for control in PER_INSTRUMENT}
    assert f"{instrument['register']:g} {said['register']}" in in_words(levelled)


def test_a_tokenizer_without_and_with_merges(tunes: list[symusic.Score], tmp_path: Path) -> None:
    for size in (0, 20):
        tokenizer = new_tokenizer("tsd")
        if size:
            tokenizer.learn(tunes[:20], tokenizer.vocab_size + size)
        directory = tmp_path / str(size)
        directory.mkdir()
        tokenizer.save(directory)
        found = describe(directory)
        assert (found["kind"], found["scheme"], found["vocab_size"]) == ("tokenizer", "tsd", tokenizer.vocab_size)
        assert (found["merges"], len(found["first_merges"])) == (size, min(size, 8))
        assert found["special_ids"] == {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
        assert found["tokens_by_type"]["Pitch"] == found["tokens_by_type"]["PitchDrum"] == 128
        assert sum(found["tokens_by_type"].values()) == found["vocab_size"] - size
        assert all("+" in merge["tokens"] and merge["tokens"] in in_words(found) for merge in found["first_merges"])


def test_shards(run: Path) -> None:
    found = describe(run / "shards")
    assert found["kind"] == "shards"
    for split in ("train", "val", "test"):
        assert found["splits"][split]["ids"] * 2 == (run / "shards" / f"{split}.ids").stat().st_size
    assert (found["transpositions"], found["split_within_documents"]) == (2, False)
    assert found["tokenizer"] == {"scheme": "remi", "vocab_size": found["vocab_size"]}
    assert found["ledger"]["files"] == 60


def test_shards_that_are_cut_short_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "shards", tmp_path / "shards")
    (tmp_path / "shards" / "val.ids").write_bytes(b"1")
    assert "val.ids has 1 bytes, expected" in refused(f"inspect {tmp_path / 'shards'}", capsys)
    write_json(tmp_path / "shards" / "manifest.json", {"format": FORMAT, "splits": {}, "source": {}})
    assert "is no manifest of shards" in refused(f"inspect {tmp_path / 'shards'}", capsys)


def test_a_ledger(run: Path) -> None:
    found, rows = describe(run / "shards" / "ledger.jsonl"), rows_of(run / "shards" / "ledger.jsonl")
    assert found["files"] == len(rows)
    assert found["status"] == Counter(row["status"] for row in rows)
    assert found["amounts"]["notes"] == sum(row["notes"] for row in rows)
    assert found["losses"]["metres_replaced"] == sum(row["metres_replaced"] for row in rows)
    assert found["files_with_losses"] == sum(any(row[key] for key in found["losses"]) for row in rows)
    assert found["unreadable_lines"] == 0


def test_reasons_are_grouped_and_the_worst_files_come_first(tmp_path: Path) -> None:
    rows = [
        {"path": "a/x.mid", "status": "refused", "reason": "x.mid is MIDI that cannot be read: Get pitch=200; sorry"},
        {"path": "a/y.mid", "status": "refused", "reason": "y.mid is MIDI that cannot be read: Get pitch=201; sorry"},
        {
            "path": "a/p.mid",
            "status": "refused",
            "reason": "p.mid is not MIDI: it begins with b'<htm', expected b'MThd'",
        },
        {"path": "a/q.mid", "status": "refused", "reason": "q.mid is not MIDI: it begins with b'', expected b'MThd'"},
        {"path": "b.mid", "status": "duplicate", "reason": "1/4 throughout read as 4/4; the same music as c; d.mid"},
        {"path": "c.mid", "status": "kept", "reason": "", "notes": 7, "notes_lost": 2, "metres_replaced": 0},
        {"path": "d.mid", "status": "kept", "reason": "1/4 throughout read as 4/4", "notes": 5, "metres_replaced": 3},
    ]
    path = tmp_path / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"path": "e.mid", "sta')
    found = describe(path)
    assert {(one["status"], one["reason"]): one["files"] for one in found["reasons"]} == {
        ("refused", "… is MIDI that cannot be read: Get pitch=N; sorry"): 2,
        ("refused", "… is not MIDI: it begins with …, expected b'MThd'"): 2,
        ("duplicate", "1/4 throughout read as 4/4"): 1,
        ("duplicate", "the same music as another file"): 1,
        ("kept", "1/4 throughout read as 4/4"): 1,
    }
    assert found["worst"] == [{"path": "d.mid", "metres_replaced": 3}, {"path": "c.mid", "notes_lost": 2}]
    assert (found["amounts"], found["losses"]) == ({"notes": 12}, {"notes_lost": 2, "metres_replaced": 3})
    assert found["unreadable_lines"] == 1
    assert "unreadable lines" in in_words(found)


def test_an_empty_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(b"")
    found = describe(tmp_path / "ledger.jsonl")
    assert (found["kind"], found["files"], found["reasons"], found["worst"]) == ("ledger", 0, [], [])
    assert in_words(found)


def test_a_run(run: Path) -> None:
    found, rows = describe(run), rows_of(run / "metrics.jsonl")
    assert (found["kind"], found["steps_done"], found["steps"], found["preset"]) == ("run", 8, 8, "music-tiny")
    assert found["tokens_seen"] == 8 * 4 * 128
    losses = [row["loss"] for row in rows]
    validations = {row["val_loss"]: row["step"] for row in rows if "val_loss" in row}
    assert found["losses"]["training"]["last"] == losses[-1]
    assert found["losses"]["training"]["lowest"] == min(losses)
    assert found["losses"]["validation"]["lowest_step"] == validations[min(validations)]
    assert found["tokens_per_second"] == median(row["tokens_per_second"] for row in rows)
    assert found["hours"] == pytest.approx(sum(row["seconds"] for row in rows) / 3600, abs=1e-4)
    assert found["baselines"] == json.loads((run / "baselines.json").read_text())
    weights = sum(weight.numel() for weight in load_model(run).parameters())
    steps = {"best": 8, "checkpoints/000008": 8, "checkpoints/000004": 4}
    assert {name: part["step"] for name, part in found["checkpoints"].items()} == steps
    assert {part["weights"] for part in found["checkpoints"].values()} == {weights}
    assert found["model"] == {"n_layer": 4, "n_head": 4, "n_embd": 256, "n_positions": 128, "vocab_size": 1396}


def test_a_run_that_has_just_begun_or_was_killed(run: Path, lonely_run: Path) -> None:
    found = describe(lonely_run)
    assert (found["steps_done"], found["losses"], found["checkpoints"], found["tokens_per_second"]) == (0, {}, {}, None)
    assert in_words(found)
    with pytest.raises(InputError, match="has done no step yet"):
        loss_curve(lonely_run)
    whole = (run / "metrics.jsonl").read_text()
    (lonely_run / "metrics.jsonl").write_text(whole[: whole.rindex('"grad_norm"')])
    found = describe(lonely_run)
    assert (found["steps_done"], found["unreadable_lines"], found["tokens_seen"]) == (7, 1, 7 * 4 * 128)
    (lonely_run / "metrics.jsonl").write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 3, "val_loss": Infinity}\n'
    )
    found = describe(lonely_run)
    assert found["losses"]["training"] == {"last": 3, "last_step": 2, "lowest": 3, "lowest_step": 2}
    assert found["losses"]["validation"]["last"] is None
    assert picture(loss_curve(lonely_run), ".png")[:4] == b"\x89PNG"


def test_describing_changes_nothing(run: Path, tmp_path: Path) -> None:
    """A run that is being trained replaces its checkpoints by two renames: nobody else may finish them."""
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "best").rename(tmp_path / "run" / "best.old")
    before = sorted(tmp_path.rglob("*"))
    assert list(describe(tmp_path / "run")["checkpoints"]) == ["checkpoints/000008", "checkpoints/000004"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_is_described_without_its_weights(run: Path, tmp_path: Path) -> None:
    model = load_model(run)
    found = describe(run / "checkpoints" / "000008")
    assert (found["kind"], found["model_type"], found["dtype"], found["step"]) == ("checkpoint", "gpt2", "float32", 8)
    assert found["weights"] == sum(weight.numel() for weight in model.parameters()) == model.config.n_parameters
    assert found["bytes"] == sum(path.stat().st_size for path in (run / "checkpoints" / "000008").iterdir())
    assert found["tokenizer"] == {"scheme": "remi", "vocab_size": 1396}
    whole = (run / "best" / "model.safetensors").read_bytes()
    head = 8 + struct.unpack("<Q", whole[:8])[0]
    code = (
        "import sys; from pathlib import Path; from musicgpt.describe import describe\n"
        "describe(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    for path in (run, run / "best", run / "shards"):
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    shutil.copytree(run / "best", tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[: head + 1000])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        describe(tmp_path / "cut")


def test_a_checkpoint_by_transformers(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2)).bfloat16()
    model.save_pretrained(tmp_path / "hf")
    found = describe(tmp_path / "hf")
    assert (found["weights"], found["dtype"]) == (model.num_parameters(), "bfloat16")
    assert found["tokenizer"] is None
    assert in_words(found)


def test_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Für Elise\r\n\nlast – no end".encode())
    found = describe(tmp_path / "a.txt")
    assert (found["kind"], found["bytes"], found["characters"], found["lines"]) == ("text", 28, 25, 3)


@pytest.mark.parametrize(
    "name", ["", "best", "checkpoints/000008", "shards", "shards/ledger.jsonl", "run.json", "TUNE"]
)
def test_json_is_one_object_that_comes_back(
    name: str, run: Path, folk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folk / "003.mid" if name == "TUNE" else run / name
    text = said(f"inspect {path} --json", capsys)
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert text.count("\n") == 1
    assert found == describe(path)
    assert next(iter(found)) == "kind"
    words = said(f"inspect {path}", capsys)
    assert words.splitlines()[0].split() == ["kind", found["kind"]]
    assert len(words.splitlines()) <= 40


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_the_same_each_time(
    suffix: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"loss{suffix}"
    text = said(f"inspect {run} --json -o {out}", capsys)
    assert json.loads(text)["kind"] == "run"
    again = [sys.executable, "-m", "musicgpt", "inspect", str(run), "-o", str(tmp_path / f"again{suffix}")]
    subprocess.run(again, check=True, capture_output=True)
    data = out.read_bytes()
    assert (tmp_path / f"again{suffix}").read_bytes() == data
    assert data[:4] == b"\x89PNG" if suffix == ".png" else b"<dc:date>" not in data
    assert "is there already" in refused(f"inspect {run} -o {out}", capsys)
    main(f"inspect {run} --force -o {out}".split())


def test_a_picture_holds_what_metrics_and_baselines_say(run: Path) -> None:
    axes = loss_curve(run).axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    rows = rows_of(run / "metrics.jsonl")
    assert list(lines["training, each step"].get_ydata()) == [row["loss"] for row in rows]
    assert list(lines["validation"].get_xdata()) == [row["step"] for row in rows if "val_loss" in row]
    texts = [text.get_text() for text in axes.texts]
    floors = json.loads((run / "baselines.json").read_text())
    assert texts == [f"{name} {value:.3f}" for name, value in floors.items()]
    assert "matplotlib.pyplot" not in sys.modules


Made = Callable[[Path], object]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "is a folder that holds nothing; expected a run, shards"),
        (
            lambda path: (path.mkdir(), (path / "a.mid").touch(), (path / "b.mid").touch()),
            "that holds 2 .mid; expected",
        ),
        (lambda path: path.write_bytes(b"\x89PNG\xff\xfe"), "is neither music by its name nor UTF-8 text"),
        (lambda path: path.write_bytes(bytes(100)), "holds zero bytes, which is no text"),
        (lambda path: path.write_bytes(b"MThd\0\0"), "begins like a MIDI file; expected it to be called .mid"),
        (lambda path: (path.mkdir(), (path / "run.json").write_text("{")), "is not JSON"),
        (
            lambda path: (path.mkdir(), (path / "config.json").write_text("{}")),
            "and no model.safetensors; expected both",
        ),
        (lambda path: (path.mkdir(), (path / "tokenizer_config.json").write_text('{"kind": "x"}')), "says kind 'x'"),
        (lambda path: (path.mkdir(), (path / "manifest.json").write_text("{}")), "expected"),
    ],
)
def test_anything_else_is_refused_in_one_line(
    make: Made, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "thing")
    assert message in refused(f"inspect {tmp_path / 'thing'}", capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("RUN --tokenizer RUN", "--tokenizer goes with a file of music"),
        ("TUNE --tokenizer nothing", "no tokenizer is called 'nothing'"),
        ("TUNE --tokenizer FOLDER", "holds no tokenizer"),
        ("TUNE -o FOLDER/a.png", "-o draws the losses of a run"),
        ("RUN -o FOLDER/a.pdf", "expected a name that ends in .png or .svg"),
        ("RUN -o FOLDER/no/a.png", "does not exist; make it, or choose another -o"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: str, message: str, run: Path, folk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, path in (("RUN", run), ("TUNE", folk / "000.mid"), ("FOLDER", tmp_path)):
        flags = flags.replace(name, str(path))
    assert message in refused(f"inspect {flags}", capsys)
    assert not list(tmp_path.iterdir())


def test_difficult_files_are_described_or_refused(shared: Path) -> None:
    described = 0
    for path in sorted((shared / "hard").rglob("*")):
        if path.is_file() and path.stat().st_size < 100_000:
            try:
                found = describe(path)
            except MusicGPTError as error:
                said = str(error)
                assert said and "\n" not in said, path
            else:
                described += 1
                json.dumps(found, allow_nan=False)
                assert "\x1b" not in in_words(found)
    assert described > 100


def test_a_tokenizer_for_something_else_is_a_usage_error(run: Path) -> None:
    with pytest.raises(UsageError):
        describe(run, run)


def test_help_is_instant_and_imports_no_torch() -> None:
    code = (
        "import sys; from musicgpt.cli import main\n"
        "try: main(['inspect', '--help'])\n"
        "finally: assert not {'torch', 'matplotlib', 'symusic'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--tokenizer DIRECTORY" in done.stdout and "None" not in done.stdout
