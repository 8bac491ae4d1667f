"""Files to scores: real ones, difficult ones, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
import symusic

from musicgpt import midi
from musicgpt.errors import InputError

TUNE = "X:1\nT:Scale\nM:6/8\nL:1/8\nQ:3/8=80\nK:D\nDEF GAB|c3 d3|]\n"


def test_a_midi_file_comes_back_the_same(corpora: list[Path], tmp_path: Path) -> None:
    for path in corpora:
        (score,), _ = midi.read_scores(path)
        midi.write_midi(score, tmp_path / "again.mid")
        (again,), _ = midi.read_scores(tmp_path / "again.mid")
        assert midi.fingerprint(again) == midi.fingerprint(score), path.name


def test_what_is_written_is_read_by_others(tunes: list[symusic.Score], tmp_path: Path) -> None:
    midi.write_midi(tunes[0], tmp_path / "tune.mid")
    ours = sorted((n.pitch, n.velocity) for track in tunes[0].tracks for n in track.notes)
    theirs = pretty_midi.PrettyMIDI(str(tmp_path / "tune.mid"))
    assert sorted((n.pitch, n.velocity) for i in theirs.instruments for n in i.notes) == ours
    onsets = [
        m for track in mido.MidiFile(tmp_path / "tune.mid").tracks for m in track if m.type == "note_on" and m.velocity
    ]
    assert len(onsets) == len(ours)


def test_abc_is_read_tune_by_tune(folk_books: Path, tmp_path: Path) -> None:
    (tmp_path / "scale.abc").write_text(TUNE)
    (score,), remarks = midi.read_scores(tmp_path / "scale.abc")
    assert [n.pitch for n in score.tracks[0].notes] == [62, 64, 66, 67, 69, 71, 73, 74]
    assert (score.time_signatures[0].numerator, score.time_signatures[0].denominator) == (6, 8)
    assert not remarks
    book, _ = midi.read_scores(folk_books / "oneills1850" / "0001-0050.abc")
    assert len(book) == 50
    again = TUNE.replace("X:1", "X:7") + "\n" + TUNE.replace("X:1", "X:7").replace("DEF", "FED")  # one number twice
    assert len({midi.fingerprint(score) for score in midi.read_abc(again, "book")}) == 2


def test_abc2midi_leaves_nothing_beside_the_file(folk_books: Path) -> None:
    before = sorted(folk_books.rglob("*.mid"))
    midi.read_scores(folk_books / "oneills1850" / "0051-0100.abc")
    assert sorted(folk_books.rglob("*.mid")) == before


def test_musicxml_is_read_through_verovio(folk_books: Path) -> None:
    (score,), _ = midi.read_scores(folk_books / "bach" / "bwv269.mxl")
    assert len([track for track in score.tracks if len(track.notes)]) == 4


def test_one_four_throughout_is_read_as_four_four(shared: Path) -> None:
    changed = 0
    for i in range(1, 60):
        path = shared / "corpora" / "pop909" / f"{i:03d}.mid"
        if path.is_file():
            raw = symusic.Score(path)
            alone = {(s.numerator, s.denominator) for s in raw.time_signatures} == {(1, 4)}
            (score,), remarks = midi.read_scores(path)
            assert ("1/4 throughout read as 4/4" in remarks) == alone
            assert (1, 4) not in {(s.numerator, s.denominator) for s in score.time_signatures} or not alone
            changed += alone
    assert changed > 10


def test_difficult_files_are_read_or_refused_in_one_line(shared: Path) -> None:
    read, refusals = 0, {}
    for path in sorted((shared / "hard").rglob("*")):
        if path.is_file():
            try:
                scores, _ = midi.read_scores(path)
            except InputError as error:
                refusals[path.name] = str(error)
            else:
                read += 1
                assert all(score.note_num() > 0 and score.ticks_per_quarter > 0 for score in scores)
                assert all(s.numerator > 0 and s.denominator > 0 for score in scores for s in score.time_signatures)
                assert all(np.isfinite(midi.seconds(score)) for score in scores)
    assert read > 250
    assert len(refusals) > 80
    assert all(name in text and "\n" not in text for name, text in refusals.items())


def test_a_riff_wrapper_is_taken_off(shared: Path) -> None:
    path = shared / "hard" / "synthetic" / "rmid_riff_wrapped.mid"
    assert midi.read_scores(path)[0][0].note_num() > 0


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.mid", b"", r"is empty \(0 bytes\)"),
        ("page.mid", b"<html>", "begins with b'<htm', expected b'MThd'"),
        ("cut.mid", b"MThd\0\0\0\6\0\1", "cannot be read"),
        ("notes.txt", b"hello", "is no music file by its name; expected one of .mid"),
        ("prose.abc", b"hello", "holds no ABC tune: expected a header that begins with X:"),
        ("score.musicxml", b"<score", "is not MusicXML that verovio can read"),
    ],
)
def test_what_is_no_music_is_refused(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        midi.read_scores(tmp_path / name)
    with pytest.raises(InputError, match="cannot read"):
        midi.read_scores(tmp_path / "missing" / name)


def test_a_transposition_moves_everything_but_drums(shared: Path) -> None:
    path = sorted((shared / "corpora" / "freedoom").glob("*.mid"))[3]
    (score,), _ = midi.read_scores(path)
    up = midi.transposed(score, 3)
    assert up is not None
    assert any(track.is_drum for track in score.tracks)
    for before, after in zip(score.tracks, up.tracks, strict=True):
        moved = after.notes.numpy()["pitch"].astype(int) - before.notes.numpy()["pitch"]
        assert (moved == (0 if before.is_drum else 3)).all()


def test_a_transposition_that_leaves_the_range_is_none(tunes: list[symusic.Score]) -> None:
    high = max(n.pitch for track in tunes[0].tracks for n in track.notes)
    assert midi.transposed(tunes[0], 127 - high) is not None
    assert midi.transposed(tunes[0], 128 - high) is None


def test_a_fingerprint_sees_the_music_and_not_the_file(tunes: list[symusic.Score]) -> None:
    score = tunes[1]
    print_ = midi.fingerprint(score)
    renamed = score.copy()
    renamed.tracks[0].name = "something else"
    assert midi.fingerprint(renamed) == print_
    assert midi.fingerprint(score.resample(960, min_dur=1)) == print_
    assert midi.fingerprint(midi.transposed(score, 1)) != print_
    louder = score.copy()
    louder.tracks[0].notes[0].velocity = 13
    assert midi.fingerprint(louder) != print_
    assert len({midi.fingerprint(tune) for tune in tunes}) > 170
