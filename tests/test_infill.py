"""Holes in pieces, as scores and as ids."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from symusic.core import NoteTick, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

from musicgpt import midi
from musicgpt.constraints import Constraints
from musicgpt.controls import Bin, Bins
from musicgpt.errors import InputError
from musicgpt.grammar import Grammar
from musicgpt.infill import Frame, Frames, New, emptied, filled
from musicgpt.marks import (
    CONTROL_MARKS,
    CONTROLS,
    FILL,
    KEYS,
    MIDDLE,
    PER_INSTRUMENT,
    PREFIX,
    SUFFIX,
    TRACKS,
    Levels,
    spelled,
)
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.vocabulary import Vocabulary

Notes = list[tuple[float, int, int, float, int]]
"""(onset in quarter notes, program, pitch, duration in quarter notes, velocity)."""


def notes_of(score: ScoreTick, begin: float = 0, end: float = float("inf")) -> Notes:
    per = score.ticks_per_quarter
    return sorted(
        (note.time / per, midi.rank_of(track), note.pitch, note.duration / per, note.velocity)
        for track in score.tracks
        for note in track.notes
        if begin <= note.time < end
    )


def a_song(numerator: int = 4, denominator: int = 4, bars: int = 12, ticks: int = 96) -> ScoreTick:
    """Piano chords, a bass and drums: a note on every beat."""
    score = ScoreTick(ticks)
    score.time_signatures.append(TimeSignatureTick(0, numerator, denominator))
    score.tempos.append(TempoTick(0, qpm=100))
    beat = 4 * ticks // denominator
    for program, low, is_drum in ((0, 60, False), (0, 72, False), (33, 40, False), (0, 36, True)):
        track = TrackTick("", program, is_drum)
        for i in range(bars * numerator):
            track.notes.append(NoteTick(i * beat, beat, low + (5 * i) % 7, 64 + i % 3))
        score.tracks.append(track)
    return score


def five_levels() -> Bins:
    """All levels of every control, whatever the instrument."""
    edges = {"density": [1, 2, 3, 4], "polyphony": [1, 2, 3, 4], "note_length": [0.3, 0.6, 1, 2]}
    edges["register"] = [40, 50, 60, 70]
    return Bins({"any": {control: Bin(edges[control], [0, 1, 2, 3, 4]) for control in PER_INSTRUMENT}})


@pytest.fixture(scope="module", params=["remi", "tsd", "midilike", "structured"])
def frames(request: pytest.FixtureRequest) -> Frames:
    tokenizer = MidiTokenizer.new(request.param, [*FILL, *TRACKS])
    return Frames(tokenizer, Vocabulary(tokenizer))


@pytest.fixture(scope="module")
def learned(corpora: list[Path]) -> Frames:
    tokenizer = MidiTokenizer.new("remi", [*FILL, *TRACKS])
    tokenizer.learn([midi.read_scores(path)[0][0] for path in corpora[:8]], 2000)
    return Frames(tokenizer, Vocabulary(tokenizer))


def on_grid(tokenizer: MidiTokenizer, score: ScoreTick) -> ScoreTick:
    """As the tokens have it, so that nothing is rounded any more."""
    return tokenizer.decode(tokenizer.encode(tokenizer.decode(tokenizer.encode(score))))


def holes(score: ScoreTick, count: int, seed: int) -> list[tuple[int, int, set[int]]]:
    random = np.random.default_rng(seed)
    total = midi.BarLines(score).bar_at(int(score.end()) - 1)
    found = []
    for _ in range(count):
        bars = int(random.choice([n for n in (1, 2, 4, 8) if n <= total]))
        tracks = {i for i in range(len(score.tracks)) if random.random() < 0.6}
        found.append((1 + int(random.integers(total - bars + 1)), bars, tracks))
    return found


def test_what_is_split_encoded_decoded_and_joined_is_the_same_music(frames: Frames, corpora: list[Path]) -> None:
    tried = 0
    for number, path in enumerate(corpora[::2]):
        score = on_grid(frames.tokenizer, midi.read_scores(path)[0][0])
        lines = midi.BarLines(score)
        for first, bars, tracks in holes(score, 3, number):
            begin, end = lines.begin(first), lines.begin(first + bars)
            outside, inside = emptied(score, begin, end, tracks)
            if not inside.note_num():
                continue
            try:
                frame = frames.frame(outside, first, bars, 2**20, inside)
            except InputError:  # of odd bars: these are refused
                continue
            assert frame is not None
            tried += 1
            per = score.ticks_per_quarter
            whole = frames.tokenizer.decode(frame.prefix + frame.middle)
            left = end / per - midi_end(frames, frame, bars)
            heard = [(onset + left, *rest) for onset, *rest in notes_of(whole)]
            if frames.vocabulary.scheme == "structured":  # which places notes by the one before, and rounds anew
                assert len(heard) == len(notes_of(outside, left * per - 0.01, begin)) + inside.note_num()
                continue
            expected = [
                (onset, rank, pitch, min(duration, end / per - onset) if onset >= begin / per else duration, velocity)
                for onset, rank, pitch, duration, velocity in (
                    notes_of(outside, left * per - 0.01, begin) + notes_of(inside)
                )
            ]
            if frames.vocabulary.scheme == "midilike":  # the ends of notes that ring on are behind
                expected = [note for note in expected if note[0] + note[3] <= end / per]
            assert alike(heard, expected), (path.name, first, bars)
            behind = frames.tokenizer.decode(frame.suffix)
            shifted = [(onset - begin / per, *rest) for onset, *rest in notes_of(outside, begin)]
            assert rounded(notes_of(behind)) == rounded(shifted)[: len(notes_of(behind))]
    assert tried > 10


def midi_end(frames: Frames, frame: Frame, bars: int) -> float:
    """Quarter notes from the beginning of the prefix to the end of the hole."""
    reader = frames._reader
    state = reader.start()
    for id in frame.prefix:
        state = reader.read(state, frames.vocabulary.tokens[id])
    line = state.bar_start + (frame.ahead if frame.prefix else 0) * frames.vocabulary.bar_ticks[state.metre]
    for id in frame.middle:
        state = reader.read(state, frames.vocabulary.tokens[id])
    end = line + bars * frames.vocabulary.bar_ticks[state.metre]
    return end / frames.vocabulary.ticks_per_quarter


def rounded(notes: Notes) -> Notes:
    return sorted((round(a, 3), b, c, round(d, 3), e) for a, b, c, d, e in notes)


def alike(a: Notes, b: Notes) -> bool:
    """The same notes; one that was cut at the end of the hole may be off the grid of durations, and moved to it."""
    pairs = list(zip(rounded(a), rounded(b), strict=True))
    return all(x[:3] == y[:3] and x[4] == y[4] and abs(x[3] - y[3]) <= 0.25 for x, y in pairs)


def test_the_prefix_does_not_depend_on_what_is_in_the_hole(frames: Frames, corpora: list[Path]) -> None:
    for number, path in enumerate(corpora[1::3]):
        score = midi.read_scores(path)[0][0]
        lines = midi.BarLines(score)
        for first, bars, tracks in holes(score, 3, number):
            outside, inside = emptied(score, lines.begin(first), lines.begin(first + bars), tracks)
            if not inside.note_num():
                continue
            try:
                known = frames.frame(outside, first, bars, 2**20, inside)
                unknown = frames.frame(outside, first, bars, 2**20)
            except InputError:
                continue
            assert known is not None
            assert unknown is not None
            assert unknown[:3] == known[:3]
            assert unknown.middle == []


def test_merges_change_nothing(learned: Frames, corpora: list[Path]) -> None:
    score = on_grid(learned.tokenizer, midi.read_scores(corpora[0])[0][0])
    lines = midi.BarLines(score)
    outside, inside = emptied(score, lines.begin(5), lines.begin(7), range(len(score.tracks)))
    frame = learned.frame(outside, 5, 2, 2**20, inside)
    assert frame is not None
    whole = learned.tokenizer.decode(frame.prefix + frame.middle)
    per = score.ticks_per_quarter
    end = lines.begin(7) / per
    before = notes_of(outside, 0, lines.begin(5))
    within = [(o, r, p, min(d, end - o), v) for o, r, p, d, v in notes_of(inside)]
    assert alike(notes_of(whole), before + within)


def test_an_exercise_has_its_parts_in_order_and_fits(frames: Frames, corpora: list[Path]) -> None:
    tokenizer = frames.tokenizer
    marks = [tokenizer.mark(name) for name in (SUFFIX, PREFIX, MIDDLE)]
    made = 0
    for seed, path in enumerate(corpora):
        score = midi.read_scores(path)[0][0]
        ids = frames.exercise(score, 512, np.random.default_rng(seed))
        assert ids == frames.exercise(score, 512, np.random.default_rng(seed))
        if not ids:
            continue
        made += 1
        assert len(ids) <= 512
        assert ids[0] == tokenizer.bos_id
        assert ids[-1] == tokenizer.eos_id
        suffix, prefix, middle = (ids.index(mark) for mark in marks)
        assert 1 == suffix < prefix < middle
        assert prefix - suffix <= 257
        names = [tokenizer.expansions[id][0] for id in ids[middle + 1 :]]
        assert names[0].startswith("FillBars_")
        asked = {name for name in names if name.startswith("Track_")}
        new = tokenizer.decode(ids[prefix + 1 :]), tokenizer.decode(ids[prefix + 1 : middle])
        added = len(notes_of(new[0])) - len(notes_of(new[1]))
        assert added > 0
        begins = ("Pitch", "NoteOn", "DrumOn")
        programs = {a.split("_")[1] for a, b in pairwise(names) if a.startswith("Program_") and b.startswith(begins)}
        assert {f"Track_{int(program) % 129}" for program in programs} <= asked
    assert made > len(corpora) // 3


@pytest.fixture(scope="module", params=["remi", "tsd", "midilike", "structured"])
def knowing(request: pytest.FixtureRequest) -> Frames:
    """Frames of a vocabulary that has controls, too."""
    tokenizer = MidiTokenizer.new(request.param, [*FILL, *CONTROL_MARKS])
    tokenizer.bins = five_levels()
    return Frames(tokenizer, Vocabulary(tokenizer))


def in_request(levels: list[Levels], ranks: list[int], bars: int) -> Constraints:
    """The request that asks for these levels of instruments, segment by segment."""
    texts = [
        f"bars={4 * i + 1}-{min(4 * i + 4, bars)}:{'' if rank is None else f'track={ranks.index(rank)};'}"
        f"{control.replace('_', '-')}={KEYS[level] if control == 'key' else level}"
        for i, segment in enumerate(levels)
        for (rank, control), level in segment.items()
    ]
    return Constraints(instruments=",".join("drums" if r == 128 else str(r) for r in ranks), control=tuple(texts))


def test_marks_stand_in_a_hole_where_the_grammar_forces_them(knowing: Frames) -> None:
    tokenizer = knowing.tokenizer
    marks = {tokenizer.mark(name) for name in CONTROL_MARKS}
    for metre in [(4, 4)] if tokenizer.name == "structured" else [(4, 4), (3, 4), (7, 8)]:
        song = a_song(*metre, bars=16)
        lines = midi.BarLines(song)
        for first, bars, tracks in ((1, 8, {0, 1, 2, 3}), (5, 8, {0, 2}), (9, 1, {3}), (6, 4, {0, 1, 2}), (3, 6, {2})):
            begin, end = lines.begin(first), lines.begin(first + bars)
            outside, inside = emptied(song, begin, end, tracks)
            levels = knowing.levels(inside, begin, end)
            ranks = sorted({midi.rank_of(song.tracks[i]) for i in tracks})
            assert len(levels) == -(-bars // 4)
            assert all({rank for rank, _ in segment} >= {*ranks} for segment in levels)
            assert (None, "bars_left") not in levels[0]
            frame = knowing.frame(outside, first, bars, 2**20, inside)
            assert frame is not None
            said = [[tokenizer.mark(name) for name in spelled(segment)] for segment in levels]
            middle = knowing._marked(frame, metre, said)
            assert [id for id in middle if id not in marks] == frame.middle
            assert [id for id in middle if id in marks] == [id for segment in said for id in segment]
            asked = in_request(levels, ranks, bars)
            grammar = Grammar(knowing.vocabulary, frame.prefix, asked, bars=bars, ahead=frame.ahead)
            assert middle[: len(grammar.prelude)] == grammar.prelude
            state = grammar.begin
            for id in middle[len(grammar.prelude) :]:
                allowed = grammar.mask(state)
                # midilike: what rang before the hole may end in another order than new music has
                assert allowed[id] or tokenizer.name == "midilike"
                assert (id in marks) == (allowed.sum() == 1 and bool(allowed[list(marks)].any()))
                state = grammar.advance(state, id)
            assert state.ended


def test_an_exercise_has_marks_in_its_middle_alone_and_fits(
    knowing: Frames, corpora: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = knowing.tokenizer
    controls = {tokenizer.mark(name) for names in CONTROLS.values() for name in names}
    made = 0
    for share in (0.0, 1.0):
        monkeypatch.setattr("musicgpt.midi_tokenizer.PLAIN_SHARE", share)
        for seed, path in enumerate(corpora[::4]):
            score = midi.read_scores(path)[0][0]
            ids = knowing.exercise(score, 512, np.random.default_rng(seed), controls=True)
            if not ids:
                continue
            assert len(ids) <= 512
            places = [i for i, id in enumerate(ids) if id in controls]
            assert all(i > ids.index(tokenizer.mark(MIDDLE)) for i in places)
            assert share == 0 or not places
            made += bool(places)
    assert made > 3


def test_a_bar_that_is_no_whole_one_is_refused() -> None:
    tokenizer = MidiTokenizer.new("remi", [*FILL, *TRACKS])
    frames = Frames(tokenizer, Vocabulary(tokenizer))
    score = a_song()
    score.time_signatures.append(TimeSignatureTick(96 * 4 * 3 + 96, 3, 4))  # bar 4 has one beat
    with pytest.raises(InputError, match="bar 4 is no whole bar of 4/4"):
        frames.frame(score, 4, 1, 1000)
    with pytest.raises(InputError, match="no whole bar of 4/4"):
        frames.frame(score, 3, 2, 1000)
    assert frames.frame(score, 5, 1, 1000) is not None
    score = a_song()
    score.time_signatures.append(TimeSignatureTick(96 * 4 * 3, 3, 4))
    with pytest.raises(InputError, match="the metre changes in bar 4"):
        frames.frame(score, 3, 2, 1000)


def test_new_notes_go_to_the_nearest_track_and_what_was_there_stays() -> None:
    score = a_song(ticks=480)
    begin = 480 * 4 * 4
    outside, _ = emptied(score, begin, begin + 480 * 4, {0, 1})
    new = [New(0.0, 1.0, 61, 70, 0), New(1 / 3, 1 / 3, 74, 70, 0), New(2.0, 0.5, 50, 90, 42)]
    made = filled(outside, begin, begin + 480 * 4, new, {0: 63.0, 1: 75.0})
    assert [len(track.notes) for track in made.tracks] == [45, 45, 48, 48, 1]
    assert (made.tracks[4].program, made.tracks[4].is_drum) == (42, False)
    assert [(n.time, n.duration) for n in made.tracks[1].notes if n.pitch == 74 and n.time == begin + 160] == [
        (begin + 160, 160)
    ]
    for old, track in zip(outside.tracks, made.tracks, strict=False):
        kept = {(n.time, n.duration, n.pitch, n.velocity) for n in old.notes}
        assert kept <= {(n.time, n.duration, n.pitch, n.velocity) for n in track.notes}


def test_a_new_note_does_not_cut_one_that_rings_into_the_hole() -> None:
    score = ScoreTick(100)
    track = TrackTick("", 0, False)
    track.notes.append(NoteTick(300, 150, 60, 64))  # to 450, half a beat into the bar behind
    score.tracks.append(track)
    made = filled(score, 400, 800, [New(0.0, 1.0, 60, 80, 0), New(0.0, 0.25, 60, 80, 0)], {0: 60.0})
    assert [(n.time, n.duration) for n in made.tracks[0].notes] == [(300, 150), (450, 50)]


def test_few_ticks_a_beat_do_not_round_notes_out_of_the_hole() -> None:
    for ticks in (1, 2, 3, 8):
        score = a_song(ticks=ticks)
        begin, end = 4 * ticks * 2, 4 * ticks * 3
        outside, _ = emptied(score, begin, end, {0})
        new = [New(4 - 1 / 24, 1 / 24, 60 + i, 70, 0) for i in range(3)] + [New(1 / 24, 3.9, 72, 70, 0)]
        made = filled(outside, begin, end, new, {0: 63.0})
        inside = [n for n in made.tracks[0].notes if n.velocity == 70]
        assert len(inside) == 4
        assert all(begin <= n.time < n.end <= end for n in inside)
