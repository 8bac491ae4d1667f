"""What generating costs ours: a long prompt, a long piece, and with drafting.

    python benchmarks/engine.py [--threads N] [--rounds 5] [--weights float32] [--json FILE]
                                [--checkpoint DIRECTORY] [--songs FOLDER] [--shards FOLDER]

Prefill: the operations of a prompt of 1,000 ids a second, beside those of its matrix products alone, of the same shapes
in the same precision, attention counted as causal. Along a piece: milliseconds an id, windows moved on included.
Drafting: continuations of real songs by a trained checkpoint, the same seeds in each way, without the prompt. Loss: of
that checkpoint on the validation split of shards made with its tokenizer, as torch and as the engine compute it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from generating import CASES, Case, write

import musicgpt
from musicgpt.batches import IGNORED
from musicgpt.checkpoint import load_model
from musicgpt.corpus import find_files
from musicgpt.cpu_engine import CpuEngine
from musicgpt.drafts import Drafts
from musicgpt.evaluate import mean_loss, windows_of
from musicgpt.generate import generate
from musicgpt.grammar import Grammar
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.model import GPTConfig
from musicgpt.sampling import SamplingConfig
from musicgpt.shards import Shards
from musicgpt.vocabulary import Vocabulary

PROMPT = 1_000
LONG = 10_240
STRETCH = 1_024

WAYS: dict[str, Callable[[], Drafts | None]] = {"plain": lambda: None, "with drafts": Drafts}
"""Ways in which the same ids are made, the plain one first: what `drafting` compares."""


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def operations(config: GPTConfig, T: int) -> int:
    """Additions and multiplications of a prefill of T ids: products with weights, causal attention, the last logits."""
    C = config.n_embd
    return config.n_layer * (24 * T * C**2 + 2 * T**2 * C) + 2 * C * config.vocab_size


def products(config: GPTConfig, T: int) -> tuple[Callable[[], None], int]:
    """A function that does the products with the weights of all blocks, each with its own; and its operations."""
    C = config.n_embd
    shapes = [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)] * config.n_layer
    weights = [torch.randn(shape) for shape in shapes]
    inputs = {width: torch.randn(T, width) for width in (C, 4 * C)}

    def run() -> None:
        for weight in weights:
            F.linear(inputs[len(weight)], weight.t())

    return run, sum(2 * T * n_in * n_out for n_in, n_out in shapes)


def prefill(engine: CpuEngine, rounds: int) -> dict[str, list[float]]:
    """Operations a second of a prefill, and of its products alone, in turn."""
    prompt = torch.randint(0, engine.config.vocab_size, (PROMPT,)).tolist()
    run, of_products = products(engine.config, PROMPT)
    found: dict[str, list[float]] = {"prefill": [], "products": []}
    for i in range(rounds + 1):
        first_id = generate(engine, prompt, SamplingConfig(), max_new_tokens=1, seed=i)
        seconds = timed(lambda steps=first_id: next(steps)), timed(torch.inference_mode()(run))
        if i:
            found["prefill"].append(operations(engine.config, PROMPT) / seconds[0])
            found["products"].append(of_products / seconds[1])
    return found


def along(engine: CpuEngine, tokenizer: MidiTokenizer | None, prompt: list[int]) -> list[float]:
    """Milliseconds an id in each stretch of a long piece."""
    options: dict[str, Any] = {}
    if tokenizer is not None:
        grammar = Grammar(Vocabulary(tokenizer), prompt[1:], bars=10**6)
        options = {"guide": grammar, "state": grammar.begin, "n_ids": tokenizer.vocab_size, "window": tokenizer.window}
    steps = generate(engine, prompt, SamplingConfig(), max_new_tokens=LONG, seed=0, **options)
    return [timed(lambda: [None for _ in islice(steps, STRETCH)]) / STRETCH * 1000 for _ in range(LONG // STRETCH)]


def drafting(checkpoint: Path, songs: Path, weights: str, rounds: int, new: int = 512) -> dict[str, list[float]]:
    """Ids a second behind the first in each of WAYS, song by song in turn, all the same ids; and how many guesses came
    true."""
    model = musicgpt.load(checkpoint, weights=weights)
    model.engine.ready()
    found: dict[str, list[float]] = {**{way: [] for way in WAYS}, "right": [], "tried": []}
    for seed, path in enumerate(islice(sorted(find_files(songs)), rounds)):
        (document, *_), _ = model.tokenizer.read(path)
        ids = model.tokenizer.encode(model.tokenizer.decode(model.tokenizer.encode(document)[: PROMPT // 2]))
        made = []
        for way, drafts in ((way, make()) for way, make in WAYS.items()):
            grammar = Grammar(model.vocabulary, ids, bars=10**6)
            prompt = [model.tokenizer.bos_id, *grammar.prompt_ids, *grammar.prelude]
            steps = generate(
                model.engine,
                prompt,
                SamplingConfig(),
                max_new_tokens=new,
                seed=seed,
                n_ids=model.tokenizer.vocab_size,
                guide=grammar,
                state=grammar.begin,
                window=model.tokenizer.window,
                drafts=drafts,
            )
            (first,), _ = next(steps)  # the prompt's time is in the table above
            start = time.perf_counter()
            made.append([first, *(id for (id,), _ in steps)])
            found[way].append((len(made[-1]) - 1) / (time.perf_counter() - start))
        found["right"].append(drafts.right)
        found["tried"].append(drafts.tried)
        assert all(other == made[0] for other in made), "the same seed gave other ids"
    return found


def losses(checkpoint: Path, shards: Path) -> dict[str, float]:
    """Nats per id with float32 and int8 weights, by torch, and by the engine, whose products are of whole numbers."""
    shard = Shards(shards).split("val")
    documents = [shard.sequence(int(first)).astype(np.int64) for first in shard.documents[:-1]]
    found = {}
    for weights in ("float32", "int8"):
        engine = musicgpt.load(checkpoint, weights=weights).engine
        assert isinstance(engine, CpuEngine)
        assert engine.ready()
        P = engine.config.n_positions
        windows = list(windows_of(documents, P, P // 2))
        found[f"{weights}, torch"] = mean_loss(engine.model, windows)
        total = count = 0
        for (ids,), targets in windows:
            logits = torch.from_numpy(engine.extend([ids.tolist()], engine.cache(1), len(ids))[0])
            total += float(F.cross_entropy(logits, targets[0], ignore_index=IGNORED, reduction="sum"))
            count += int((targets != IGNORED).sum())
        found[f"{weights}, ours"] = total / count
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", choices=("float32", "int8"), default="float32")
    parser.add_argument("--checkpoint", type=Path, help="a trained model: without merges, for drafting")
    parser.add_argument("--songs", type=Path, help="what it continues")
    parser.add_argument("--shards", type=Path, help="what its loss is measured on")
    parser.add_argument("--json", type=Path, help="where to write all that was measured")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, {options.weights} weights, medians of {options.rounds} rounds\n")
    results: dict[str, Any] = {"threads": options.threads, "weights": options.weights}
    print(f"| | prefill of {PROMPT:,}, GFLOP a second | its products alone | share |\n|---|---|---|---|")
    for case in CASES:
        engine, tokenizer, prompt = loaded(case, options.weights)
        results[case.name] = {"prefill": prefill(engine, options.rounds)}
        whole, alone = (statistics.median(each) / 1e9 for each in results[case.name]["prefill"].values())
        print(f"| {case.name} | {whole:.0f} | {alone:.0f} | {whole / alone:.0%} |")
    engine, tokenizer, prompt = loaded(CASES[0], options.weights)
    results["along a piece"] = each = along(engine, tokenizer, prompt)
    print(
        f"\n{CASES[0].name}, milliseconds an id, a figure for every {STRETCH:,} of a piece: "
        f"{' '.join(f'{ms:.2f}' for ms in each)}; the last to the second {each[-1] / each[1]:.2f}"
    )
    if options.checkpoint and options.songs:
        results["drafting"] = found = drafting(options.checkpoint, options.songs, options.weights, options.rounds)
        print("\n| continuing real songs | ids a second | x plain | worst song | best song |\n|---|---|---|---|---|")
        for way in WAYS:
            speeds = found[way]
            ratios = [speed / plain for speed, plain in zip(speeds, found["plain"], strict=True)]
            cells = (f"{x:.2f}" for x in (statistics.median(ratios), min(ratios), max(ratios)))
            print(f"| {way} | {statistics.median(speeds):.0f} | {' | '.join(cells)} |")
        tried, right = sum(found["tried"]), sum(found["right"])
        print(f"\nof {tried:,.0f} ids guessed ahead {right / max(1, tried):.0%} came true")
    if options.checkpoint and options.shards:
        results["loss"] = losses(options.checkpoint, options.shards)
        before, *_ = results["loss"].values()
        print("\n| | loss | more than float32 |\n|---|---|---|")
        for way, loss in results["loss"].items():
            print(f"| {way} | {loss:.5f} | {loss / before - 1:.4%} |")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def loaded(case: Case, weights: str) -> tuple[CpuEngine, MidiTokenizer | None, list[int]]:
    """A model of random weights, its tokenizer where it has one, and a prompt."""
    with tempfile.TemporaryDirectory(prefix="musicgpt-") as name:
        folder = Path(name)
        prompt = write(case, folder)
        engine = CpuEngine(load_model(folder, weights=weights))
        engine.ready()
        tokenizer = MidiTokenizer.load(folder) if (folder / "tokenizer.json").exists() else None
        return engine, tokenizer, prompt


if __name__ == "__main__":
    main()
