"""Whatever is sampled under the grammar is well formed and is what was asked for, judged by a replay of its own.

The models here are randomly initialised, the worst case. `--ids` says how many ids are sampled of each kind of
tokenizer; `make fuzz` asks for 100,000.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import symusic
import torch
from replay import Note, Played, read_back, replay
from symusic.core import (
    NoteTick,
    NoteTickList,
    ScoreTick,
    TempoTick,
    TempoTickList,
    TimeSignatureTick,
    TimeSignatureTickList,
    TrackTick,
)

from musicgpt import midi
from musicgpt.compose import LanguageModel, Piece
from musicgpt.constraints import Constraints
from musicgpt.errors import InputError, MusicGPTError, UsageError
from musicgpt.grammar import Grammar
from musicgpt.marks import DRUMS
from musicgpt.midi_tokenizer import SCHEMES, MidiTokenizer
from musicgpt.model import GPT, GPTConfig
from musicgpt.phrases import PHRASES, read_phrase
from musicgpt.request import Row
from musicgpt.state import State
from musicgpt.vocabulary import Base, Kind, Vocabulary

KINDS = [scheme + learned for scheme in SCHEMES for learned in ("", "+bpe")]
CONSTRAINTS: dict[str, list[Any]] = {
    "tempo": ["96"],
    "time_signature": ["6/8", "7/8"],
    "instruments": ["piano,cello", "drums,strings"],
    "scale": ["D minor", "C major pentatonic"],
    "chords": ["Am F C", "F7 Adim N.C."],
    "pitch_range": ["C3-C6", "C4-C4"],
    "max_polyphony": [1, 4],
    "max_notes_per_beat": [1, 4],
    "max_bar_repeats": [1],
    "track": [("0:pitch-range=C4-C6",), ("0:max-polyphony=1",)],
}


@pytest.fixture(scope="session")
def models(folk_books: Path) -> Iterator[Any]:
    """A tokenizer of each kind with a small random model; learned vocabularies come from music of all sorts."""
    kept: dict[str, LanguageModel] = {}
    shared = Path(__file__).parents[2] / "shared" / "data" / "corpora"
    files = [path for folder in sorted(shared.glob("*")) for path in sorted(folder.rglob("*.mid"))[:12]]
    book = folk_books / "airdsAirs" / "book1.abc"

    def model(kind: str) -> LanguageModel:
        if kind not in kept:
            tokenizer = MidiTokenizer.new(kind.removesuffix("+bpe"))
            if kind.endswith("+bpe"):
                scores = [midi.read_scores(path)[0][0] for path in files] or midi.read_scores(book)[0]
                tokenizer.learn(scores, tokenizer.vocab_size + 1500)
            torch.manual_seed(0)
            gpt = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=256, n_embd=32, n_layer=2, n_head=2))
            kept[kind] = LanguageModel(gpt, tokenizer)
        return kept[kind]

    return model


@pytest.fixture(scope="session")
def prompts(shared: Path) -> list[ScoreTick]:
    """The beginnings of real pieces of every corpus, and our own phrases in odd metres."""
    pieces = []
    for folder in sorted((shared / "corpora").iterdir()):
        for path in sorted(folder.rglob("*.mid"))[::11][:3]:
            score, _ = midi.cut(midi.read_scores(path)[0][0], 400)
            pieces.append(score)
    return pieces


def spelled(model: LanguageModel, ids: Iterable[int]) -> list[str]:
    special = {model.tokenizer.bos_id, model.tokenizer.eos_id}
    return [token for id in ids if id not in special for token in model.tokenizer.expansions[id]]


def play(model: LanguageModel, piece: Piece) -> tuple[Played, list[Note]]:
    """The replay of a piece, and its new notes; nothing behind the prompt breaks a rule."""
    before = len(spelled(model, piece.prompt_ids))
    played = replay(model.tokenizer.name, spelled(model, piece.prompt_ids + piece.new_ids), strict=not before)
    assert not [breach for breach in played.breaches if breach.position >= before]
    line = Fraction(piece.boundary).limit_denominator(1000)
    return played, [note for note in played.notes if note.onset >= line]


def rank(note: Note) -> int:
    return DRUMS if note.program == -1 else note.program


def check_length(piece: Piece, played: Played, bars: int | None, seconds: float | None) -> None:
    """The closing line is `bars` bars, by the metres as they were played, or about `seconds` behind the boundary."""
    begin, end = (Fraction(x or 0).limit_denominator(1000) for x in (piece.boundary, piece.end))
    if bars is not None:
        count, line = 0, begin
        while line < end:
            n, d = next(((n, d) for time, n, d in reversed(played.metres) if time <= line), (4, 4))
            line += Fraction(4 * n, d)
            count += 1
        assert (line, count) == (end, bars)
    if seconds is not None:
        tempos = [(float(time), bpm) for time, bpm in played.tempos] or [(0.0, 120.0)]
        edges = sorted({float(begin), float(end), *(t for t, _ in tempos if begin < t < end)})
        total = 0.0
        for a, b in itertools.pairwise(edges):
            bpm = [bpm for time, bpm in tempos if time <= a][-1]
            total += (b - a) * 60 / bpm
        assert abs(total - seconds) <= 60 / bpm


def check_constraints(asked: dict[str, Any], piece: Piece, played: Played, new: list[Note]) -> None:
    constraints = Constraints(**asked)
    line = Fraction(piece.boundary).limit_denominator(1000)
    order: list[int] = []
    for note in played.notes:
        if note.onset < line and rank(note) not in order:
            order.append(rank(note))
    order = list(constraints.programs or order)
    lines = bar_lines(piece, played, new)
    for note in new:
        if constraints.programs is not None:
            assert rank(note) in constraints.programs
        if "scale" in asked and rank(note) != DRUMS:
            steps = {"D minor": {2, 4, 5, 7, 9, 10, 0}, "C major pentatonic": {0, 2, 4, 7, 9}}[asked["scale"]]
            assert note.pitch % 12 in steps
        if "chords" in asked and rank(note) != DRUMS:
            assert note.pitch % 12 in fitting(asked["chords"], note, lines, played, strict=False)[1], note
        if "pitch_range" in asked and rank(note) != DRUMS:
            low, high = {"C3-C6": (48, 84), "C4-C4": (60, 60)}[asked["pitch_range"]]
            assert low <= note.pitch <= high
        if asked.get("track") == ("0:pitch-range=C4-C6",) and rank(note) == order[0] != DRUMS:
            assert 60 <= note.pitch <= 84
    onsets = sorted({note.onset for note in new})

    def sounding(time: Fraction, of: list[Note]) -> int:
        return sum(note.onset <= time < note.onset + note.duration for note in of)

    if "max_polyphony" in asked:
        assert max(sounding(time, new) for time in onsets) <= asked["max_polyphony"]
    if asked.get("track") == ("0:max-polyphony=1",):
        mine = [note for note in new if rank(note) == order[0]]
        assert all(sounding(note.onset, mine) == 1 for note in mine)
    if "max_notes_per_beat" in asked:
        beats: Counter[Fraction] = Counter()
        for note in new:
            begin, _, d = next((m for m in reversed(played.metres) if m[0] <= note.onset), (Fraction(0), 4, 4))
            beat = Fraction(4, d)
            beats[begin + (note.onset - begin) // beat * beat] += 1
        assert max(beats.values()) <= asked["max_notes_per_beat"]
    if "tempo" in asked:
        assert {bpm for time, bpm in played.tempos if time >= line} <= {96.0}
        assert [bpm for time, bpm in played.tempos if time <= line][-1] == 96.0
    if "time_signature" in asked:
        n, d = map(int, asked["time_signature"].split("/"))
        assert [m[1:] for m in played.metres if m[0] <= line][-1] == (n, d)
        assert {m[1:] for m in played.metres if m[0] >= line} <= {(n, d)}
    if "max_bar_repeats" in asked:
        assert longest_run(bar_lines(piece, played, new), played.notes) <= asked["max_bar_repeats"]


TONES = {
    "Am": {9, 0, 4},
    "C": {0, 4, 7},
    "E7": {4, 8, 11, 2},
    "F": {5, 9, 0},
    "F7": {5, 9, 0, 3},
    "Adim": {9, 0, 3},
}
SCALE = {"Am F C": {0, 2, 4, 5, 7, 9, 11}, "F7 Adim N.C.": {0, 2, 3, 5, 7, 9, 10}, "Am E7 N.C.": {0, 2, 4, 5, 7, 9, 11}}
"""C major, B flat major: the scales that hold most of these chords."""


def is_strong(since_line: Fraction, n: int, d: int) -> bool:
    """Of an onset in quarter notes behind its bar line, in n/d."""
    beat = Fraction(4, d)
    every = 3 if n in (6, 9, 12) else n // 2 if n % 2 == 0 else n
    return since_line % (every * beat) < beat / 4


def fitting(
    chords: str, note: Note, lines: list[Fraction], played: Played, *, strict: bool
) -> tuple[set[int], set[int]]:
    """The pitch classes of the chord where a note begins, and those that the note may have."""
    bar = max(i for i, line in enumerate(lines) if line <= note.onset)
    chord = TONES.get(chords.split()[bar % len(chords.split())], set())
    n, d = next(((n, d) for time, n, d in reversed(played.metres) if time <= note.onset), (4, 4))
    if chord and (strict or is_strong(note.onset - lines[bar], n, d)):
        return chord, chord
    return chord, chord | SCALE[chords]


@cache
def phrased(kind: str) -> LanguageModel:
    """With `+bpe` of the phrases that ship: few, so that learned ids are long, and cross bar lines."""
    tokenizer = MidiTokenizer.new(kind.removesuffix("+bpe"))
    if kind.endswith("+bpe"):
        tokenizer.learn([read_phrase(name)[0] for name in PHRASES], tokenizer.vocab_size + 1000)
    return LanguageModel(models_of(tokenizer), tokenizer)


def wander(model: LanguageModel, grammar: Grammar, seed: int) -> Piece:
    """A piece in which each kind of token comes as often as the others, learned ids rather, and short pauses."""
    v, choice, row = model.vocabulary, np.random.default_rng(seed), Row(grammar)
    while not row.ended:
        allowed = np.flatnonzero(grammar.mask(row.state))
        kinds = v.first[allowed]
        likely = (kinds == choice.choice(np.unique(kinds))) * v.size[allowed] ** 2 / (1 + v.advance[allowed])
        id = int(choice.choice(allowed, p=likely / likely.sum()))
        row.take(id, grammar.advance(row.state, id), None)
    row.close()
    assert row.reached
    assert not row.stuck
    begin, end = (tick / v.ticks_per_quarter for tick in (grammar.boundary, grammar.end(row.state) or 0))
    return Piece(grammar.prompt_ids, [*grammar.prelude, *row.ids], True, model.tokenizer, begin, end)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_notes_are_of_the_chord_of_their_bar(kind: str, strict: bool) -> None:
    """In 4/4, 3/4, 6/8, 7/8, and in one octave, where chords are few notes; what is left free is used."""
    model, chords = phrased(kind), "Am E7 N.C."
    begun: Counter[str] = Counter()
    for i, prompt in enumerate(("reel", "waltz", "jig", "ruchenitsa") * 3):
        few = {"instruments": "piano,cello", "pitch_range": "C4-B4"}
        asked = {"instruments": "piano,cello,drums"} if i % 3 else few
        length: dict[str, Any] = {"bars": 14} if i % 2 else {"seconds": 30.0}
        constraints = Constraints(chords=chords, chords_strict=strict, **asked)
        piece = wander(model, Grammar(model.vocabulary, model.prompt_ids(prompt), constraints, **length), i)
        played, new = play(model, piece)
        check_length(piece, played, length.get("bars"), length.get("seconds"))
        lines = bar_lines(piece, played, new)
        for note in new:
            chord, allowed = fitting(chords, note, lines, played, strict=strict)
            fits = note.pitch % 12 in allowed
            if rank(note) == DRUMS:
                begun["drums that do not fit"] += not fits
            else:
                assert fits, note
                begun["notes"] += 1
                begun["off the chord"] += bool(chord) and note.pitch % 12 not in chord
                begun["without a chord"] += not chord
    assert begun["drums that do not fit"]
    assert begun["without a chord"]
    assert bool(begun["off the chord"]) is not strict
    assert begun["notes"] > 100


def bar_lines(piece: Piece, played: Played, new: list[Note]) -> list[Fraction]:
    """Of the new music, to its closing line, or the line behind its last onset."""
    line = Fraction(piece.boundary).limit_denominator(1000)
    last = max(note.onset for note in new)
    end = last if piece.end is None else Fraction(piece.end).limit_denominator(1000)
    lines = [line]
    while lines[-1] < end or (piece.end is None and lines[-1] == end):
        n, d = next(((n, d) for time, n, d in reversed(played.metres) if time <= lines[-1]), (4, 4))
        lines.append(lines[-1] + Fraction(4 * n, d))
    return lines


def longest_run(lines: list[Fraction], notes: list[Note]) -> int:
    """How often the same bar comes in a row; one into which a note rings and nothing begins is like no other."""
    contents: list[object] = []
    for number, (a, b) in enumerate(itertools.pairwise(lines)):
        begun = frozenset((note.onset - a, note.pitch, note.program) for note in notes if a <= note.onset < b)
        rings = any(note.onset < a < note.onset + note.duration for note in notes)
        contents.append(number if rings and not begun else begun)
    return max(len(list(run)) for _, run in itertools.groupby(contents))


def options_of(kind: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Structured writes neither tempo nor metre: refused, and left out here."""
    if kind.startswith("structured"):
        return {name: value for name, value in asked.items() if name not in ("tempo", "time_signature")}
    return asked


@pytest.mark.parametrize("kind", KINDS)
def test_of_all_that_is_sampled_nothing_is_ill_formed(
    kind: str, models: Any, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    model = models(kind)
    wanted, sampled, seed = pytestconfig.getoption("--ids"), 0, 0
    lengths: list[dict[str, Any]] = [{"max_new_tokens": 700}, {"bars": 8}, {"seconds": 20}]
    while sampled < wanted:
        length = lengths[seed % 3] | ({} if seed % 3 == 0 else {"max_new_tokens": 700})
        for piece in model.generate_many(4, seed=seed, temperature=2.0, top_k=None, **length):
            played, new = play(model, piece)
            tokens = spelled(model, piece.new_ids)
            assert model.tokenizer.wrapped._tokens_errors(tokens) == 0
            assert new
            assert not played.open
            sampled += len(piece.new_ids)
            path = tmp_path / "piece.mid"
            piece.save(path)
            read = read_back(path)
            assert read["symusic"] == read["mido"] == read["pretty_midi"]
            unit = piece.score.ticks_per_quarter
            assert sorted((n.onset * unit, (n.onset + n.duration) * unit, n.pitch, n.velocity) for n in new) == sorted(
                (n.onset_ticks, n.end_ticks, n.pitch, n.velocity) for n in read["mido"]
            )
        seed += 1


@pytest.mark.parametrize(
    "names", [*((name,) for name in CONSTRAINTS), *itertools.combinations(CONSTRAINTS, 2)], ids="+".join
)
def test_every_constraint_holds_alone_and_with_every_other(
    names: tuple[str, ...], models: Any, prompts: list[ScoreTick], pytestconfig: pytest.Config
) -> None:
    choice = random.Random("+".join(names))
    kinds = choice.sample(KINDS, 4 if len(names) == 1 else 1)
    for kind in kinds:
        model = models(kind)
        every = list(itertools.product(*(CONSTRAINTS[name] for name in names)))
        # of a pair each kind of tokenizer takes another of the combinations; `make fuzz` takes all
        thorough = len(names) == 1 or pytestconfig.getoption("--ids") >= 100_000
        for values in every if thorough else choice.sample(every, 1):
            asked = options_of(kind, dict(zip(names, values, strict=True)))
            prompt = choice.choice([None, *prompts]) if "track" not in asked else choice.choice(prompts)
            length = choice.choice([{"bars": 2}, {"seconds": 4.0}, {"max_new_tokens": 150}])
            piece = model.generate(
                prompt, prompt_bars=2, seed=choice.randrange(10**6), temperature=2.0, top_k=None, **length, **asked
            )
            played, new = play(model, piece)
            assert new
            check_constraints(asked, piece, played, new)
            check_length(piece, played, length.get("bars"), length.get("seconds"))


def ends(models: Any, pytestconfig: pytest.Config) -> tuple[list[int], list[float]]:
    if pytestconfig.getoption("--ids") >= 100_000:
        return list(range(1, 65)), [float(s) for s in range(1, 121)]
    return [1, 2, 3, 7, 16, 64], [1.0, 2.5, 10.0, 120.0]


@pytest.mark.parametrize("kind", KINDS)
def test_bars_and_seconds_are_exact_on_real_prompts(
    kind: str, models: Any, prompts: list[ScoreTick], pytestconfig: pytest.Config
) -> None:
    """In 4/4, 3/4, 6/8, 7/8 and with changes of metre."""
    model = models(kind)
    changing = [score for score in prompts if len({(s.numerator, s.denominator) for s in score.time_signatures}) > 1]
    given = ["reel", "waltz", "jig", "ruchenitsa", *changing[:2]]
    assert len(given) == 6
    bars, seconds = ends(models, pytestconfig)
    for i, (length, value) in enumerate([*(("bars", n) for n in bars), *(("seconds", s) for s in seconds)]):
        prompt = given[(i + KINDS.index(kind)) % len(given)]  # so that each length meets each prompt in some kind
        asked: dict[str, Any] = {length: value, "instruments": "piano", "max_notes_per_beat": 2}
        piece = model.generate(prompt, seed=i, temperature=1.5, top_k=None, **asked)
        played, new = play(model, piece)
        assert new
        assert piece.end is not None
        assert max(note.onset + note.duration for note in new) <= Fraction(piece.end).limit_denominator(1000)
        check_length(piece, played, value if length == "bars" else None, value if length == "seconds" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learned_id_is_legal_only_where_its_whole_expansion_is(kind: str, models: Any) -> None:
    """Against walking through base tokens one at a time; and hardly any id is left out that might be offered."""
    model = models(kind)
    vocabulary = Vocabulary(model.tokenizer)
    base = vocabulary.id_of
    choice = random.Random(kind)
    missed = offered = 0
    for seed in range(6):
        asked: dict[str, Any] = [{}, {"bars": 3}, {"seconds": 9.0}][seed % 3]
        given = [{}, {"scale": "D minor", "pitch_range": "C3-C6"}, {"chords": "Am E7", "chords_strict": seed == 5}]
        constraints = Constraints(**given[seed // 2])
        grammar = Grammar(vocabulary, (), constraints, **asked)
        random_ids = np.random.default_rng(seed)
        state = grammar.begin
        for _ in range(60):
            mask = grammar.mask(state)
            for id in choice.sample(range(len(vocabulary)), 60):
                if vocabulary.tokens[id][0].kind == 0 or grammar.advance(state, id).ended:
                    continue
                legal = walks(grammar, state, [base.get(token) for token in vocabulary.tokens[id]])
                assert legal or not mask[id], (state, model.tokenizer.expansions[id])
                offered += legal
                missed += legal and not mask[id]
            following = grammar.advance(state, int(random_ids.choice(np.flatnonzero(mask))))
            if following.ended:
                break
            state = following
    assert offered > 300
    assert missed <= 0.02 * offered


def walks(grammar: Grammar, state: State, ids: list[int | None]) -> bool:
    for id in ids:
        if id is None or not grammar.mask(state)[id]:
            return False
        state = grammar.advance(state, id)
        if state.ended:
            return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_clean_real_music_is_legal(kind: str, models: Any, corpora: list[Path]) -> None:
    """What the model learns from may be sampled: real pieces without overlapping notes, by the ids encode gives."""
    from test_replay import clean

    model = models(kind)
    vocabulary = Vocabulary(model.tokenizer)
    for path in corpora[::4]:
        score = midi.read_scores(path)[0][0]
        if score.note_num() > 2500:
            continue
        ids = model.tokenizer.encode(clean(model.tokenizer, score))[:1500]
        grammar = Grammar(vocabulary)
        state = grammar.begin
        for i, id in enumerate(ids):
            assert grammar.mask(state)[id] or not vocabulary.ok[id], (path, i, model.tokenizer.expansions[id], state)
            state = grammar.advance(state, id)


def test_every_hard_file_is_a_prompt_or_refused_in_one_line(shared: Path, models: Any) -> None:
    """Continued by a bar of random music in each scheme; nothing hangs, and the new part is well formed."""
    accepted = 0
    refusals: list[str] = []
    for number, path in enumerate(sorted(path for path in (shared / "hard").rglob("*") if path.is_file())):
        model = models(KINDS[number % len(KINDS)])
        try:
            piece = model.generate(path, prompt_bars=8, bars=1, max_new_tokens=400, seed=1)
        except InputError as error:
            refusals.append(str(error))
            continue
        play(model, piece)
        accepted += 1
    assert accepted > 200
    assert all(refusals)
    assert not [text for text in refusals if "\n" in text]


def test_what_a_tokenizer_cannot_express_is_refused(models: Any) -> None:
    for asked, message in (
        ({"tempo": "96"}, "structured writes no tempo"),
        ({"time_signature": "3/4"}, "structured writes 4/4 only"),
    ):
        with pytest.raises(UsageError, match=message):
            models("structured").generate(bars=1, **asked)
    remarks: list[str] = []
    models("remi").generate(bars=1, tempo="97", report=remarks.append)
    assert remarks == ["tempo 97 to 96"]


def test_no_more_instruments_than_channels(models: Any) -> None:
    piece = models("tsd").generate(max_new_tokens=3000, temperature=2.0, top_k=None, seed=1)
    programs = {track.program for track in piece.score.tracks if not track.is_drum}
    assert len(programs) == 15


def test_states_are_immutable_and_can_be_gone_back_to(models: Any) -> None:
    vocabulary = Vocabulary(models("remi+bpe").tokenizer)
    grammar = Grammar(vocabulary)
    state = grammar.begin
    with pytest.raises(AttributeError):
        state.bar = 3  # type: ignore[misc]
    before = grammar.mask(state).copy()
    for id in np.flatnonzero(before)[:5]:
        grammar.advance(grammar.advance(state, int(id)), int(id))
    assert (grammar.mask(state) == before).all()


class Stubborn:
    """Chooses what it likes most of what it may: always the same note, and then the next bar."""

    def __init__(self, vocabulary: Vocabulary, step: int, pitch: int) -> None:
        bases = [
            Base(Kind.METRE, vocabulary.metres.index((4, 4))),
            Base(Kind.POSITION, step),
            Base(Kind.TEMPO, 120.0),
            Base(Kind.PROGRAM, 0),
            Base(Kind.ON, pitch),
        ]
        self.bar = vocabulary.id_of.get(Base(Kind.BAR), vocabulary.id_of.get(Base(Kind.SHIFT, 96)))
        self.shifts = [vocabulary.id_of[Base(Kind.SHIFT, steps)] for steps in reversed(vocabulary.shifts)]
        self.liked = [vocabulary.id_of[base] for base in bases if base in vocabulary.id_of]

    def choose(self, mask: np.ndarray, state: State) -> int:
        if state.content and self.bar is not None and mask[self.bar]:
            return self.bar
        wishes = [*self.liked, *(self.shifts if state.content else ())]
        return int(next((id for id in wishes if mask[id]), np.flatnonzero(mask)[0]))


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("pitches", ["C4-C4", "C4-D4", None])
def test_the_same_bar_does_not_come_too_often(kind: str, most: int, pitches: str | None) -> None:
    """On a known distribution, the most stubborn one; REMI alone would play one bar for ever."""
    vocabulary = Vocabulary(MidiTokenizer.new(kind))
    for step in (0, 95):
        constraints = Constraints(max_bar_repeats=most, instruments="0", pitch_range=pitches)
        grammar = Grammar(vocabulary, (), constraints, bars=12)
        stubborn, state, ids = Stubborn(vocabulary, step, 60), grammar.begin, []
        while True:
            id = stubborn.choose(grammar.mask(state), state)
            following = grammar.advance(state, id)
            if following.ended:
                break
            ids.append(id)
            state = following
            assert len(ids) < 10_000
        assert id != vocabulary.eos_id, "the end token is what is left where nothing may follow"
        names = [base for id in [*ids, *grammar.closing(state)] for base in tokens_of(kind)[id]]
        played = replay(kind, names)
        end = grammar.end(state)
        assert end is not None
        lines = [Fraction(4 * bar) for bar in range(13)] if kind != "remi" else [*played.bars]
        assert len(lines) <= 13
        run = longest_run(lines, played.notes)
        assert run <= most
        if kind == "remi" and pitches is None:
            assert run == most


def tokens_of(kind: str) -> dict[int, tuple[str, ...]]:
    return dict(enumerate(MidiTokenizer.new(kind).expansions))


@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_ends_in_its_last_bar_and_never_for_want_of_ids(kind: str, models: Any) -> None:
    """The id that ends it is sampled in the last bar, and steps over the line."""
    model = models(kind)
    for seed in range(3):
        asked = options_of(kind, {"time_signature": "4/4", "instruments": "piano"})
        stream = model.stream(bars=12, seed=seed, top_k=None, **asked)
        for _ in stream.steps():
            pass
        row = stream.rows[0]
        stream.piece()
        assert row.reached
        assert not row.stuck
        if kind.startswith("remi"):
            assert row.state.bar == 11


@pytest.mark.parametrize("kind", SCHEMES)
def test_a_change_on_the_closing_line_of_a_prompt_is_overruled(kind: str, models: Any) -> None:
    """Four quarters, and on the bar line behind them another tempo and metre."""
    score = ScoreTick(96)
    score.tempos = TempoTickList([TempoTick(0, 500_000), TempoTick(384, 1_000_000)])
    score.time_signatures = TimeSignatureTickList([TimeSignatureTick(0, 4, 4), TimeSignatureTick(384, 3, 4)])
    track = TrackTick()
    track.notes = NoteTickList([NoteTick(96 * i, 96, 60 + i, 80) for i in range(4)])
    score.tracks.append(track)
    for asked in ({}, {"tempo": "200", "time_signature": "2/4"}, {"tempo": "any", "time_signature": "6/8"}):
        for seed in range(4):
            options = options_of(kind, asked) | {"bars": 2, "instruments": "any", "seed": seed, "top_k": None}
            piece = models(kind).generate(score, **options)
            played, _ = play(models(kind), piece)
            check_length(piece, played, 2, None)
            if kind != "structured" and asked.get("tempo") == "200":
                assert {bpm for time, bpm in played.tempos if time >= 4} == {200.0}


@pytest.mark.parametrize("kind", SCHEMES)
def test_behind_notes_of_one_pitch_that_overlap_nothing_leads_to_a_dead_end(kind: str, models: Any) -> None:
    """The first to begin is the last to end, in the new music; no other pitch may be played."""
    score = ScoreTick(96)
    track = TrackTick()
    track.notes = NoteTickList([NoteTick(0, 424, 60, 80), NoteTick(192, 200, 60, 80)])
    score.tracks.append(track)
    vocabulary = models(kind).vocabulary
    constraints = Constraints(instruments="piano", pitch_range="C4-C4")
    grammar = Grammar(vocabulary, models(kind).prompt_ids(score), constraints, bars=2)
    offered = [grammar.advance(grammar.begin, int(id)) for id in np.flatnonzero(grammar.mask(grammar.begin))]
    assert offered
    for state in offered:
        assert state.ended or grammar.mask(state).nonzero()[0].tolist() != [vocabulary.eos_id]


@pytest.mark.parametrize("kind", SCHEMES)
def test_a_stream_knows_its_seconds_through_changes_of_tempo(kind: str, models: Any, tmp_path: Path) -> None:
    asked = {} if kind == "structured" else {"tempo": "any"}
    for seed in range(4):
        stream = models(kind).stream("waltz", bars=6, include_prompt=False, seed=seed, top_k=None, **asked)
        notes = list(stream)
        stream.piece().save(tmp_path / "a.mid")
        score = symusic.Score(tmp_path / "a.mid").to(symusic.TimeUnit.second)
        onsets = sorted(note.time for track in score.tracks for note in track.notes)
        assert sorted(note.onset_seconds for note in notes) == pytest.approx(onsets, abs=1e-3)


@pytest.mark.parametrize("kind", SCHEMES)
def test_any_file_replays_itself(kind: str, models: Any, shared: Path, tmp_path: Path) -> None:
    model = models(kind)
    prompt = shared / "corpora" / "pop909" / "241.mid"  # with overlaps, which midilike pairs anew
    many = model.generate_many(2, prompt, prompt_bars=8, bars=1, seed=3, best_of=2)
    left = model.stream("jig", bars=40, seed=1, chords="Am F", chords_strict=True)
    assert list(itertools.islice(left, 3))
    whole = model.stream("jig", bars=2, seed=1)
    assert list(whole)
    for piece in (many[1], left.piece(), whole.piece()):
        piece.save(tmp_path / "a.mid")
        model.replay(tmp_path / "a.mid").save(tmp_path / "b.mid")
        assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()
    model.generate("jig", bars=2, seed=1).save(tmp_path / "b.mid")
    assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()


def test_the_best_of_rows_of_which_some_are_empty_has_notes(models: Any) -> None:
    for seed in range(4):
        assert models("tsd").generate(max_new_tokens=10, best_of=24, seed=seed, top_k=None).score.note_num()


def test_other_configurations_work_or_are_refused(tmp_path: Path, prompts: list[ScoreTick]) -> None:
    import miditok

    basic = {"special_tokens": ["PAD", "BOS", "EOS"], "use_programs": True}
    plain: list[dict[str, Any]] = [
        {},
        {"use_tempos": True, "num_tempos": 8},
        {"use_time_signatures": True, "num_velocities": 16},
        {"beat_res": {(0, 4): 8, (4, 12): 4}, "program_changes": True},
        {"beat_res": {(0, 4): 8, (4, 12): 6}},
        {"pitch_range": (60, 72)},
        {"additional_params": {"max_bar_embedding": 60}},
        {"use_note_duration_programs": [0, 1, 2]},
        {"use_rests": True},
    ]
    worked = 0
    for scheme, extra in itertools.product(SCHEMES.values(), plain):
        getattr(miditok, scheme)(miditok.TokenizerConfig(**basic, **extra)).save(tmp_path / "tokenizer.json")
        try:
            model = LanguageModel(models_of(MidiTokenizer.load(tmp_path)), MidiTokenizer.load(tmp_path))
            pieces = [model.generate(p, prompt_bars=4, bars=2, top_k=None) for p in (None, "jig")]
        except MusicGPTError:
            continue
        for piece in pieces:
            assert piece.score.note_num()
        worked += 1
    assert worked >= 20


def models_of(tokenizer: MidiTokenizer) -> GPT:
    return GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=256, n_embd=16, n_layer=1, n_head=1))


def test_errors_of_constraints_are_all_ours() -> None:
    for text in ("", "x", "C", "4", "4/", "-", "C4-", "0:", "0:scale", "99999", "ä", "\x00"):
        for name in ("tempo", "time_signature", "instruments", "scale", "chords", "pitch_range"):
            with suppress(MusicGPTError):  # and no other
                Constraints(**{name: text})
        with pytest.raises(MusicGPTError):
            Constraints(track=(text,))
