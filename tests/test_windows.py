"""Windows of music: header and ids decode to the notes of the whole from a bar line on, in every scheme."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import miditok
import numpy as np
import pytest
import symusic

from musicgpt import midi
from musicgpt.midi_tokenizer import SCHEMES, MidiTokenizer

VARIETY = [(scheme, learned) for scheme in SCHEMES for learned in (False, True)]

Note = tuple[int, int, int, int, int]
"""Onset, end, program (-1 drums), pitch, velocity; in ticks."""


@pytest.fixture(scope="module", params=VARIETY, ids=lambda v: v[0] + ("+bpe" if v[1] else ""))
def tokenizer(request: pytest.FixtureRequest, corpora: list[Path]) -> MidiTokenizer:
    scheme, learned = request.param
    made = MidiTokenizer.new(scheme)
    if learned:  # on all kinds of music, so that merges reach over every kind of token
        made.learn(small(corpora), made.vocab_size + 600)
    return made


def small(corpora: list[Path]) -> list[symusic.Score]:
    scores = [midi.read_scores(path)[0][0] for path in corpora]
    return [score for score in scores if score.note_num() < 3000]


def notes_of(score: symusic.Score) -> list[Note]:
    return sorted(
        (n.time, n.time + n.duration, -1 if track.is_drum else track.program, n.pitch, n.velocity)
        for track in score.tracks
        for n in track.notes
    )


def bar_lines(score: symusic.Score, end: int) -> Iterator[int]:
    """The bar lines of a score by its time signatures, each of which begins a bar."""
    metres = sorted((s.time, 4 * score.ticks_per_quarter * s.numerator // s.denominator) for s in score.time_signatures)
    if not metres or metres[0][0] > 0:
        metres.insert(0, (0, 4 * score.ticks_per_quarter))
    for (time, bar), (until, _) in pairwise([*metres, (end, 1)]):
        yield from range(time, until, bar)


def in_force(events: list[tuple[int, object]], time: int) -> object:
    before = [value for at, value in events if at <= time]
    return before[-1] if before else None


def tempos(score: symusic.Score) -> list[tuple[int, object]]:
    return [(t.time, t.qpm) for t in score.tempos]


def metres(score: symusic.Score) -> list[tuple[int, object]]:
    return [(s.time, (s.numerator, s.denominator)) for s in score.time_signatures]


def time_behind(tokenizer: MidiTokenizer, ids: list[int]) -> int:
    """Where a note would stand that follows these ids."""
    names = ["Pitch_1", "Velocity_127", "Duration_0.1.24"]
    if tokenizer.name == "midilike":
        names = ["NoteOn_1", "Velocity_127", "TimeShift_1.0.24", "NoteOff_1"]
    vocab = tokenizer.wrapped.vocab
    lead = ["Program_127"]  # which no piece of the corpora has
    marked = tokenizer.decode([*ids, *(vocab[name] for name in lead + names)])
    return next(int(t.notes[-1].time) for t in marked.tracks if t.program == 127 and not t.is_drum)


def places(ids: list[int], n: int) -> list[int]:
    return sorted({int(p) for p in np.linspace(0, len(ids) - 1, n + 2)[1:-1]})


def check_law(tokenizer: MidiTokenizer, ids: list[int], first: int) -> int | None:
    """A window is the whole from the next bar line on; gives the line, None where there is none."""
    start, header = tokenizer.window(ids, first)
    whole, window = tokenizer.decode(ids), tokenizer.decode(header + ids[start:])
    lines = list(bar_lines(whole, whole.end() + 1))
    if tokenizer.name == "remi":
        bars = [i for i, id in enumerate(ids) if tokenizer.expansions[id][0] == "Bar_None"]
        assert (start in bars and start >= first) or (start == first > bars[-1])
        if start not in bars:
            return None
        assert not any(first <= bar < start for bar in bars)
        line = time_behind(tokenizer, [*ids[:start], tokenizer.wrapped.vocab["Bar_None"]])
    else:
        reached = time_behind(tokenizer, ids[: max(0, first - 1)])
        if not header and start == first:
            # no id that goes on to another bar, but maybe the last
            assert first == 0 or not any(reached < line <= time_behind(tokenizer, ids[:-1]) for line in lines)
            return None
        assert start >= first
        line = time_behind(tokenizer, ids[:start]) - time_behind(tokenizer, header)
        assert reached < line
        skipped = next(at for at in lines if at > reached)
        if tokenizer.name != "structured":  # where a line may be further from the next note than one shift can say
            assert not any(skipped <= note[0] < line for note in notes_of(whole))
    assert line in lines
    expected = [
        (max(onset, line) - line, end - line, *rest)
        for onset, end, *rest in notes_of(whole)
        if onset >= line or (tokenizer.name == "midilike" and end > line)
    ]
    assert notes_of(window) == sorted(expected)
    for events in (tempos, metres):
        for time in {line, *(at for at, _ in events(whole) if at > line)}:
            assert in_force(events(window), time - line) == in_force(events(whole), time)
    return line


def test_a_window_is_the_whole_from_a_bar_line_on(tokenizer: MidiTokenizer, corpora: list[Path]) -> None:
    found = 0
    scores = small(corpora)
    if tokenizer.name == "midilike":  # which miditok decodes slowly
        scores = scores[::3]
    for score in scores:
        ids = tokenizer.encode(score)
        lines = [check_law(tokenizer, ids, first) for first in places(ids, 6)]
        assert [line for line in lines if line is not None] == sorted(line for line in lines if line is not None)
        found += sum(line is not None for line in lines)
    assert found > 4 * len(scores)


@pytest.mark.parametrize("name", ["timesig_5_8_7_8_11_16", "timesig_300_changes"])
def test_bars_are_counted_from_the_change_of_metre(tokenizer: MidiTokenizer, shared: Path, name: str) -> None:
    (score,), _ = midi.read_scores(shared / "hard" / "synthetic" / f"{name}.mid")
    for onset in range(0, score.end(), score.ticks_per_quarter // 4):  # so that there is music in every bar
        score.tracks[0].notes.append(symusic.Note(onset, score.ticks_per_quarter // 8, 72, 63))
    ids = tokenizer.encode(score)
    assert any(check_law(tokenizer, ids, first) is not None for first in places(ids, 12))


def test_an_end_without_a_beginning_closes_no_later_note() -> None:
    tokenizer = MidiTokenizer.new("midilike")
    names = "Program_3 NoteOff_60 NoteOn_60 Velocity_63 NoteOff_62 NoteOff_59 TimeShift_4.0.12 NoteOff_60".split()
    ids = [tokenizer.wrapped.vocab[name] for name in names]
    start, header = tokenizer.window(ids, 2)
    assert start == 7
    assert [tokenizer.expansions[id][0] for id in header] == ["Program_3", "NoteOn_60", "Velocity_63"]


def test_a_window_of_a_window_is_one_of_the_whole(tokenizer: MidiTokenizer, corpora: list[Path]) -> None:
    for score in small(corpora)[::5]:
        ids = tokenizer.encode(score)
        start, header = tokenizer.window(ids, len(ids) // 3)
        window = header + ids[start:]
        assert tokenizer.window(window, 0)[1] in ([], header)
        for first in places(window, 3):
            if first > len(header):
                check_law(tokenizer, window, first)
                there, said = tokenizer.window(window, first)
                again, stated = tokenizer.window(ids, first - len(header) + start)
                assert (there - len(header) + start, said) == (again, stated)


def test_documents_behind_each_other_are_kept_apart(tokenizer: MidiTokenizer, corpora: list[Path]) -> None:
    one, other = (tokenizer.encode(score) for score in small(corpora)[:2])
    bos, eos, pad = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    stream = [pad, bos, *one, eos, bos, *other, eos]
    for first in places(one, 4):
        start, header = tokenizer.window(one, first)
        assert tokenizer.window(stream, first + 2) == (start + 2, header)
        assert tokenizer.window(np.array(stream, dtype=np.uint16), first + 2) == (start + 2, header)
    behind = len(one) + 4
    for first in places(other, 4):
        start, header = tokenizer.window(other, first)
        assert tokenizer.window(stream, first + behind) == (start + behind, header)
    assert tokenizer.window(stream, len(one) + 1) == (len(one) + 2, [])  # no bar line is left before the end
    assert tokenizer.window(one, len(one) - 1) == (len(one) - 1, [])
    assert tokenizer.window(one, len(one)) == (len(one), [])
    assert tokenizer.window(stream, 0)[1] == []


def test_any_ids_have_windows(tokenizer: MidiTokenizer) -> None:
    random = np.random.default_rng(5)
    for _ in range(300):
        ids = random.integers(0, tokenizer.vocab_size, int(random.integers(1, 200)))
        first = int(random.integers(0, len(ids)))
        start, header = tokenizer.window(ids, first)
        assert first <= start < len(ids)
        assert all(0 <= id < tokenizer.vocab_size for id in header)
        tokenizer.decode(header + ids[start:].tolist())


def test_headers_are_in_base_ids_which_learning_does_not_change(tokenizer: MidiTokenizer) -> None:
    for token, id in tokenizer.wrapped.vocab.items():
        assert tokenizer.expansions[id] == (token,)


def test_the_header_says_metre_tempo_open_notes_time_and_program() -> None:
    score = symusic.Score(480)
    score.time_signatures.append(symusic.TimeSignature(0, 3, 4))
    score.tempos.append(symusic.Tempo(0, 100))
    notes = {
        (40, False): [(0, 2400, 60), (960, 600, 64), (1920, 480, 65)],
        (7, False): [(960, 960, 50), (1920, 480, 51), (2000, 100, 51)],
        (0, True): [(960, 900, 36)],
    }
    for (program, is_drum), played in notes.items():
        score.tracks.append(symusic.Track(program=program, is_drum=is_drum))
        for onset, duration, pitch in played:
            score.tracks[-1].notes.append(symusic.Note(onset, duration, pitch, 63))

    def header(scheme: str) -> str:
        tokenizer = MidiTokenizer.new(scheme)
        return " ".join(tokenizer.expansions[id][0] for id in tokenizer.window(tokenizer.encode(score), 5)[1])

    assert header("remi") == "Tempo_100.0 Program_-1"
    assert header("tsd") == "TimeSig_3/4 Tempo_100.0 TimeShift_1.0.24 Program_-1"
    assert header("midilike") == (
        "TimeSig_3/4 Tempo_100.0 Program_7 NoteOn_50 Velocity_63 Program_40 NoteOn_60 Velocity_63 NoteOn_64 "
        "Velocity_63 Program_-1 DrumOn_36 Velocity_63 TimeShift_0.6.24"
    )
    assert header("structured") == "TimeShift_0.0.1"


def test_a_vocabulary_with_tokens_of_unknown_meaning_begins_anywhere(corpora: list[Path]) -> None:
    config = miditok.TokenizerConfig(
        use_programs=True, use_rests=True, beat_res_rest={(0, 4): 8}, special_tokens=["PAD", "BOS", "EOS"]
    )
    tokenizer = MidiTokenizer(miditok.TSD(config))
    ids = tokenizer.encode(small(corpora)[0])
    assert tokenizer.window(ids, 50) == (50, [])
