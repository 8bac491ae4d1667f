"""How fast ids are made: ours beside transformers, CTranslate2 and llama.cpp, on the same weights.

    python benchmarks/generating.py [--threads N] [--rounds 5] [--model music gpt2] [--json FILE]

Random weights of two models: "music" (6 layers, 512 wide, 512 ids) and "gpt2" (the one of 124 M). Each engine makes
as many new ids behind the same short prompt, top-k 40 at temperature 1: one sequence, and eight at once half as long.
Engines take turns, and medians count. Ours runs with the grammar on for music. Before, each says the likeliest ids,
which for full precision have to be those of transformers.

The memory limit is how often a second all weights can be read, at the median speed of reading a gigabyte in the same
rounds. Caches are left out of it: a large third-level one holds much of a small model, so that more than the limit is
possible there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import miditok
import torch
from peers import ENGINES, Engine, Missing, Process, bandwidth, started

from musicgpt.checkpoint import save_model
from musicgpt.grammar import Grammar
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.model import GPT, PRESETS, GPTConfig
from musicgpt.vocabulary import Vocabulary

TOP_K = 40
EIGHT = 8
PROMPT = 16


@dataclass(frozen=True)
class Case:
    name: str
    config: GPTConfig
    new: int


CASES = [
    Case("music", GPTConfig(vocab_size=512, n_layer=6, n_embd=512, n_head=8), new=256),
    Case("gpt2", GPTConfig(vocab_size=50_257, **PRESETS["gpt2"]), new=96),
]


def small_tokenizer() -> MidiTokenizer:
    """Music in at most 512 ids: a coarser grid than ours, and every second program."""
    config = miditok.TokenizerConfig(
        pitch_range=(21, 108),
        beat_res={(0, 4): 8, (4, 12): 4},
        special_tokens=["PAD", "BOS", "EOS"],
        use_programs=True,
        program_changes=True,
        programs=[-1, *range(0, 128, 2)],
        use_tempos=True,
        use_time_signatures=True,
    )
    return MidiTokenizer(miditok.REMI(config))


def write(case: Case, folder: Path) -> list[int]:
    """The checkpoint, for music with a tokenizer; gives a prompt for it."""
    torch.manual_seed(0)
    model = GPT(case.config)
    if case.name != "music":
        save_model(folder, model)
        return random.Random(0).sample(range(case.config.vocab_size), PROMPT)
    tokenizer = small_tokenizer()
    save_model(folder, model, tokenizer)
    document, _ = tokenizer.prompt("pop")
    grammar = Grammar(Vocabulary(tokenizer), tokenizer.encode(document)[: PROMPT - 1])
    return [tokenizer.bos_id, *grammar.prompt_ids, *grammar.prelude]


def weights_read(config: GPTConfig) -> int:
    """Weights that one new id needs: all but the other positions; the token embedding is read whole as the head."""
    return config.n_parameters - (config.n_positions - 1) * config.n_embd


def measure(case: Case, engines: list[Engine], threads: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of each engine, for one sequence and for eight, and bytes read a second; of each round."""
    with tempfile.TemporaryDirectory(prefix="musicgpt-") as name:
        folder = Path(name)
        prompt = write(case, folder)
        with started(engines, folder, threads) as found:
            expected: list[int] | None = None
            same: dict[str, int] = {}
            for engine in sorted(found, key=lambda name: name != "transformers, fp32"):
                _, (ids,) = found[engine](prompt, 1, 64, 1)  # which also warms it up
                expected = ids if expected is None else expected
                same[engine] = next((i for i in range(64) if ids[i] != expected[i]), 64)
                if same[engine] < 64 and engine.split(", ")[1].lower() in ("fp32", "f32"):
                    print(f"{engine}: only the first {same[engine]} of the likeliest 64 ids are those of transformers")
                found[engine](prompt, EIGHT, 2, TOP_K)
            speeds: dict[str, dict[int, list[float]]] = {engine: {1: [], EIGHT: []} for engine in found}
            read: list[float] = []
            try:
                memory = Process(bandwidth, threads)
            except Missing as error:
                memory = None
                print(f"no memory limit: {error}")
            for _ in range(rounds):
                for rows in (1, EIGHT):
                    for engine, process in found.items():
                        new = case.new if rows == 1 else case.new // 2
                        seconds, made = process(prompt, rows, new, TOP_K)
                        assert [len(row) for row in made] == [new] * rows
                        speeds[engine][rows].append(rows * new / seconds)
                for _ in range(3 if memory is not None else 0):
                    seconds, size = memory()
                    read.append(size / seconds)
            if memory is not None:
                memory.close()
    return {"speeds": speeds, "likeliest ids in common, of 64": same, "bytes a second": read}


def show(case: Case, found: dict[str, Any]) -> None:
    speeds = {
        name: {rows: statistics.median(each) for rows, each in own.items()} for name, own in found["speeds"].items()
    }
    theirs = [own for name, own in speeds.items() if not name.startswith("ours")]
    best = {rows: max((own[rows] for own in theirs), default=float("nan")) for rows in (1, EIGHT)}
    base = speeds.get("transformers, fp32", {1: float("nan"), EIGHT: float("nan")})
    titles = ["tokens a second", "x transformers fp32", "x best peer"]
    print(f"\n{case.name}: {case.config.n_parameters:,} weights, {case.new} new ids behind {PROMPT}\n")
    print("| | " + " | ".join(f"{title}, {n}" for n in ("one", "eight") for title in titles) + " | eight to one |")
    print("|---" * 8 + "|")
    for name, own in speeds.items():
        cells = [f"{own[n]:,.0f} | {own[n] / base[n]:.2f} | {own[n] / best[n]:.2f}" for n in (1, EIGHT)]
        print(f"| {name} | {' | '.join(cells)} | {own[EIGHT] / own[1]:.1f} |")
    if not found["bytes a second"]:
        return
    speed = statistics.median(found["bytes a second"])
    print(f"\nMemory is read at {speed / 1e9:.1f} GB a second. Of the limit that this sets to one sequence:\n")
    print("| | weights read a token | limit, tokens a second | reached |\n|---|---|---|---|")
    for engine in ENGINES:
        if engine.name in speeds:
            size = weights_read(case.config) * engine.bits / 8
            reached = speeds[engine.name][1] * size / speed
            print(f"| {engine.name} | {size / 1e6:.1f} MB | {speed / size:,.0f} | {reached:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", nargs="+", choices=[case.name for case in CASES], default=["music", "gpt2"])
    parser.add_argument("--engine", nargs="+", default=[""], metavar="NAME", help="only those whose names begin so")
    parser.add_argument("--json", type=Path, help="where to write the speed of every round")
    options = parser.parse_args()
    engines = [engine for engine in ENGINES if engine.name.startswith(tuple(options.engine))]
    print(f"{options.threads} threads, medians of {options.rounds} rounds in turn")
    results = {}
    for case in CASES:
        if case.name in options.model:
            results[case.name] = measure(case, engines, options.threads, options.rounds)
            show(case, results[case.name])
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, **results}, indent=1))


if __name__ == "__main__":
    main()
