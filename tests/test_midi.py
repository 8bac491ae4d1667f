"""Files to scores: real ones, difficult ones, and what is refused in one line."""

from __future__ import annotations

import random
import re
from contextlib import suppress
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
import symusic
from hypothesis import given
from hypothesis import strategies as st

from musicgpt import midi, provenance
from musicgpt.describe import describe
from musicgpt.errors import InputError
from musicgpt.mending import mended
from musicgpt.provenance import provenance_text, read_provenance, read_text

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


def layout(path: Path) -> list[list[mido.Message]]:
    """What every track holds, in order and with its channels, but for where it ends and for texts."""
    tracks = mido.MidiFile(path).tracks
    return [[m for m in track if m.type not in ("end_of_track", "text")] for track in tracks]


def ends(path: Path) -> list[int]:
    return [sum(m.time for m in track) for track in mido.MidiFile(path).tracks]


def test_an_end_and_a_text_change_nothing_else(corpora: list[Path], tmp_path: Path) -> None:
    plain, full = tmp_path / "plain.mid", tmp_path / "full.mid"
    text = '{"ids": [' + "12345, " * 15_000 + "0]}"
    for path in corpora:
        (score,), _ = midi.read_scores(path)
        end = score.end() // 2
        midi.write_midi(score, plain)
        midi.write_midi(score, full, end=end, text=text)
        assert symusic.Score(full) == symusic.Score(plain), path.name
        assert layout(full) == layout(plain), path.name
        assert read_text(full) == [text]
        last = [sum(m.time for m in track) for track in layout(plain)]
        own = zip(last, ends(plain), strict=True)
        assert ends(full) == [max(end, tick) if tick <= end else stood for tick, stood in own], path.name


def test_every_track_ends_on_the_tick_that_is_asked_for(corpora: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "ends.mid"
    for file in corpora[::5]:
        (score,), _ = midi.read_scores(file)
        midi.write_midi(score, path)
        last = max(sum(m.time for m in track) for track in layout(path))
        for end in (last, last + 1, last + 12_345):  # the first is nearer than the one symusic chooses
            midi.write_midi(score, path, end=end)
            assert set(ends(path)) == {end}
        assert read_text(path) == []


def test_the_same_arguments_give_the_same_bytes(tunes: list[symusic.Score], tmp_path: Path) -> None:
    for arguments in ({}, {"end": 100_000}, {"text": "a"}, {"end": 7, "text": "a"}):
        for name in ("a.mid", "b.mid"):
            midi.write_midi(tunes[2], tmp_path / name, **arguments)
        assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()
    midi.write_midi(tunes[2], tmp_path / "a.mid")
    assert (tmp_path / "a.mid").read_bytes() == tunes[2].dumps_midi()


def test_a_text_is_read_by_others_as_it_was_written(tunes: list[symusic.Score], tmp_path: Path) -> None:
    path = tmp_path / "text.mid"
    values = {"settings": {"prompt": "Frühling 日本 \ud800.mid", "temperature": 1.0}, "prompt_ids": [*range(20_000)]}
    midi.write_midi(tunes[0], path, text=provenance_text(values))
    assert read_provenance(path) == values
    assert read_text(path) == [provenance_text(values)]
    assert provenance_text(values).encode("ascii") in path.read_bytes()
    (score,), _ = midi.read_scores(path)
    assert midi.fingerprint(score) == midi.fingerprint(tunes[0])
    notes = [note for part in pretty_midi.PrettyMIDI(str(path)).instruments for note in part.notes]
    assert len(notes) == score.note_num()
    (tmp_path / "wrapped.rmi").write_bytes(b"RIFF\0\0\0\0RMIDdata\0\0\0\0" + path.read_bytes())
    assert read_provenance(tmp_path / "wrapped.rmi") == values
    midi.write_midi(tunes[0], path, text="x" * provenance.MAX_TEXT)
    assert read_text(path) == ["x" * provenance.MAX_TEXT]
    with pytest.raises(AssertionError):
        provenance_text({"prompt_ids": [1396] * 200_000})


def test_a_score_without_tracks_or_with_a_key_that_has_no_name(tmp_path: Path) -> None:
    path = tmp_path / "odd.mid"
    score = symusic.Score(480)
    midi.write_midi(score, path, end=1920, text="nothing")
    assert (ends(path), read_text(path)) == ([1920], ["nothing"])
    score.key_signatures.append(symusic.KeySignature(0, 9, 1))
    score.key_signatures.append(symusic.KeySignature(480, -3, 0))
    midi.write_midi(score, path, text="keys")
    assert read_text(path) == ["keys"]
    assert [(key.time, key.key) for key in symusic.Score(path).key_signatures] == [(480, -3)]
    assert len(score.key_signatures) == 2


def test_difficult_files_are_written_with_an_end_and_a_text(shared: Path, tmp_path: Path) -> None:
    written = 0
    for path in sorted((shared / "hard").rglob("*")):
        if path.is_file() and path.suffix.lower() in midi.MIDI_SUFFIXES and path.stat().st_size < 50_000:
            with suppress(InputError):
                for score in midi.read_scores(path)[0]:
                    midi.write_midi(score, tmp_path / "out.mid", end=score.end() + 1, text=path.name)
                    assert read_text(tmp_path / "out.mid") == [path.name]
                    assert symusic.Score(tmp_path / "out.mid").note_num() > 0
                    written += 1
    assert written > 200


def test_looking_for_text_never_fails(shared: Path, tmp_path: Path) -> None:
    found = 0
    for path in sorted((shared / "hard").rglob("*")):
        found += bool(read_text(path))
        assert read_provenance(path) is None
    assert found > 10
    head = b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk\0\x10\0\0"
    for data in (
        b"",
        b"MThd",
        head,
        head + b"\xff" * 1_000_000,
        head + bytes(provenance.MAX_TEXT_BYTES),
        b"RIFF" + bytes(99),
    ):
        (tmp_path / "broken.mid").write_bytes(data + b"musicgpt: {}")
        assert read_text(tmp_path / "broken.mid") == []
    for path in (tmp_path, tmp_path / "missing.mid", Path("/dev/zero")):
        assert read_text(path) == []
        assert read_provenance(path) is None


@pytest.mark.parametrize(
    "text",
    [
        "musicgpt: ",
        "musicgpt: {",
        "musicgpt: [1]",
        'musicgpt:{"seed": 1}',
        'by musicgpt: {"seed": 1}',
        'musicgpt: {"seed": ' + "9" * 5000 + "}",
        'musicgpt: {"a": ' + "[" * 300 + "]" * 300 + "}",
        'musicgpt: {"a": ' + "[" * 100_000,
    ],
)
def test_what_says_nothing_of_its_making_has_no_provenance(
    text: str, tunes: list[symusic.Score], tmp_path: Path
) -> None:
    midi.write_midi(tunes[0], tmp_path / "tune.mid", text=text)
    assert read_text(tmp_path / "tune.mid") == [text]
    assert read_provenance(tmp_path / "tune.mid") is None
    assert describe(tmp_path / "tune.mid")["provenance"] is None


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


def track_of(events: bytes, ticks_per_quarter: int = 480) -> bytes:
    """One track of events in bytes -> a MIDI file."""
    head = (1).to_bytes(2, "big") + ticks_per_quarter.to_bytes(2, "big")
    return b"MThd\0\0\0\6\0\0" + head + b"MTrk" + len(events).to_bytes(4, "big") + events


END = b"\0\xff\x2f\0"


@pytest.mark.parametrize(
    ("events", "expected", "remark"),
    [
        (b"\0\x90\x3c\x40\x60\x90\x3e\x40\x60\x80\x3e\0" + END, [(0, 192, 60), (96, 96, 62)], "1 notes without end"),
        (b"\0\x90\x3c\x40\x60\x3c\x40\x60\xff\x2f\0", [(0, 96, 60), (96, 96, 60)], "2 notes without end"),
        (b"\0\x90\x3c\x40\x60\x90\x3c\x40" + END, [(0, 96, 60), (96, 480, 60)], "2 notes without end"),
        (b"\0\x90\x3c\x40\x60\x3c\0\0\xf0\1\xf7\0\x3e\x40\x60\x3e\0" + END, [(0, 96, 60), (96, 96, 62)], ""),
        (b"\0\x90\x3c\x40\x60\x3c\0" + END + b"\0\x90\x3e\x40\x60\x3e\0", [(0, 96, 60)], "1 notes behind the end"),
        (b"\0\x90\x3c\x40\x60\x3c\0\0\x3e", [(0, 96, 60)], "track 1 is cut off"),
        (b"\0\x90\x3c\x40\x60\x3c\0", [(0, 96, 60)], ""),
        (b"\0\x90\x3c\x40\0\x3c\0\x60\x3e\x40\x60\x3e\0" + END, [(0, 0, 60), (96, 96, 62)], ""),
        (b"\0\x90\x3c\0\0\x3c\x40\x60\x3c\0" + END, [(0, 96, 60)], ""),
    ],
)
def test_no_note_is_lost_to_how_a_file_is_written(
    events: bytes, expected: list[tuple[int, int, int]], remark: str, tmp_path: Path
) -> None:
    (tmp_path / "a.mid").write_bytes(track_of(events))
    (score,), remarks = midi.read_scores(tmp_path / "a.mid")
    assert sorted((n.time, n.duration, n.pitch) for track in score.tracks for n in track.notes) == expected
    assert len(remarks) == bool(remark) and all(remark in found for found in remarks)


def test_what_counts_no_quarter_notes_is_refused_in_a_line(shared: Path) -> None:
    for name, reason in (
        ("smpte_25fps_40tpf.mid", "SMPTE frames (25 a second), which have no beat"),
        ("tpq_0.mid", "0 ticks per quarter note; expected at least 1"),
        ("format3_unknown.mid", "format 3; expected 0, 1 or 2"),
        ("giant_delta_0fffffff.mid", "559,243 quarter notes long; expected at most 50,000"),
        ("vlq_5_bytes.mid", "belongs to no event"),
    ):
        with pytest.raises(InputError, match=re.escape(reason)):
            midi.read_scores(shared / "hard" / "synthetic" / name)


def test_each_pattern_of_a_file_of_format_2_is_a_piece(shared: Path) -> None:
    path = next((shared / "hard").rglob("crixmus.mid"))
    pieces, remarks = midi.read_scores(path)
    assert len(pieces) == 3
    assert sum(piece.note_num() for piece in pieces) == 563
    assert remarks == ["2 notes without end closed", "3 patterns of a file of format 2 read as pieces"]


def test_a_sound_file_is_not_touched(corpora: list[Path]) -> None:
    for path in corpora:
        data = path.read_bytes()
        files, notes, remarks = mended(data, path.name)
        assert files == [data] and not remarks
        assert notes == symusic.Score.from_midi(data).note_num()


def test_damaged_files_are_read_with_every_note_or_refused(corpora: list[Path]) -> None:
    """Real files, each damaged in 20 ways: what is read has as many notes as the walk over its events found."""
    choice = random.Random(5)
    read = 0
    refusals: list[str] = []
    for path in corpora:
        whole = path.read_bytes()[:20_000]
        for _ in range(20):
            data = bytearray(whole)
            for _ in range(choice.choice((1, 1, 3, 30))):
                data[choice.randrange(14, len(data))] = choice.randrange(256)
            try:
                files, notes, _ = mended(bytes(data[: choice.randrange(20, len(data) + 1)]), path.name)
                scores = [midi.read_midi(file, path.name) for file in files]
            except InputError as error:
                refusals.append(str(error))
            else:
                assert sum(score.note_num() for score in scores) == notes
                read += 1
    assert read > 100 and len(refusals) > 100
    assert not any("\n" in refusal for refusal in refusals)


def bars_of(*metres: tuple[int, int, int], quarters: int = 24) -> symusic.Score:
    """A note on each quarter note, under metres of (tick, beats, unit)."""
    score = symusic.Score(480)
    for tick, beats, unit in metres:
        score.time_signatures.append(symusic.TimeSignature(tick, beats, unit))
        score.tempos.append(symusic.Tempo(tick, 100 + tick / 480))
    score.tracks.append(symusic.Track())
    for i in range(quarters):
        score.tracks[0].notes.append(symusic.Note(480 * i, 480, 60, 80))
    return score


@pytest.mark.parametrize(
    ("score", "bars", "notes", "last", "remarks"),
    [
        (bars_of(), 2, 8, 8.0, ["the first 2 of 6 bars are used"]),
        (bars_of((0, 3, 4)), 2, 6, 6.0, ["the first 2 of 8 bars are used"]),
        (
            bars_of((0, 7, 8)),
            1,
            4,
            3.5,
            ["the first 1 of 7 bars are used", "1 notes that ring over the last bar line shortened to it"],
        ),
        (bars_of((0, 4, 4), (1920, 3, 4), (3360, 6, 8)), 3, 10, 10.0, ["the first 3 of 8 bars are used"]),
        (bars_of((0, 4, 4), (960, 3, 4)), 2, 5, 5.0, ["the first 2 of 9 bars are used"]),
        (bars_of((480 * 4, 3, 4)), 1, 4, 4.0, ["the first 1 of 8 bars are used"]),
        (bars_of(), 6, 24, 24.0, []),
        (bars_of(), 9, 24, 24.0, ["the prompt has 6 bars; all are used"]),
    ],
)
def test_a_cut_is_at_a_bar_line(score: symusic.Score, bars: int, notes: int, last: float, remarks: list[str]) -> None:
    whole = midi.fingerprint(score)
    piece, said = midi.cut(score, bars)
    assert (piece.note_num(), max(n.end for n in piece.tracks[0].notes) / 480) == (notes, last)
    assert said == remarks
    assert all(event.time < last * 480 for event in [*piece.time_signatures, *piece.tempos])
    assert midi.fingerprint(score) == whole  # a copy was cut


METRES = st.tuples(st.integers(0, 9000), st.integers(1, 13), st.sampled_from([2, 4, 8, 16]))


@given(metres=st.lists(METRES, max_size=5, unique_by=lambda metre: metre[0]), bar=st.integers(1, 60))
def test_bars_follow_each_other_and_are_as_long_as_their_metre(metres: list[tuple[int, int, int]], bar: int) -> None:
    """Or shorter, where another metre begins."""
    lines = midi.BarLines(bars_of(*metres))
    begin, following = lines.begin(bar), lines.begin(bar + 1)
    beats, unit = lines.metre(bar)
    assert {lines.bar_at(begin), lines.bar_at(following - 1)} == {bar}
    assert lines.bar_at(following) == bar + 1
    assert [(beats, unit)] == [m[1:] for m in [(0, 4, 4), *sorted(metres)] if m[0] <= begin][-1:]
    assert following - begin == 4 * 480 * beats // unit or following in {time for time, _, _ in metres}
    beats_there = lines.beats_until(following) - lines.beats_until(begin)
    assert beats_there == pytest.approx((following - begin) * unit / (4 * 480))


def test_a_cut_without_notes_is_refused() -> None:
    score = bars_of()
    score.tracks[0].shift_time(480 * 9, inplace=True)
    with pytest.raises(InputError, match="the first 2 bars of the prompt hold no notes: ask for at least 3"):
        midi.cut(score, 2)
    with pytest.raises(InputError, match="expected at least 1"):
        midi.cut(score, 0)
    assert midi.cut(score, 3)[0].note_num() == 3


def test_cuts_of_real_pieces_grow_to_the_whole(corpora: list[Path]) -> None:
    for path in corpora[::4]:
        (score,), _ = midi.read_scores(path)
        counts = []
        for bars in (40, 80, 10**6):
            piece, remarks = midi.cut(score, bars)
            assert remarks or piece is score
            counts.append(piece.note_num())
        assert counts == sorted(counts) and counts[-1] == score.note_num()
