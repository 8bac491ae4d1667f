"""Filling holes: what is outside stays, what is inside is what was asked for, whatever the model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import mido
import pytest
import torch
from symusic.core import NoteTick, ScoreTick, TimeSignatureTick, TrackTick
from test_infill import a_song, five_levels

import musicgpt
from musicgpt import midi
from musicgpt.cli import main
from musicgpt.cpu_engine import CpuEngine
from musicgpt.errors import InputError, UsageError
from musicgpt.marks import CONTROL_MARKS, FILL, TRACKS
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.model import GPT, GPTConfig

KINDS = [("remi", False, True), ("remi", True, True), ("tsd", False, True), ("tsd", True, True)]
KINDS += [("remi", True, False), ("tsd", False, False), ("midilike", False, True), ("structured", False, True)]
"""Scheme, whether it has learned merges, and whether it has the marks of exercises."""


@lru_cache
def a_model(
    scheme: str, merged: bool, marked: bool, n_positions: int = 512, controls: bool = False
) -> musicgpt.LanguageModel:
    """A model that has learned nothing."""
    tokenizer = MidiTokenizer.new(scheme, [*(FILL if marked else []), *(CONTROL_MARKS if controls else TRACKS)])
    tokenizer.bins = five_levels() if controls else None
    if merged:
        songs = [a_song(), a_song(3), a_song(7, 8), a_song(ticks=480)]
        tokenizer.learn(songs, tokenizer.vocab_size + 150)
    torch.manual_seed(1)
    shape = GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=n_positions, n_layer=2, n_head=2, n_embd=64)
    model = GPT(shape)
    return musicgpt.LanguageModel(model, tokenizer, CpuEngine(model))


def outside(score: ScoreTick, first: int, last: int, tracks: set[int]) -> list[list[tuple[int, int, int, int]]]:
    """The notes of each track that are not in the hole."""
    lines = midi.BarLines(score)
    begin, end = lines.begin(first), lines.begin(last + 1)
    return [
        sorted(
            (n.time, n.duration, n.pitch, n.velocity)
            for n in track.notes
            if i not in tracks or not begin <= n.time < end
        )
        for i, track in enumerate(score.tracks)
    ]


def check(old: ScoreTick, new: ScoreTick, first: int, last: int, tracks: set[int], programs: set[int]) -> None:
    lines = midi.BarLines(old)
    begin, end = lines.begin(first), lines.begin(last + 1)
    there = outside(new, first, last, tracks)
    assert there[: len(old.tracks)] == outside(old, first, last, tracks)
    for i, track in enumerate(new.tracks):
        inside = [n for n in track.notes if begin <= n.time < end]
        if i >= len(old.tracks):
            assert len(inside) == len(track.notes) > 0
        if i in tracks or i >= len(old.tracks):
            assert not inside or midi.rank_of(track) in programs
            assert all(n.end <= end for n in inside)


@pytest.mark.parametrize(("scheme", "merged", "marked"), KINDS)
@pytest.mark.parametrize("metre", [(4, 4), (3, 4), (7, 8)])
def test_on_a_model_that_knows_nothing_the_hole_is_kept(
    scheme: str, merged: bool, marked: bool, metre: tuple[int, int]
) -> None:
    model = a_model(scheme, merged, marked)
    song = a_song(*metre)
    if scheme == "structured" and metre != (4, 4):
        with pytest.raises(InputError, match="no whole bar"):
            model.infill(song, "5-6")
        return
    cases = [("5", [], {0, 1, 2, 3}, {0, 33, 128}), ("1-2", ["0", "drums"], {0, 3}, {0, 128})]
    if marked:  # the others make many takes to choose from
        cases += [("11-12", ["2"], {2}, {33}), ("7", ["flute"], set(), {73})]
    for seed, (bars, tracks, places, programs) in enumerate(cases):
        first, last = musicgpt.constraints.read_bars(bars)
        takes = model.infill(song, bars, tracks, num_samples=2, seed=seed)
        assert len(takes) == 2
        for take in takes:
            check(song, take.score, first, last, places, programs)
            assert take.notes
        assert takes[0].likelihood >= takes[1].likelihood
        assert takes[0].notes != takes[1].notes


def test_on_real_pieces_too(corpora: list[Path]) -> None:
    model = a_model("remi", False, True)
    tried = 0
    for seed, path in enumerate(corpora[::3]):
        score = midi.read_scores(path)[0][0]
        first = 1 + midi.BarLines(score).bar_at(int(score.end()) // 2)
        for tracks in ([], ["0"]):
            try:
                take = model.infill(path if tracks else score, f"{first}-{first + 1}", tracks, seed=seed)[0]
            except (InputError, UsageError):  # of odd bars, or the last one
                continue
            places = set(range(len(score.tracks))) if not tracks else {i for i, t in enumerate(score.tracks) if t.notes}
            places = places if not tracks else {min(places)}
            check(score, take.score, first, first + 1, places, {midi.rank_of(score.tracks[i]) for i in places})
            assert (take.file is not None) == bool(tracks)
            tried += 1
    assert tried > 12


def test_a_whole_new_track_is_written_a_few_bars_at_a_time() -> None:
    song = a_song(bars=20)
    take = a_model("remi", False, True).infill(song, tracks=["cello"])[0]
    check(song, take.score, 1, 20, set(), {42})
    assert len(take.score.tracks) == 5
    bars = {midi.BarLines(song).bar_at(n.time) for n in take.score.tracks[4].notes}
    assert min(bars) <= 8 < max(bars) > 16


def test_a_metre_that_changes_in_the_hole_is_kept() -> None:
    song = a_song(bars=12)
    song.time_signatures.append(TimeSignatureTick(4 * 96 * 5, 3, 4))  # bar 6
    song.time_signatures.append(TimeSignatureTick(4 * 96 * 5 + 3 * 96 * 2, 4, 4))  # bar 8
    for scheme in ("remi", "tsd"):
        take = a_model(scheme, False, True).infill(song, "5-9")[0]
        check(song, take.score, 5, 9, {0, 1, 2, 3}, {0, 33, 128})
        assert [(s.time, s.numerator) for s in take.score.time_signatures] == [
            (s.time, s.numerator) for s in song.time_signatures
        ]


def test_the_same_seed_is_the_same_and_another_is_not() -> None:
    model = a_model("remi", False, True)
    a, b, c = (model.infill(a_song(), "5-6", seed=seed)[0] for seed in (1, 1, 2))
    assert a.notes == b.notes != c.notes
    assert a.likelihood == b.likelihood


def test_what_is_the_same_as_before_is_sampled_again() -> None:
    model = a_model("remi", False, True)
    song = a_song()
    first = model.infill(song, "5", ["2"], seed=4)[0]
    again = model.infill(first.score, "5", ["2"], seed=4)[0]
    assert again.notes != first.notes
    said: list[str] = []
    certain = model.infill(song, "5", ["2"], temperature=0)[0]
    twice = model.infill(certain.score, "5", ["2"], temperature=0, report=said.append)[0]
    assert twice.notes == certain.notes
    assert any("same as what was there" in line for line in said)


def test_what_is_asked_of_the_music_holds_in_the_hole() -> None:
    model = a_model("tsd", False, True)
    takes = model.infill(
        a_song(), "5-6", ["0:pitch-range=C5-C6", "bass"], scale="D minor", max_polyphony=2, num_samples=2, seed=3
    )
    for take in takes:
        for note in take.notes:
            assert note.pitch % 12 in {2, 4, 5, 7, 9, 10, 0}
            if note.program == 0:
                assert 72 <= note.pitch <= 84
            sounding = [n for n in take.notes if n.onset_beats <= note.onset_beats < n.onset_beats + n.duration_beats]
            assert len(sounding) <= 2


def test_an_instrument_that_got_no_note_is_named() -> None:
    said: list[str] = []
    tracks = ["flute", "oboe", "tuba", "violin", "cello"]  # more than notes
    takes = a_model("remi", False, True).infill(
        a_song(), "5", tracks, max_notes_per_beat=1, num_samples=2, report=said.append
    )
    for take in takes:
        names = {"Flute": 73, "Oboe": 68, "Tuba": 58, "Violin": 40, "Cello": 42}
        silent = {name for name, program in names.items() if program not in {note.program for note in take.notes}}
        begin, end = f"take {take.provenance['sample']}: the model gave ", " no note"
        assert silent
        assert {line.removeprefix(begin).removesuffix(end) for line in said if line.startswith(begin)} == silent


def test_chords_go_on_through_a_long_hole() -> None:
    chords = [{0, 4, 7}, {5, 9, 0}, {7, 11, 2}]
    takes = a_model("remi", False, True).infill(a_song(), "2-11", chords="C F G", chords_strict=True)
    bars = set()
    for note in takes[0].notes:
        bar = int(note.onset_beats // 4)
        bars.add(bar)
        assert note.program == 128 or note.pitch % 12 in chords[bar % 3]
    assert bars >= {0, 8, 9}  # eight bars are filled at once


def test_a_hole_longer_than_the_context_slides() -> None:
    model = a_model("remi", False, True, 128)
    song = a_song()
    for seed in range(3):
        take = model.infill(song, "3-10", seed=seed)[0]
        check(song, take.score, 3, 10, {0, 1, 2, 3}, {0, 33, 128})
        assert {midi.BarLines(song).bar_at(int(n.onset_beats * 96) + 96 * 8) for n in take.notes} >= {3, 10}


def test_a_take_shows_itself_in_a_notebook() -> None:
    (take,) = a_model("remi", False, True).infill(a_song(), "5")
    assert take._repr_html_().startswith("<svg")


def test_what_rings_into_the_hole_is_said() -> None:
    model, song, said = a_model("remi", False, False), a_song(), list[str]()
    begin = midi.BarLines(song).begin(5)
    for track in song.tracks:
        track.notes.filter(lambda note: not note.time < begin < note.end, inplace=True)
    model.infill(song, "5", report=said.append)
    assert not any("rings" in line for line in said)
    song.tracks[0].notes.append(NoteTick(begin - 10, 20, 50, 80))
    model.infill(song, "5", report=said.append)
    assert "what rings into the hole from before it stays, notes: 1" in said


def test_what_cannot_be_filled_is_said_in_one_line() -> None:
    model = a_model("remi", False, False)
    song = a_song()
    for options, words in [
        ({}, "say what to fill"),
        ({"bars": "9-13"}, "the piece has 12 bars"),
        ({"bars": "0-3"}, "expected bars counted from 1"),
        ({"bars": "5-4"}, "expected bars counted from 1"),
        ({"bars": "5", "tracks": ["4"]}, "4 tracks with notes"),
        ({"bars": "5", "tracks": ["kazoo"]}, "no instrument of General MIDI"),
        ({"bars": "5", "tempo": "90"}, "--tempo: filling in keeps to the piece"),
        ({"bars": "5", "density": "high"}, "--density: this model knows no density that could be asked for"),
        ({"bars": "5", "num_samples": 0}, "num_samples 0"),
    ]:
        with pytest.raises(UsageError, match=words):
            model.infill(song, **options)
    with pytest.raises(TypeError, match="there is no option best_of"):
        model.infill(song, "5", best_of=2)


@pytest.mark.parametrize(("scheme", "marked"), [("remi", True), ("tsd", True), ("remi", False), ("structured", True)])
def test_controls_are_asked_of_a_hole_four_bars_at_a_time(scheme: str, marked: bool) -> None:
    model = a_model(scheme, False, marked, controls=True)
    song = a_song(bars=16)
    said: list[str] = []
    options = {"density": "high", "control": ["bars=5-6:track=3;density=lowest", "bars=9-11:key=C major"]}
    takes = model.infill(song, "3-13", ["0", "drums"], num_samples=2, report=said.append, **options)
    assert "--control bars=5-6 is asked of bars 5 to 8: of four at a time" in said
    both = {(0, "density"): 3, (128, "density"): 3}
    for take in takes:
        check(song, take.score, 3, 13, {0, 3}, {0, 128})
        assert take.asked == [both, both | {(128, "density"): 0}, both | {(None, "key"): 0}]
        for i, levels in enumerate(take.controls):
            for program in (0, 128):
                count = sum(n.program == program and i * 16 <= n.onset_beats < i * 16 + 16 for n in take.notes)
                per_bar = count / (3 if i == 2 else 4)
                assert levels.get((program, "density")) == (sum(per_bar > e for e in (1, 2, 3, 4)) if count else None)
        assert take.answers[0].startswith("density of Acoustic Grand Piano: asked high, high, high; made ")
    if not marked:  # many takes to choose from
        return
    best = model.infill(song, "3-13", ["0", "drums"], num_samples=2, keep="best", **options)
    assert [take.notes for take in best] == [min(takes, key=lambda take: take.distance).notes]
    for other in ({"density": "low"}, {"guidance": 2.0}):
        take = model.infill(song, "3-13", ["0", "drums"], **options | other)[0]
        check(song, take.score, 3, 13, {0, 3}, {0, 128})
        assert take.notes != takes[0].notes


def test_what_cannot_be_asked_of_a_hole_is_refused() -> None:
    model = a_model("remi", False, True, controls=True)
    for options, words in [
        ({"track": ["3:density=low"]}, "track: say what holds for a track where it is named"),
        ({"bars_left": True}, "--bars-left: behind what is filled in the piece goes on"),
        ({"control": ["bars=3-7:density=low"]}, "there will be 6 new bars"),
        ({"control": ["bars=1-4:track=3;density=low"]}, "Drums is not filled; name it by --track"),
        ({"control": ["bars=1-4:track=9;density=low"]}, "the piece has 4 tracks with notes"),
        ({"keep": "best"}, "--keep best goes by the controls asked for"),
        ({"guidance": 2.0}, "--guidance goes by the controls asked for"),
    ]:
        with pytest.raises(UsageError, match=words):
            model.infill(a_song(), "5-10", ["2"], **options)


def test_a_file_has_no_more_tracks_than_channels() -> None:
    song = a_song()
    for program in range(60, 72):
        song.tracks.append(TrackTick("", program, False))
    with pytest.raises(UsageError, match="no room for a new track"):
        a_model("remi", False, False).infill(song, "5", ["flute"])
    assert a_model("remi", False, True).infill(song, "5", ["drums"])


def test_a_file_keeps_what_no_score_holds(tmp_path: Path) -> None:
    model, path, out = a_model("remi", False, True), tmp_path / "in.mid", tmp_path / "out.mid"
    midi.write_midi(a_song(), path)
    file = mido.MidiFile(path)
    for program in range(40, 60):  # more tracks than channels
        file.tracks.append(mido.MidiTrack([mido.Message("program_change", program=program, channel=5)]))
        file.tracks[-1] += [
            mido.Message("note_on", note=program, channel=5),
            mido.Message("note_off", note=program, channel=5, time=96),
        ]
    file.tracks[-1].append(mido.Message("sysex", data=(1, 2, 3)))
    file.save(path)
    said: list[str] = []
    model.infill(path, "5", ["flute"], report=said.append)[0].save(out)
    assert said == ["a new track: Flute"]
    old, new = mido.MidiFile(path), mido.MidiFile(out)
    assert new.tracks[0].pop(0).text.startswith("musicgpt: ")
    assert [list(track) for track in new.tracks[:-1]] == [list(track) for track in old.tracks]
    assert {0, 1, 2, 5, 9}.isdisjoint(m.channel for m in new.tracks[-1] if not m.is_meta)

    file.tracks[0].insert(0, mido.UnknownMetaMessage(0x59, (100, 7)))  # a key that mido does not read
    file.save(path)
    take = model.infill(path, "5", ["0"], report=said.append)[0]
    assert said[1].startswith("the file cannot be edited, mido cannot read it")
    assert said[2].startswith("more than 15 tracks")
    assert take.file is None


def test_the_command_writes_the_takes(
    run: Path, folk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    piece = folk / "003.mid"
    main(f"infill {run} --piece {piece} --bars 3-4 --num-samples 2 -o {tmp_path / 'a.mid'}".split())
    assert capsys.readouterr().out.split() == [str(tmp_path / "a-1.mid"), str(tmp_path / "a-2.mid")]
    old = midi.read_scores(piece)[0][0]
    for name in ("a-1.mid", "a-2.mid"):
        new = midi.read_scores(tmp_path / name)[0][0]
        check(old, new, 3, 4, set(range(len(old.tracks))), {midi.rank_of(track) for track in old.tracks})
    with pytest.raises(SystemExit):
        main(f"generate {run} --replay {tmp_path / 'a-1.mid'} -o {tmp_path / 'b.mid'}".split())
    assert "was filled in" in capsys.readouterr().err
