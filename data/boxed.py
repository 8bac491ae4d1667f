"""The model in the package: its corpus, and its checkpoint.

    python data/boxed.py collect CORPUS --lied DIR --quartet DIR --game DIR --drums DIR
    python data/boxed.py box RUN
    python data/boxed.py gallery

`collect` lays MIDI files into a folder a style; folk and chorale are read out of music21's wheel. `box` writes the best
checkpoint of a run in half precision into the package, where it must stay below 25 MB. `gallery` continues each phrase
that ships by eight bars, always by seed 0: what is shown is not chosen.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch

import musicgpt
from musicgpt.checkpoint import WEIGHTS, load, save_weights
from musicgpt.config import BOXED
from musicgpt.corpus import find_files, named_corpus
from musicgpt.midi import MIDI_SUFFIXES
from musicgpt.phrases import PHRASES
from musicgpt.render import render

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
NAMED = {"folk": "folk", "chorale": "chorales"}
"""Style -> the corpus of that name."""

GIVEN = ("lied", "quartet", "game", "drums")
EACH = {"quartet": 3}
"""Every how manyth file is taken: quartets are so long that all of them would outweigh everything else."""

MOST_BYTES = 25_000_000


def collect(corpus: Path, folders: dict[str, Path]) -> None:
    """Copy the MIDI files of each folder into CORPUS/STYLE, under names that keep their subfolders apart."""
    for style, folder in folders.items():
        (corpus / style).mkdir(parents=True, exist_ok=True)
        files = sorted(path for path in find_files(folder) if path.suffix.lower() in MIDI_SUFFIXES)
        for path in files[:: EACH.get(style, 1)]:
            shutil.copyfile(path, corpus / style / "_".join(path.relative_to(folder).parts))


def box(run: Path) -> None:
    """The best checkpoint of a run -> the package's, its weights bfloat16."""
    model, tokenizer = load(run)
    weights = {name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()}
    save_weights(BOXED, model.config, weights, tokenizer)
    size = (BOXED / WEIGHTS).stat().st_size
    if size > MOST_BYTES:
        sys.exit(f"{size:,} bytes are too much for the package: expected at most {MOST_BYTES:,}")
    print(f"{BOXED}: {size:,} bytes of weights")


def gallery() -> None:
    """Every phrase and its continuation -> docs/gallery, as MIDI and as a piano roll."""
    model = musicgpt.load()
    GALLERY.mkdir(exist_ok=True)
    page = ["# Each phrase that ships, and eight bars by the model in the package", "Seed 0 of each: none is chosen."]
    for phrase, title in PHRASES.items():
        path = GALLERY / f"{phrase}.mid"
        piece = model.generate(phrase, bars=8, seed=0)
        piece.save(path)
        render(path, path.with_suffix(".png"), boundary=piece.boundary)
        page.append(f"## {phrase}\n\n{title}, [as MIDI]({phrase}.mid)\n\n![Piano roll]({phrase}.png)")
    (GALLERY / "README.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print(GALLERY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True, dest="step")
    collecting = steps.add_parser("collect")
    collecting.add_argument("corpus", type=Path, metavar="CORPUS")
    for style in GIVEN:
        collecting.add_argument(f"--{style}", type=Path, required=True, metavar="DIR")
    boxing = steps.add_parser("box")
    boxing.add_argument("run", type=Path, metavar="RUN")
    steps.add_parser("gallery")
    options = parser.parse_args()
    if options.step == "box":
        box(options.run)
    elif options.step == "gallery":
        gallery()
    else:
        named = {style: named_corpus(name, print) for style, name in NAMED.items()}
        collect(options.corpus, named | {style: getattr(options, style) for style in GIVEN})


if __name__ == "__main__":
    main()
