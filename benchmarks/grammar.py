"""What the grammar gives and what it costs: one checkpoint, the same seeds, with the grammar and without.

    python benchmarks/grammar.py runs/pop909 [--vocabulary DIRECTORY]

Prints the share of ill-formed sequences (judged by tests/replay.py, which shares no code with the grammar), the ids a
second of both, the time to the first note, and the speed far into a piece. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from replay import IllFormed, read_back, replay

import musicgpt
from musicgpt.compose import LanguageModel
from musicgpt.constraints import Constraints
from musicgpt.cpu_engine import CpuEngine
from musicgpt.generate import generate
from musicgpt.grammar import Grammar, Mask
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.model import GPT, PRESETS, GPTConfig
from musicgpt.sampling import SamplingConfig
from musicgpt.state import State
from musicgpt.vocabulary import Vocabulary

IDS = 512
CHORDS = "Am F C G"


def from_nothing(
    model: LanguageModel,
    config: SamplingConfig,
    seed: int,
    ids: int,
    grammar: Grammar | None,
    eos_id: int | None = None,
) -> Iterator[int | None]:
    """The ids of one sequence, at most so many, to `eos_id` where one is given."""
    steps = generate(
        model.engine,
        [model.tokenizer.bos_id],
        config,
        max_new_tokens=ids,
        seed=seed,
        eos_id=eos_id,
        n_ids=model.tokenizer.vocab_size,
        guide=grammar,
        state=grammar.begin if grammar else None,
        window=model.tokenizer.window,
    )
    return (id for (id,), _ in steps)


def sampled(model: LanguageModel, config: SamplingConfig, seed: int, *, guided: bool) -> list[int]:
    """One sequence to the end token, without it, or to IDS ids."""
    grammar = Grammar(model.vocabulary) if guided else None
    eos_id = model.tokenizer.eos_id
    return [id for id in from_nothing(model, config, seed, IDS, grammar, eos_id) if id is not None and id != eos_id]


def faults(model: LanguageModel, ids: list[int]) -> dict[str, bool]:
    """What is wrong with a sequence, wherever it stops."""
    tokens = [token for id in ids for token in model.tokenizer.expansions[id]]
    strict = malformed = False
    try:
        strict = bool(replay(model.tokenizer.name, tokens, strict=False, ended=False).breaches)
    except IllFormed:
        malformed = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mid"
        score = model.tokenizer.decode(ids)
        model.tokenizer.write(score, path)
        read = read_back(path)
    return {
        "tokens in an order that cannot be played as written": malformed,
        "that, or a note begins while it sounds": malformed or strict,
        "three libraries read different notes": not (read["symusic"] == read["mido"] == read["pretty_midi"]),
        "no note": score.note_num() == 0,
    }


def shares(model: LanguageModel, n: int) -> None:
    print(f"{n} sequences of at most {IDS} ids each, seeds 0 to {n - 1}, top-k 40; share of them in which\n")
    columns: list[list[str]] = []
    rows: list[str] = []
    for temperature in (1.0, 1.3):
        for guided in (False, True):
            config = SamplingConfig(temperature=temperature)
            found = [faults(model, sampled(model, config, seed, guided=guided)) for seed in range(n)]
            rows = list(found[0])
            label = f"{'with' if guided else 'without'} grammar, temperature {temperature}"
            columns.append([label, *(f"{sum(each[row] for each in found) / n:.1%}" for row in rows)])
    for i, row in enumerate(["", *rows]):
        print("| " + " | ".join([row, *(column[i] for column in columns)]) + " |")
        if i == 0:
            print("|---" * (len(columns) + 1) + "|")


class Timed(Grammar):
    """Notes what it takes in place: behind a model that has just filled the caches with its weights."""

    def __init__(self, vocabulary: Vocabulary, constraints: Constraints) -> None:
        super().__init__(vocabulary, constraints=constraints, bars=10**6)
        self.milliseconds: list[float] = []
        """Of each id, a mask and an advance."""

    def mask(self, state: State) -> Mask:
        start = time.perf_counter()
        allowed = super().mask(state)
        self.milliseconds.append((time.perf_counter() - start) * 1000)
        return allowed

    def advance(self, state: State, id: int) -> State:
        start = time.perf_counter()
        following = super().advance(state, id)
        self.milliseconds[-1] += (time.perf_counter() - start) * 1000
        return following


def cost(model: LanguageModel, name: str, chords: str | None = None, rounds: int = 5, ids: int = 256) -> None:
    """Milliseconds an id with and without, in turn; and what of it the grammar itself takes."""
    config = SamplingConfig()
    times: dict[bool, list[float]] = {True: [], False: []}
    own: list[float] = []
    for seed in range(rounds):
        for guided in (True, False):
            grammar = Timed(model.vocabulary, Constraints(chords=chords)) if guided else None
            start = time.perf_counter()
            count = sum(1 for _ in from_nothing(model, config, seed, ids, grammar))
            times[guided].append((time.perf_counter() - start) / count * 1000)
            own += grammar.milliseconds if grammar else []
    with_it, without = (statistics.median(times[guided]) for guided in (True, False))
    middle, mean = statistics.median(own), statistics.mean(own)
    print(
        f"{name}, {model.tokenizer.vocab_size:,} ids: {with_it:.2f} ms an id with the grammar, {without:.2f} without; "
        f"mask and advance take {middle:.2f} ms (mean {mean:.2f}), {middle / with_it:.1%} of the former"
    )


def far(model: LanguageModel) -> None:
    """Ids a second around id 1,000 and around id 20,000 of one piece."""
    stream = model.stream(bars=10**6, max_new_tokens=20_600, seed=3)
    marks: dict[int, float] = {}
    for i, _ in enumerate(stream.steps(), 1):
        if i in (500, 1500, 19_500, 20_500):
            marks[i] = time.perf_counter()
            if i == 20_500:
                break
    early, late = 1000 / (marks[1500] - marks[500]), 1000 / (marks[20_500] - marks[19_500])
    print(f"ids a second around id 1,000: {early:.0f}, around id 20,000: {late:.0f}, ratio {late / early:.2f}")


def first_note(model: LanguageModel) -> None:
    seconds = []
    for seed in range(9):
        start = time.perf_counter()
        next(iter(model.stream("pop", bars=8, seed=seed)))
        seconds.append(time.perf_counter() - start)
    print(f"time to the first note behind the phrase `pop`: {statistics.median(seconds) * 1000:.0f} ms (median of 9)")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--vocabulary", type=Path, help="a tokenizer with a large learned vocabulary, for the cost")
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--only-cost", action="store_true", help="leave out the table")
    options = parser.parse_args()
    model = musicgpt.load(options.checkpoint)
    assert isinstance(model.engine, CpuEngine)
    model.engine.ready()
    if not options.only_cost:
        shares(model, options.n)
        print()
    model.vocabulary  # noqa: B018 made once a model
    cost(model, "this checkpoint")
    cost(model, f"this checkpoint, --chords '{CHORDS}'", CHORDS)
    if options.vocabulary:
        tokenizer = MidiTokenizer.load(options.vocabulary)
        for preset in ("music-tiny", "music-small"):
            torch.manual_seed(0)
            config = GPTConfig(vocab_size=tokenizer.vocab_size, **PRESETS[preset])
            gpt = GPT(config)
            engine = CpuEngine(gpt)
            engine.ready()
            for chords in (None, CHORDS):
                cost(LanguageModel(gpt, tokenizer, engine), f"{preset} with random weights, chords {chords}", chords)
    first_note(model)
    far(model)


if __name__ == "__main__":
    main()
