"""Controls: measures on hand-written bars, bins, marks between ids, and what is asked for on random models."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from replay import replay
from symusic.core import NoteTick, NoteTickList, ScoreTick, TimeSignatureTick, TimeSignatureTickList, TrackTick
from test_windows import time_behind

from musicgpt import midi
from musicgpt.checkpoint import save_model, tokenizer_sha256
from musicgpt.cli import main
from musicgpt.compose import LanguageModel, Piece, load
from musicgpt.config import PrepareConfig
from musicgpt.constraints import Constraints
from musicgpt.controls import ENOUGH, FAMILIES, Bins, Segment, distance, measured
from musicgpt.errors import TokenizerError, UsageError
from musicgpt.files import read_json, write_json
from musicgpt.generate import log_likelihood
from musicgpt.marks import CONTROL_MARKS, CONTROLS, DRUMS, KEYS, PER_INSTRUMENT, TRACKS, Levels, spelled
from musicgpt.midi_tokenizer import SCHEMES, MidiTokenizer
from musicgpt.model import GPT, GPTConfig
from musicgpt.prepare import prepare
from musicgpt.shards import PARTS
from musicgpt.tokenizer import load_tokenizer

Q = 480
"""Ticks of a quarter note; a bar of 4/4 has four."""

Notes = list[tuple[float, float, int]]
"""Onset and duration in quarter notes, pitch."""


def score(metre: tuple[int, int] = (4, 4), **tracks: Notes) -> ScoreTick:
    """p0=…, p40=… for programs, drums=…"""
    made = ScoreTick(Q)
    made.time_signatures = TimeSignatureTickList([TimeSignatureTick(0, *metre)])
    for name, notes in tracks.items():
        track = TrackTick("", 0 if name == "drums" else int(name[1:]), name == "drums")
        track.notes = NoteTickList([NoteTick(round(t * Q), round(d * Q), pitch, 64) for t, d, pitch in notes])
        made.tracks.append(track)
    return made


def of(segment: Segment, rank: int) -> dict[str, float]:
    return {control: value for (program, control), value in segment.values.items() if program == rank}


def test_one_note_is_measured() -> None:
    (segment,) = measured(score(p40=[(1, 2, 67)]))
    assert segment.bars == (1, 1)
    assert of(segment, 40) == {"density": 1, "polyphony": 1, "note_length": 2, "register": 67}
    assert segment.values[None, "bars_left"] == 1
    assert segment.values[None, "repetition"] == 0


def test_silence_counts_as_bars_and_not_as_polyphony() -> None:
    # bars 1 and 4 of the first segment, nothing in the second, bar 9
    segments = measured(score(p0=[(0, 1, 60), (0, 1, 64), (14, 1, 67), (32, 1, 60)]))
    assert [segment.bars for segment in segments] == [(1, 4), (5, 8), (9, 9)]
    assert [segment.begin for segment in segments] == [0, 16 * Q, 32 * Q]
    assert of(segments[0], 0) == {"density": 3 / 4, "polyphony": 3 / 2, "note_length": 1, "register": 64}
    assert segments[1].values == {(None, "bars_left"): 5}
    assert of(segments[2], 0)["density"] == 1
    assert [segment.values[None, "bars_left"] for segment in segments] == [9, 5, 1]


def test_a_note_that_rings_over_the_line_sounds_in_both_segments_and_begins_in_one() -> None:
    first, second = measured(score(p0=[(15, 3, 60), (16, 1, 64), (18, 1, 67)]))
    assert of(first, 0) == {"density": 1 / 4, "polyphony": 1, "note_length": 3, "register": 60}
    assert of(second, 0)["polyphony"] == (2 + 1 + 1) / 3
    assert of(second, 0)["density"] == 2
    assert of(second, 0)["register"] == 65.5


def test_drums_have_no_register_and_no_key() -> None:
    (segment,) = measured(score(drums=[(i / 2, 0.25, 36) for i in range(8)]))
    assert of(segment, DRUMS) == {"density": 8, "polyphony": 1, "note_length": 0.25}
    assert (None, "key") not in segment.values


def test_tracks_of_one_program_are_one_instrument() -> None:
    made = score(p0=[(0, 1, 60)], p40=[(0, 1, 60)])
    made.tracks.append(score(p0=[(0, 1, 72)]).tracks[0])
    (segment,) = measured(made)
    assert of(segment, 0) == {"density": 2, "polyphony": 2, "note_length": 1, "register": 66}
    assert of(segment, 40)["density"] == 1


def test_bars_are_those_of_the_metre() -> None:
    segments = measured(score((7, 8), p0=[(3.5 * i, 1, 60) for i in range(8)]))
    assert [segment.begin for segment in segments] == [0, 14 * Q]
    assert [of(segment, 0)["density"] for segment in segments] == [1, 1]


def test_measuring_begins_at_a_bar_line_and_ends_where_asked() -> None:
    made = score(p0=[(4.0 * i, 1, 60 + i) for i in range(6)])
    segments = measured(made, begin=8 * Q, end=40 * Q)
    assert [segment.bars for segment in segments] == [(1, 4), (5, 8)]
    assert of(segments[0], 0) == {"density": 1, "polyphony": 1, "note_length": 1, "register": 63.5}
    assert of(segments[1], 0) == {}
    assert segments[0].values[None, "bars_left"] == 4
    assert (None, "bars_left") not in segments[1].values


@pytest.mark.parametrize(
    ("second", "share"),
    [
        ([(4, 1, 60), (5, 1, 64)], 1 / 2),
        ([(4, 2, 60), (5, 3, 64)], 1 / 2),  # durations are not compared
        ([(4, 1, 60), (5.5, 1, 64)], 0),
        ([(4, 1, 60), (5, 1, 65)], 0),
        ([(4, 1, 60)], 0),
        ([], 0),  # an empty bar is none of those counted
    ],
)
def test_repetition_compares_onsets_and_pitches(second: Notes, share: float) -> None:
    (segment,) = measured(score(p0=[(0, 1, 60), (1, 1, 64), *second]))
    assert segment.values[None, "repetition"] == share


def test_repetition_compares_instruments_and_remembers_sixteen_bars() -> None:
    (segment,) = measured(score(p0=[(0, 1, 60)], p40=[(4, 1, 60)]))
    assert segment.values[None, "repetition"] == 0
    for distance_in_bars, share in ((16, 1), (17, 0)):
        made = score(p0=[(0, 1, 60), (4 * distance_in_bars, 1, 60)])
        assert measured(made)[-1].values[None, "repetition"] == share
    assert measured(score(p0=[(0, 1, 60), (4, 1, 60)]), begin=4 * Q)[0].values[None, "repetition"] == 1


def test_scales_and_chords_have_their_keys() -> None:
    for tonic in range(12):
        for mode, steps in ((0, (0, 2, 4, 5, 7, 9, 11, 12)), (12, (0, 2, 3, 5, 7, 8, 11, 12))):
            notes = [(i / 2, 0.5, 60 + tonic + step) for i, step in enumerate(steps)]
            notes += [(4, 4, 48 + tonic + step) for step in (0, steps[2], 7)]
            (segment,) = measured(score(p0=notes))
            assert KEYS[int(segment.values[None, "key"])] == KEYS[tonic + mode]
    (segment,) = measured(score(p0=[(i / 3, 1 / 3, 60 + i) for i in range(12)]))
    assert (None, "key") not in segment.values


def test_what_no_file_can_mean_is_not_measured() -> None:
    assert measured(score(p0=[(0, 1, 60), (4 * 2**17, 1, 60)])) == []
    assert [segment.values for segment in measured(ScoreTick(Q))] == [{(None, "bars_left"): 1}]


def test_measures_are_those_of_a_slow_count(corpora: list[Path]) -> None:
    for path in corpora[::5]:
        made = midi.read_scores(path)[0][0]
        segments = measured(made)
        edges = [*(segment.begin for segment in segments), midi.BarLines(made).begin(10**6)]
        tracks: dict[int, list[NoteTick]] = {}
        for track in made.tracks:
            tracks.setdefault(DRUMS if track.is_drum else track.program, []).extend(track.notes)
        for i in random.Random(0).sample(range(len(segments)), min(5, len(segments))):
            segment, (begin, end) = segments[i], edges[i : i + 2]
            for rank, notes in tracks.items():
                new = [note for note in notes if begin <= note.time < end]
                assert bool(new) == bool(of(segment, rank))
                if not new:
                    continue
                found = of(segment, rank)
                assert found["density"] == len(new) / (segment.bars[1] - segment.bars[0] + 1)
                assert found["note_length"] == np.median([note.duration for note in new]) / made.ticks_per_quarter
                if rank != DRUMS:
                    assert found["register"] == np.median([note.pitch for note in new])
                sounds = np.zeros(max(note.time + max(note.duration, 1) for note in notes) + 1, dtype=int)
                for note in notes:
                    sounds[max(note.time, begin) : max(0, min(note.time + note.duration, end))] += 1
                if sounds.any():
                    assert found["polyphony"] == pytest.approx(sounds.sum() / (sounds > 0).sum())


# bins


def segment_of(values: dict[tuple[int | None, str], float]) -> Segment:
    return Segment((1, 4), 0, values)


def known(densities: list[float], rank: int = 0) -> list[list[Segment]]:
    return [[segment_of({(rank, control): d for control in PER_INSTRUMENT})] for d in densities]


def test_bins_are_fifths_of_each_family() -> None:
    bins = Bins.learn(known([float(i) for i in range(500)]) + known([100.0 * i for i in range(500)], rank=40))
    for rank, scale in ((0, 1), (7, 1), (40, 100)):
        levels = [bins.levels(segment_of({(rank, "density"): float(scale * i)}))[rank, "density"] for i in range(500)]
        assert levels == sorted(levels)
        assert [levels.count(level) for level in range(5)] == [100] * 5
        outside = [bins.levels(segment_of({(rank, "density"): value}))[rank, "density"] for value in (-1.0, 1e6)]
        assert outside == [0, 4]


def test_equal_values_are_of_one_bin_that_in_the_middle_of_them() -> None:
    bins = Bins.learn(known([1.0] * 400 + [2.0] * 100))
    found = [bins.levels(segment_of({(0, "density"): value}))[0, "density"] for value in (0.5, 1.0, 1.4, 1.6, 2.0, 3.0)]
    assert found == [0, 2, 2, 4, 4, 4]
    assert bins.nearest({(0, "density"): 1, (0, "register"): 3, (None, "repetition"): 1, (40, "polyphony"): 0}) == {
        (0, "density"): 2, (0, "register"): 2, (None, "repetition"): 1, (40, "polyphony"): 2
    }  # fmt: skip
    same = Bins.learn(known([4.0] * 200))
    found = [same.levels(segment_of({(0, "density"): value}))[0, "density"] for value in (3.9, 4.0, 4.1)]
    assert found == [0, 2, 4]


def test_a_family_that_was_seldom_seen_has_the_bins_of_all() -> None:
    bins = Bins.learn(known([1.0] * ENOUGH) + known([9.0] * (ENOUGH - 1), rank=DRUMS))
    assert set(bins.families) == {"any", "piano"}
    assert bins.levels(segment_of({(DRUMS, "density"): 1.0, (0, "density"): 1.0})) == {
        (DRUMS, "density"): 1, (0, "density"): 2
    }  # fmt: skip
    assert Bins.learn([]).levels(segment_of({(0, "density"): 1.0})) == {(0, "density"): 4}


def test_repetition_key_and_bars_left_need_no_learning() -> None:
    bins = Bins.learn([])
    shares = [0.0, 0.25, 1 / 3, 0.5, 0.75, 1.0]
    assert [bins.levels(segment_of({(None, "repetition"): s}))[None, "repetition"] for s in shares] == [
        0,
        1,
        1,
        2,
        3,
        4,
    ]
    lefts = [bins.levels(segment_of({(None, "bars_left"): n}))[None, "bars_left"] for n in (1.0, 32.0, 33.0, 500.0)]
    assert [CONTROLS["bars_left"][left] for left in lefts] == ["BarsLeft_1", *["BarsLeft_32"] * 3]


def test_every_family_has_its_programs() -> None:
    assert len(FAMILIES) == DRUMS // 8 + 1
    assert len(TRACKS) == DRUMS + 1


def test_bins_are_the_same_when_they_are_loaded(tmp_path: Path) -> None:
    bins = Bins.learn(known([i / 3 for i in range(200)]))
    bins.save(tmp_path)
    assert Bins.load(tmp_path).families == bins.families


def all_controls(edges: object, levels: object) -> dict[str, object]:
    return {control: {"edges": edges, "levels": levels} for control in PER_INSTRUMENT}


@pytest.mark.parametrize(
    "change",
    [
        {"any": None},
        {"any": {}},
        {"piano": [1, 2, 3, 4]},
        {"choir": all_controls([1, 2, 3, 4], [2])},
        {"piano": all_controls([4, 3, 2, 1], [2])},
        {"piano": all_controls([1, 2, 3], [2])},
        {"piano": all_controls(["1", 2, 3, 4], [2])},
        {"piano": all_controls([1, 2, 3, float("nan")], [2])},
        {"piano": all_controls([1, 2, 3, 4], [])},
        {"piano": all_controls([1, 2, 3, 4], [5])},
        {"piano": all_controls([1, 2, 3, 4], [True])},
        {"piano": all_controls([1, 2, 3, 4], 2)},
    ],
)
def test_bins_of_a_stranger_are_looked_at(change: object, tmp_path: Path) -> None:
    Bins.learn([]).save(tmp_path)
    write_json(tmp_path / "controls.json", read_json(tmp_path / "controls.json") | change)
    with pytest.raises(TokenizerError, match=r"controls\.json is not what prepare --controls writes"):
        Bins.load(tmp_path)
    (tmp_path / "controls.json").unlink()
    with pytest.raises(TokenizerError, match="what is low and what is high"):
        Bins.load(tmp_path)


def test_distances_are_in_levels() -> None:
    asked: list[Levels] = [{(None, "key"): 3, (0, "density"): 1}, {(0, "density"): 4}]
    assert distance(asked, asked) == 0
    assert distance(asked, [{(None, "key"): 4, (0, "density"): 2}, {}]) == (4 + 1 + 4) / 3


# marks between ids


@pytest.fixture(scope="module", params=[scheme + learned for scheme in SCHEMES for learned in ("", "+bpe")])
def tokenizer(request: pytest.FixtureRequest, corpora: list[Path]) -> MidiTokenizer:
    made = MidiTokenizer.new(request.param.removesuffix("+bpe"), CONTROL_MARKS)
    small = [path for path in corpora if path.stat().st_size < 20_000]
    made.learn(
        [midi.read_scores(path)[0][0] for path in small],
        made.vocab_size + 600 if request.param.endswith("+bpe") else None,
    )
    return made


def parted(tokenizer: MidiTokenizer, ids: list[int]) -> dict[int, list[str]]:
    """Marked ids -> how many ids of music are before each set of marks, and the set."""
    marks = {tokenizer.mark(name): name for name in CONTROL_MARKS}
    found: dict[int, list[str]] = {}
    music = 0
    for id in ids:
        if id in marks:
            found.setdefault(music, []).append(marks[id])
        else:
            music += 1
    return found


def test_without_its_marks_a_document_is_as_it_was(tokenizer: MidiTokenizer, corpora: list[Path]) -> None:
    marks = {tokenizer.mark(name) for name in CONTROL_MARKS}
    plain, some = 0, corpora[::3]
    for path in some:
        document, _ = midi.cut(midi.read_scores(path)[0][0], 40)
        ids = tokenizer.encode(document)[:3000]
        marked = tokenizer.marked(document, ids)
        assert [id for id in marked if id not in marks] == ids
        assert marked == tokenizer.marked(document, ids)
        assert marks.isdisjoint(ids)
        plain += marked == ids
    assert plain < len(some) / 2


def test_marks_stand_where_their_segment_begins(
    tokenizer: MidiTokenizer, tunes: list[ScoreTick], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgpt.midi_tokenizer.PLAIN_SHARE", 0.0)
    monkeypatch.setattr("musicgpt.midi_tokenizer._some", lambda levels, random: levels)
    for document in tunes[:15]:
        ids = tokenizer.encode(document)
        found = parted(tokenizer, tokenizer.marked(document, ids))
        whole = tokenizer.decode(ids)
        segments = measured(whole)
        expected = {}
        for segment in segments:
            # the notes before the place are those before the line, but for one that a merged id may have begun
            before = sum(note.time < segment.begin for track in whole.tracks for note in track.notes)
            expected[before] = spelled(tokenizer.bins.levels(segment)) if tokenizer.bins else []
        places = {}
        for place, said in found.items():
            told = [t for id in ids[:place] for t in tokenizer.expansions[id]]
            last = tokenizer.expansions[ids[place - 1]] if place else ()
            begun = sum(token.startswith(("Pitch", "NoteOn", "Drum")) for token in told)
            within = sum(token.startswith(("Pitch", "NoteOn", "Drum")) for token in last)
            key = next(n for n in range(begun, begun - within - 2, -1) if n in expected)
            places[key] = said
            if tokenizer.name == "remi":
                assert "Bar_None" in [*last, *tokenizer.expansions[ids[place - 2]]]
        assert places == expected


@pytest.mark.parametrize(("ranks", "share"), [([40], 0.5), ([40, 42], 0.25)])
def test_a_control_is_said_half_of_the_time_and_of_half_of_the_instruments(
    ranks: list[int], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgpt.midi_tokenizer.PLAIN_SHARE", 0.0)
    tokenizer = MidiTokenizer.new("remi", CONTROL_MARKS)
    levels: Levels = {(rank, "density"): 2 for rank in ranks} | {(None, "key"): 0}
    said = tokenizer.said([levels] * 2000, np.random.default_rng(0))
    for rank in ranks:
        assert np.mean([tokenizer.mark(TRACKS[rank]) in marks for marks in said]) == pytest.approx(share, abs=0.04)
    assert np.mean([tokenizer.mark("Key_0") in marks for marks in said]) == pytest.approx(0.5, abs=0.04)


def test_windows_of_marked_ids_decode_to_what_they_did(tokenizer: MidiTokenizer, tunes: list[ScoreTick]) -> None:
    def notes(ids: list[int]) -> list[tuple[int, ...]]:
        decoded = tokenizer.decode(ids)
        return sorted((n.time, n.pitch, n.duration, t.program) for t in decoded.tracks for n in t.notes)

    for document in tunes[:2]:
        ids = tokenizer.encode(document)
        marked = tokenizer.marked(document, ids)
        special = tokenizer.unscored
        music = np.cumsum([id not in special for id in marked])
        for first in range(1, len(marked), 53):
            start, header = tokenizer.window(marked, first)
            if start == first and not header:
                continue
            plain_start, plain_header = tokenizer.window(ids, int(music[start - 1]))
            assert notes([*header, *marked[start:]]) == notes([*plain_header, *ids[plain_start:]])


def test_a_window_says_again_what_was_said_of_the_four_bars_it_begins_in(
    tokenizer: MidiTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgpt.midi_tokenizer.PLAIN_SHARE", 0.0)
    monkeypatch.setattr("musicgpt.midi_tokenizer._some", lambda levels, random: levels)
    marks = {tokenizer.mark(name) for name in CONTROL_MARKS}
    for metre, quarters in ((4, 4), 4.0), ((3, 4), 3.0), ((7, 8), 3.5):
        if tokenizer.name == "structured" and metre != (4, 4):
            continue
        piece = score(metre, p0=[(i / 2, 0.5, 60 + i % 7) for i in range(int(20 * quarters * 2))])
        ids = tokenizer.marked(piece, tokenizer.encode(piece))
        runs = list(parted(tokenizer, ids).values())
        assert len(runs) == 5
        windows = dict(tokenizer.window(ids, first) for first in range(1, len(ids), len(ids) // 14))
        found = set()
        for start, header in windows.items():
            if not header:  # behind the last bar line
                continue
            if tokenizer.name == "remi":
                bar = sum(tokenizer.expansions[id][0] == "Bar_None" for id in ids[:start])
            else:
                begin = time_behind(tokenizer, ids[:start]) - time_behind(tokenizer, header)
                bar = round(begin / tokenizer.wrapped.time_division / quarters)
            said = [tokenizer.expansions[id][0] for id in header if id in marks]
            assert said == (runs[bar // 4] if bar % 4 else [])
            found.add(bar)
        assert len(found) > 6


def test_prepare_marks_training_documents_alone_and_the_same_with_two_workers(
    folk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgpt.prepare.FILES_WORTH_A_PROCESS", 8)
    made = {}
    for workers in (1, 2):
        config = PrepareConfig(controls=True, transpositions=2, workers=workers)
        made[workers] = prepare(folk, tmp_path / str(workers), config, report=lambda text: None)
    tokenizer = load_tokenizer(tmp_path / "1")
    for name in [f"{split}.{part}" for split in ("train", "val", "test") for part in PARTS] + ["controls.json"]:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    marks = [tokenizer.mark(name) for name in CONTROL_MARKS]
    share = {split: float(np.isin(made[1].split(split).ids, marks).mean()) for split in ("train", "val", "test")}
    assert share["val"] == share["test"] == 0
    assert 0.005 < share["train"] < 0.05
    said: list[str] = []
    prepare(folk, tmp_path / "1", PrepareConfig(controls=True, transpositions=2), report=said.append)
    assert said == [f"{tmp_path / '1'} was prepared before and nothing has changed"]
    # the same tokenizer marks other pieces by what it has learned; one without marks is refused
    config = PrepareConfig(controls=True, transpositions=1, tokenizer=str(tmp_path / "1"))
    prepare(folk, tmp_path / "again", config, report=said.append)
    assert (tmp_path / "again" / "controls.json").read_bytes() == (tmp_path / "1" / "controls.json").read_bytes()
    MidiTokenizer.new("remi").save(tmp_path / "again")
    config = PrepareConfig(controls=True, tokenizer=str(tmp_path / "again"))
    with pytest.raises(TokenizerError, match="has no marks"):
        prepare(folk, tmp_path / "plain", config, report=said.append)
    with pytest.raises(TokenizerError, match="has no marks"):
        prepare(folk, tmp_path / "text", PrepareConfig(controls=True, tokenizer="bytes"), report=said.append)


# asking


@pytest.fixture(scope="module")
def model(tokenizer: MidiTokenizer) -> LanguageModel:
    """Randomly initialised, the worst case; its context is shorter than most pieces."""
    torch.manual_seed(0)
    shape = GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=192, n_embd=32, n_layer=1, n_head=2)
    return LanguageModel(GPT(shape), tokenizer)


def check(model: LanguageModel, piece: Piece, bars: int) -> None:
    """Its marks are those asked for, where a document of the same music has them; it keeps to all other laws."""
    tokenizer = model.tokenizer
    assert isinstance(tokenizer, MidiTokenizer)
    ids = piece.prompt_ids + piece.new_ids
    marks = {tokenizer.mark(name) for name in CONTROL_MARKS}
    music = [id for id in ids if id not in marks]
    assert tokenizer.encode(tokenizer.decode(ids)) == tokenizer.encode(tokenizer.decode(music))
    end = piece.end
    assert end is not None and len(piece.asked) == -(-bars // 4)
    assert end - piece.boundary == 4 * bars
    begins = [piece.boundary + 16 * i for i in range(-(-bars // 4))]
    found = parted(tokenizer, ids)
    places = tokenizer._windows.reached(music, [round(begin * tokenizer.wrapped.time_division) for begin in begins])
    if piece.prompt_ids and piece.asked[0] and tokenizer.name != "structured":
        # the first come behind all that leads to the bar line, metre and tempo included
        lead = next(i for i, id in enumerate(piece.new_ids) if id in marks)
        assert not any(tokenizer._notes[id] for id in piece.new_ids[:lead])
        places[0] = len(piece.prompt_ids) + lead
    # where two segments begin at one place, nothing is in the first; behind the last note, notes are ended
    expected = {place: spelled(levels) for place, levels in zip(places, piece.asked, strict=False)}
    last = max(i for i, id in enumerate(music) if tokenizer._notes[id])
    assert {place: said for place, said in found.items() if place < last} == {
        place: said for place, said in expected.items() if said and place < last
    }
    tokens = [
        token for id in music if id not in tokenizer.unscored | {tokenizer.eos_id} for token in tokenizer.expansions[id]
    ]
    before = sum(len(tokenizer.expansions[id]) for id in piece.prompt_ids)
    played = replay(tokenizer.name, tokens, strict=not before)
    assert not [breach for breach in played.breaches if breach.position >= before]
    assert max(note.onset + note.duration for note in played.notes) <= end


ASKED: list[dict[str, object]] = [
    {"density": "high", "register": 0, "key": "D minor", "bars_left": True},
    {
        "track": ["1:register=low"],
        "control": ["bars=5:density=2;repetition=highest", "bars=1-4:track=cello;note-length=0"],
    },
    {"control": ["bars=5-5:key=Bb major"], "max_polyphony": 2},
]


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_for_stands_where_its_segment_begins(
    model: LanguageModel, asked: dict[str, object], tunes: list[ScoreTick]
) -> None:
    for bars, samples, prompt in ((5, 1, None), (10, 1, None), (9, 3, None), (6, 1, tunes[0])):
        options = {"time_signature": "4/4", "instruments": "piano,cello", "seed": bars, **asked}
        for piece in model.generate_many(samples, prompt, prompt_bars=3, top_k=None, bars=bars, **options):
            check(model, piece, bars)


def test_a_piece_is_made_again_from_its_file(model: LanguageModel, tmp_path: Path) -> None:
    options = {
        "bars": 8,
        "instruments": "piano",
        "density": 4,
        "control": ["bars=5-8:density=lowest"],
        "max_polyphony": 4,
    }
    pieces = model.generate_many(4, **options)
    best = model.generate_many(4, keep="best", **options)
    assert [piece.new_ids for piece in best] == [min(pieces, key=lambda piece: piece.distance).new_ids]
    best[0].save(tmp_path / "best.mid")
    assert model.replay(tmp_path / "best.mid").ids == best[0].ids
    stream = model.stream(**options)
    assert list(stream)
    assert stream.piece().new_ids == pieces[0].new_ids


def test_guidance_goes_from_what_is_unasked_towards_what_is_asked(model: LanguageModel) -> None:
    asked = {"instruments": "piano,cello", "density": "high", "key": "D minor", "bars": 5}
    stream = model.stream(guidance=3.0, temperature=0, max_new_tokens=90, **asked)
    for _ in stream.steps():
        pass
    grammar, ids = stream.grammar, stream.rows[0].ids  # as they were chosen: a piece is cut to its last note
    assert grammar is not None
    state, there, differs = grammar.begin, [model.tokenizer.bos_id], 0
    for id in ids[:80]:
        allowed = torch.from_numpy(grammar.mask(state))
        plain = [there[0], *(other for other in there[1:] if other not in model.tokenizer.unscored)]
        with torch.inference_mode():
            with_marks, without = (model.model(torch.tensor([row]), logits_to_keep=1)[0, -1] for row in (there, plain))
        guided = (without + 3 * (with_marks - without)).masked_fill(~allowed, -torch.inf)
        # rounding aside, it is the most likely of what is allowed
        assert guided[id] > guided.max() - 1e-4
        differs += int(with_marks.masked_fill(~allowed, -torch.inf).argmax()) != id
        state = grammar.advance(state, id)
        there.append(id)
    assert differs


def test_guided_samples_do_not_depend_on_each_other(model: LanguageModel) -> None:
    asked = {"instruments": "piano", "density": "low", "bars": 9, "max_polyphony": 4, "guidance": 2.0}
    first, second = model.generate_many(2, control=["bars=5-8:register=high"], **asked)
    assert first.new_ids == model.generate(control=["bars=5-8:register=high"], **asked).new_ids
    assert first.new_ids != second.new_ids
    plain = {**asked, "guidance": 1.0}
    assert (
        model.generate(**plain).new_ids == model.generate(**{k: v for k, v in asked.items() if k != "guidance"}).new_ids
    )
    for options in ({"bars": 2}, {"bars": 2, "scale": "C major"}):
        with pytest.raises(UsageError, match="--guidance goes by the controls asked for"):
            model.generate(guidance=2.0, **options)


def test_likelihood_is_of_what_was_chosen(model: LanguageModel) -> None:
    piece = model.generate(bars=6, instruments="piano", density=1, max_polyphony=4)
    ids = [model.tokenizer.bos_id, *piece.ids][:190]
    with torch.inference_mode():
        table = model.model(torch.tensor([ids]))[0].float().log_softmax(dim=-1)
    scored = [i for i in range(1, len(ids)) if ids[i] not in model.tokenizer.unscored]
    assert 1 < len(scored) < len(ids) - 2
    mean = float(torch.stack([table[i - 1, ids[i]] for i in scored]).mean())
    assert log_likelihood(model.model, ids, 1, model.tokenizer.unscored) == pytest.approx(mean, abs=1e-4)
    assert model.generate(bars=2, instruments="piano", density=1, best_of=2, max_polyphony=4).asked == [
        {(0, "density"): 1}
    ]


def test_a_checkpoint_carries_what_its_controls_mean(model: LanguageModel, tmp_path: Path) -> None:
    save_model(tmp_path, model.model, model.tokenizer)
    again = load(tmp_path)
    assert isinstance(again.tokenizer, MidiTokenizer) and isinstance(model.tokenizer, MidiTokenizer)
    assert again.tokenizer.bins is not None and model.tokenizer.bins is not None
    assert again.tokenizer.bins.families == model.tokenizer.bins.families
    assert tokenizer_sha256(again.tokenizer) == tokenizer_sha256(model.tokenizer)
    values = read_json(tmp_path / "controls.json")
    values["any"]["density"]["edges"][3] += 1
    write_json(tmp_path / "controls.json", values)
    assert tokenizer_sha256(load_tokenizer(tmp_path)) != tokenizer_sha256(model.tokenizer)
    (tmp_path / "controls.json").unlink()
    with pytest.raises(TokenizerError, match=r"controls\.json"):
        load(tmp_path)


def test_the_narrower_wins() -> None:
    asked = Constraints(
        density="0",
        instruments="piano,cello,drums",
        register="1",
        track=("cello:density=1",),
        control=("bars=5-8:track=cello;density=3", "bars=5-8:density=2;key=C major"),
    )
    assert asked.levels(1, 4, ()) == {
        (0, "density"): 0, (42, "density"): 1, (128, "density"): 0, (0, "register"): 1, (42, "register"): 1
    }  # fmt: skip
    assert asked.levels(5, 8, ()) == {
        (0, "density"): 2, (42, "density"): 3, (128, "density"): 2, (0, "register"): 1, (42, "register"): 1,
        (None, "key"): 0,
    }  # fmt: skip
    assert Constraints(**asked.asdict()) == asked


def test_controls_are_said_of_the_instruments_asked_for_or_of_the_prompt_or_named() -> None:
    assert Constraints(density="low").levels(1, 4, [40, 41]) == {(40, "density"): 1, (41, "density"): 1}
    assert Constraints(density="low", instruments="7").levels(1, 4, [40]) == {(7, "density"): 1}
    named = Constraints(density="low", track=("piano:note-length=highest",))
    assert named.levels(1, 4, []) == {(0, "density"): 1, (0, "note_length"): 4}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"density": "loud"}, "--density 'loud': expected lowest, low, medium, high, highest, or 0 to 4"),
        ({"density": 5}, "--density '5'"),
        ({"key": "H major"}, "--key 'H major': expected a tonic and major or minor"),
        ({"key": "D dorian"}, "--key 'D dorian'"),
        ({"track": ["0:key=C major"]}, "--track 0:key=C major: expected a track"),
        ({"track": ["0:density=9"]}, "--track 0:density=9: '9'"),
        ({"control": ["bars=8-5:density=2"]}, "expected new bars"),
        ({"control": ["bars=0-4:density=2"]}, "expected new bars"),
        ({"control": ["bars=1-4:"]}, "expected new bars"),
        ({"control": ["bars=1-4:tempo=2"]}, "expected new bars"),
        ({"control": ["bars=1-4:track=0;key=C major"]}, "expected new bars"),
        ({"density": "low"}, "--density is of instruments, and none are known here: add --instruments, or name one"),
        ({"bars": 4, "control": ["bars=1-2:density=low"]}, "--control bars=1-2:track=piano;density=low"),
        ({"instruments": "drums", "register": "low"}, "--register: drums have none"),
        ({"bars_left": True}, "--bars-left: of how many"),
        ({"bars": 4, "control": ["bars=5-8:key=C major"]}, "there will be 4 new bars"),
        ({"instruments": "piano", "track": ["cello:density=low"]}, "Cello does not play here"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked: dict[str, object], words: str) -> None:
    tokenizer = MidiTokenizer.new("remi", CONTROL_MARKS)
    tokenizer.bins = Bins.learn([])
    gpt = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=16, n_layer=1, n_head=1))
    with pytest.raises(UsageError) as caught:
        LanguageModel(gpt, tokenizer).generate(**asked)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_controls_refuses_them() -> None:
    tokenizer = MidiTokenizer.new("tsd")
    gpt = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=16, n_layer=1, n_head=1))
    model = LanguageModel(gpt, tokenizer)
    for asked, flag in (
        ({"instruments": "piano", "density": "low"}, "--density"),
        ({"key": "C major"}, "--key"),
        ({"bars": 4, "bars_left": True}, "--bars-left"),
        ({"track": ["piano:register=low"]}, "--track"),
        ({"control": ["bars=1-4:repetition=0"]}, "--control"),
    ):
        with pytest.raises(UsageError, match=f"{flag}: this model knows no"):
            model.generate(**asked)
    with pytest.raises(UsageError, match="--keep best goes by the controls"):
        model.generate_many(2, keep="best", bars=1)


def test_controls_for_part_of_a_segment_are_said_of_all_of_it_and_that_is_reported(model: LanguageModel) -> None:
    said: list[str] = []
    piece = model.generate(bars=7, control=["bars=3-7:key=C minor"], report=said.append, max_polyphony=4)
    assert "--control bars=3-7 is asked of bars 1 to 7: of four at a time" in said
    assert piece.asked == [{(None, "key"): 12}] * 2
    assert piece.answers[0].startswith("key: asked C minor, C minor; made ")
    for last, remarks in ((1, 0), (400, 1)):
        said.clear()
        model.generate(seconds=7.0, control=[f"bars=1-{last}:key=C minor"], max_polyphony=4, report=said.append)
        assert len([line for line in said if line.startswith(f"--control bars=…-{last}: the piece has ")]) == remarks


def test_from_training_to_asking_on_the_command_line(
    folk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few").mkdir()
    for path in sorted(folk.iterdir())[:12]:
        shutil.copy(path, tmp_path / "few")
    main(
        "train few --out run --controls --infill 1 --preset music-tiny --n-positions 64 --transpositions 1 --steps 2 "
        "--batch-size 2".split()
    )
    assert (tmp_path / "run" / "best" / "controls.json").is_file()
    capsys.readouterr()
    main("generate run --instruments piano --density high --bars-left --bars 6 --num-samples 3 --keep best".split())
    output = capsys.readouterr()
    assert output.out == "out.mid\n"
    lines = [line for line in output.err.splitlines() if "; made " in line]
    assert [line.split(";")[0] for line in lines] == [
        "density of Acoustic Grand Piano: asked high, high",
        "bars left: asked 6, 2",
    ]
    piece = min((tmp_path / "few").iterdir())
    main(f"infill run --piece {piece} --bars 2-6 --density low --num-samples 2 --keep best -o filled.mid".split())
    output = capsys.readouterr()
    assert output.out == "filled.mid\n"
    assert "density of Acoustic Grand Piano: asked low, low; made " in output.err
    main("inspect out.mid".split())
    assert "density" in capsys.readouterr().out
    main("inspect out.mid --json".split())
    (piece,) = json.loads(capsys.readouterr().out)["each"]
    made = midi.read_scores(tmp_path / "out.mid")[0][0]
    assert [segment["bars"] for segment in piece["segments"]] == [list(segment.bars) for segment in measured(made)]
    told = piece["segments"][0]["instruments"][0]
    assert told.pop("instrument") == "Acoustic Grand Piano"
    assert told == pytest.approx(of(measured(made)[0], 0), abs=1e-3)
    for refused, words in (
        ("--density loud --instruments piano", "--density 'loud': expected lowest"),
        ("--bars-left", "--bars-left: of how many? add --bars"),
        ("--keep best", "--keep best goes by the controls asked for"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(f"generate run --out other.mid {refused}".split())
        assert caught.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
