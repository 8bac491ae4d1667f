"""How well held-out bars are filled in: by models with and without exercises, and by copying the bars before.

    python benchmarks/infill.py CORPUS RUN [RUN ...] [--holes 100] [--json FILE]

CORPUS is what the runs were trained on: of its test pieces, one hole each of 1, 2, 4 or 8 bars in all tracks, with four
bars before and four behind at least. For each run:

bits per note of what was there, both sides given as in exercises (a run that had them), or the bars before alone;
then of what the model fills in from both sides, once and the likeliest of eight; by going on from before, of eight that
which makes the bars behind likeliest (which is how a model without exercises does it); and of the bars before, copied:
F1         of its notes against those that were there: same pitch and program, onset within 1/12 of a quarter note
pitches    how far the pitch classes of the first bar are from those before it, and of the last from those behind:
           half the sum of the differences of shares, 0 the same, 1 nothing in common
rhythm     the same of onsets in the bar, in sixteenths
One seed, means over the holes; the same of what was there stands beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from symusic.core import ScoreTick

import musicgpt
from musicgpt import midi
from musicgpt.constraints import Constraints
from musicgpt.corpus import find_files, resolve_corpus, split_of
from musicgpt.errors import MusicGPTError
from musicgpt.fill import FEWEST_GUESSES, Filler, Wanted
from musicgpt.generate import log_likelihood
from musicgpt.infill import Frames, emptied
from musicgpt.sampling import SamplingConfig

SIDE = 4
"""Bars on either side, at least."""

SAME_BEATS = 1 / 12

Event = tuple[float, int, int]
"""Onset in quarter notes from the first bar line of the hole, program, pitch."""


class Hole(NamedTuple):
    score: ScoreTick
    first: int
    bars: int

    @property
    def lines(self) -> midi.BarLines:
        return midi.BarLines(self.score)

    def events(self, first: int, bars: int) -> list[Event]:
        """What begins in these bars."""
        begin, end = self.lines.begin(first), self.lines.begin(first + bars)
        return [
            ((note.time - self.lines.begin(self.first)) / self.score.ticks_per_quarter, midi.rank_of(track), note.pitch)
            for track in self.score.tracks
            for note in track.notes
            if begin <= note.time < end
        ]


def holes(corpus: Path, count: int) -> Iterator[Hole]:
    random, found = np.random.default_rng(0), 0
    files = sorted(find_files(corpus))
    for i in random.permutation(len(files)):
        path = files[i]
        try:
            scores, _ = midi.read_scores(path)
        except MusicGPTError:
            continue
        for score in scores:
            last = midi.BarLines(score).bar_at(int(score.end()) - 1)
            bars = int(random.choice((1, 2, 4, 8)))
            if found == count or split_of(midi.fingerprint(score)) != "test" or last < 2 * SIDE + bars:
                continue
            hole = Hole(score, SIDE + 1 + int(random.integers(last - 2 * SIDE - bars + 1)), bars)
            if all(hole.events(bar, 1) for bar in range(hole.first - 1, hole.first + bars + 1)):
                found += 1
                yield hole


def f1(made: list[Event], there: list[Event]) -> float:
    left, hits = sorted(there), 0
    for onset, program, pitch in sorted(made):
        near = [event for event in left if event[1:] == (program, pitch) and abs(event[0] - onset) < SAME_BEATS]
        if near:
            left.remove(near[0])
            hits += 1
    return 2 * hits / max(1, len(made) + len(there))


def distance(a: list[Event], b: list[Event], what: str) -> float:
    def shares(events: list[Event]) -> Counter[int]:
        kinds = Counter(
            pitch % 12 if what == "pitches" else round(onset * 4) % 16
            for onset, program, pitch in events
            if what == "rhythm" or program < 128
        )
        return Counter({kind: count / kinds.total() for kind, count in kinds.items()})

    x, y = shares(a), shares(b)
    return 1.0 if not x or not y else sum(abs(x[kind] - y[kind]) for kind in x | y) / 2


def judged(hole: Hole, made: list[Event]) -> dict[str, float]:
    """`made` in the place of what was there; bars of one metre, as long as the first of the hole."""
    lines, quarter = hole.lines, hole.score.ticks_per_quarter
    bar = (lines.begin(hole.first + 1) - lines.begin(hole.first)) / quarter
    end = bar * hole.bars
    left, right = hole.events(hole.first - 1, 1), hole.events(hole.first + hole.bars, 1)
    inner = {"left": [e for e in made if e[0] < bar], "right": [e for e in made if e[0] >= end - bar]}
    found = {"F1": f1(made, hole.events(hole.first, hole.bars))}
    for what in ("pitches", "rhythm"):
        for side, outer in (("left", left), ("right", right)):
            placed = [((onset + 64 * bar) % bar, program, pitch) for onset, program, pitch in outer]
            own = [(onset % bar, program, pitch) for onset, program, pitch in inner[side]]
            found[f"{what} {side}"] = distance(placed, own, what)
    return found


def measure(run: str, given: list[Hole]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Bits per note of what was there, by what is given; and what is filled in, judged."""
    model = musicgpt.load(run)
    frames = Frames(model.midi_tokenizer, model.vocabulary)
    filler = Filler(model.model, model.engine, frames, SamplingConfig(), lambda text: None)
    ways = {"going on": (False, 1)}
    if filler.trained:
        ways |= {"both sides": (True, 1), f"both sides, best of {FEWEST_GUESSES}": (True, FEWEST_GUESSES)}
    model.engine.ready(60)
    bits: dict[str, float] = defaultdict(float)
    notes = 0
    judgements: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number, hole in enumerate(given):
        tracks = range(len(hole.score.tracks))
        begin, end = hole.lines.begin(hole.first), hole.lines.begin(hole.first + hole.bars)
        outside, inside = emptied(hole.score, begin, end, tracks)
        wanted = Wanted.read(hole.score, f"{hole.first}-{hole.first + hole.bars - 1}", (), Constraints())
        room = model.model.config.n_positions - 6 - len(wanted.programs)
        try:
            frame = frames.frame(outside, hole.first, hole.bars, room, inside)
        except MusicGPTError:  # of odd bars
            continue
        if frame is None or not frame.prefix:
            continue
        prompts = {"before": [model.tokenizer.bos_id, *frame.prefix]}
        if filler.trained:
            opening, between = frames.opening(frame, hole.bars, wanted.programs)
            prompts["both sides"] = [*opening, *frame.prefix, *between]
        there = hole.events(hole.first, hole.bars)
        notes += len(there)
        for name, prompt in prompts.items():
            loss = log_likelihood(model.model, [*prompt, *frame.middle], len(prompt)) * len(frame.middle)
            bits[name] -= loss / math.log(2)
        for way, (trained, takes) in ways.items():
            filler.trained = trained
            take, _ = filler.fill(hole.score, wanted, takes, number)[0]
            judgements[way].append(judged(hole, [(n.onset_beats, n.program, n.pitch) for n in take.notes]))
        filler.trained = "both sides" in ways
        shift = (begin - hole.lines.begin(max(1, hole.first - hole.bars))) / hole.score.ticks_per_quarter
        before = hole.events(max(1, hole.first - hole.bars), hole.bars)
        copied = [(onset + shift, program, pitch) for onset, program, pitch in before if onset + shift >= 0]
        judgements["copied"].append(judged(hole, copied))
        judgements["was there"].append(judged(hole, there))
        print(f"{run}: {number + 1} of {len(given)}", end="\r", file=sys.stderr)
    means = {
        way: {key: statistics.mean(each[key] for each in all_of_them) for key in all_of_them[0]}
        for way, all_of_them in judgements.items()
    }
    return {name: total / notes for name, total in bits.items()} | {"notes": notes}, means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("corpus")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--holes", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    given = list(holes(resolve_corpus(options.corpus, print), options.holes))
    results = {}
    for run in options.runs:
        bits, means = measure(run, given)
        results[run] = {"bits_per_note": bits, "filled": means}
        print(f"\n{run}, {len(given)} holes, {bits.pop('notes'):,.0f} notes\n")
        print("| given | bits per note |\n|---|---|")
        for name, value in bits.items():
            print(f"| {name} | {value:.2f} |")
        columns = list(next(iter(means.values())))
        print(f"\n| filled in | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
        for way, mean in means.items():
            print(f"| {way} | {' | '.join(f'{mean[key]:.2f}' for key in columns)} |")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
