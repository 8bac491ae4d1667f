"""JSB chorales on the grid of sixteenths: train a GPT-2 on them, and score one.

    python benchmarks/jsb.py train --data FILE --out RUN [--train NAME] [--val NAME] [any flag of musicgpt train]
    python benchmarks/jsb.py lengthen CHECKPOINT --n-positions N --out DIRECTORY
    python benchmarks/jsb.py evaluate CHECKPOINT --data FILE --split NAME [--stride N] [--json]

FILE is a JSON object: split -> chorales -> steps -> [S, A, T, B], MIDI pitches, -1 for silence. The number is nats per
voice-step: the mean of -log p over all voice-steps of all chorales of a split, of one voice at one sixteenth each, in
the order S, A, T, B, step by step, given nothing but what stands before it. Every voice-step counts once; BOS, EOS and
padding do not count; p sums to 1 over the whole vocabulary, BOS and EOS included. A chorale longer than the context is
read in windows that begin at bar lines, so that at least n_positions - N ids stand before each that is scored.

`train` writes shards to RUN-shards and calls `musicgpt train` on them with the other flags. Each chorale is there in
every transposition that stays within the range of the set, and is filled up with EOS to whole bars: so every training
window begins at a bar line, and a position always means the same voice and place in the bar.

`lengthen` repeats the learned positions of a checkpoint, to go on with longer windows (`train --init-from DIRECTORY`):
a model learns the four voices and the bar sooner from short ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from musicgpt.batches import IGNORED
from musicgpt.checkpoint import load_model, resolve_checkpoint, save_weights
from musicgpt.cli import main as musicgpt
from musicgpt.errors import InputError, MusicGPTError
from musicgpt.evaluate import mean_loss
from musicgpt.files import read_json, write_json
from musicgpt.grid_tokenizer import IDS_PER_BAR, VOICES, GridTokenizer
from musicgpt.shards import FORMAT, MANIFEST, SPLITS, IndexWriter, checksums, ids_dtype

TOKENIZER = GridTokenizer()

STRIDE = 2 * IDS_PER_BAR


def chorales(data: Path, split: str) -> list[np.ndarray]:
    """The (steps, voices) grids of a split. Raises: InputError: no such split, or no grids in it."""
    splits = read_json(data)
    if split not in splits:
        raise InputError(f"{data} has no split {split!r}; expected one of {', '.join(splits)}")
    try:
        grids = [np.array(chorale, dtype=np.int64).reshape(-1, len(VOICES)) for chorale in splits[split]]
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{data}: {split!r} is not made of steps of {len(VOICES)} pitches: {error}") from error
    moved = sum(int((TOKENIZER.grid(TOKENIZER.ids(grid)) != grid).sum()) for grid in grids)
    if moved:
        print(f"{split}: {moved} voice-steps out of the range of the set, scored an octave off", file=sys.stderr)
    return grids


def write_shards(folder: Path, splits: dict[str, list[np.ndarray]]) -> None:
    """Chorales by split (train in all transpositions, the original first) -> shards for `musicgpt train`."""
    folder.mkdir(parents=True, exist_ok=True)
    totals = {}
    for split in SPLITS:
        grids = splits.get(split, [])
        with (folder / f"{split}.ids").open("wb") as file, IndexWriter(folder, split) as index:
            originals = 0
            for grid in grids:
                others = [shift for shift in TOKENIZER.shifts(grid) if shift and split == "train"]
                sequences = [_sequence(np.where(grid < 0, grid, grid + shift)) for shift in (0, *others)]
                file.write(np.concatenate(sequences).astype(ids_dtype(TOKENIZER.vocab_size)).tobytes())
                index.add([len(sequence) for sequence in sequences])
                originals += len(sequences[0])
        totals[split] = {
            "documents": len(grids),
            "sequences": index.sequences,
            "ids": index.ids,
            "ids_of_originals": originals,
        }
    TOKENIZER.save(folder)
    manifest = {
        "format": FORMAT,
        "vocab_size": TOKENIZER.vocab_size,
        "bos_id": TOKENIZER.bos_id,
        "eos_id": TOKENIZER.eos_id,
        "split_within_documents": False,
        "splits": totals,
        "source": {"corpus": "jsb"},
        "checksums": checksums(folder),
    }
    write_json(folder / MANIFEST, manifest)


def _sequence(grid: np.ndarray) -> list[int]:
    ids = [TOKENIZER.bos_id, *TOKENIZER.ids(grid)]
    return ids + [TOKENIZER.eos_id] * (IDS_PER_BAR - len(ids) % IDS_PER_BAR)


def train(data: Path, out: Path, splits: dict[str, str], flags: list[str]) -> None:
    shards = out.with_name(out.name + "-shards")
    write_shards(shards, {name: chorales(data, split) for name, split in splits.items()})
    musicgpt(["train", str(shards), "--out", str(out), *flags])


def lengthen(checkpoint: str, n_positions: int, out: Path) -> None:
    """A model -> one that reads more ids; within its old context it gives the same logits."""
    model = load_model(resolve_checkpoint(checkpoint))
    times = -(-n_positions // model.config.n_positions)
    weights = model.state_dict()
    weights["wpe.weight"] = weights["wpe.weight"].repeat(times, 1)[:n_positions]
    save_weights(out, replace(model.config, n_positions=n_positions), weights, TOKENIZER)


def evaluate(checkpoint: str, data: Path, split: str, stride: int) -> dict[str, float]:
    """The loss of any GPT-2 in the layout of transformers that has the ids of `GridTokenizer`."""
    model = load_model(resolve_checkpoint(checkpoint), weights="float32")
    if model.config.vocab_size != TOKENIZER.vocab_size:
        raise InputError(
            f"{checkpoint} has {model.config.vocab_size} ids; expected {TOKENIZER.vocab_size}, of the grid"
        )
    grids = chorales(data, split)
    windows = [window for grid in grids for window in _windows(grid, model.config.n_positions, stride)]
    voice_steps = sum(int((targets != IGNORED).sum()) for _, targets in windows)
    assert voice_steps == sum(grid.size for grid in grids)
    return {"nats_per_voice_step": mean_loss(model, windows), "voice_steps": voice_steps}


def _windows(grid: np.ndarray, n_positions: int, stride: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(1, T) ids and targets: the first window scores all of its ids, each later one those of its last `stride`."""
    stream = torch.tensor([TOKENIZER.bos_id, *TOKENIZER.ids(grid)])
    for start in range(0, max(1, len(stream) - 1 - n_positions + stride), stride):
        window = stream[start : start + n_positions + 1]
        targets = window[1:].clone()
        if start:
            targets[: n_positions - stride] = IGNORED
        yield window[None, :-1], targets[None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train", allow_abbrev=False)
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--train", default="train")
    training.add_argument("--val", default="valid")
    longer = verbs.add_parser("lengthen", allow_abbrev=False)
    longer.add_argument("checkpoint")
    longer.add_argument("--n-positions", type=int, required=True)
    longer.add_argument("--out", type=Path, required=True)
    scoring = verbs.add_parser("evaluate", allow_abbrev=False)
    scoring.add_argument("checkpoint")
    scoring.add_argument("--split", required=True)
    scoring.add_argument("--stride", type=int, default=STRIDE)
    scoring.add_argument("--json", action="store_true")
    for verb in (training, scoring):
        verb.add_argument("--data", type=Path, required=True)
    options, flags = parser.parse_known_args()
    try:
        if options.verb == "train":
            train(options.data, options.out, {"train": options.train, "val": options.val}, flags)
            return
        if flags:
            parser.error(f"unknown: {' '.join(flags)}")
        if options.verb == "lengthen":
            lengthen(options.checkpoint, options.n_positions, options.out)
            return
        found = evaluate(options.checkpoint, options.data, options.split, options.stride)
    except MusicGPTError as error:
        sys.exit(f"jsb.py: error: {error}")
    if options.json:
        print(json.dumps(found))
    else:
        print(
            f"{options.split}: {found['nats_per_voice_step']:.4f} nats per voice-step, {found['voice_steps']:,} of them"
        )


if __name__ == "__main__":
    main()
