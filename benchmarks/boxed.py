"""What the model in the package makes, style by style: is it valid, and is it copied?

    python benchmarks/boxed.py [CHECKPOINT] [-n 16] [--bars 8]

Prints of each style the share of pieces that are ill-formed (judged by tests/replay.py, which shares no code with the
grammar, and by whether symusic, mido and pretty_midi read the same notes), and what they share with training pieces
beside what held-out pieces do. Seeds 0 to n - 1, no prompt.
"""

from __future__ import annotations

import argparse
import statistics

from grammar import faults

import musicgpt
from musicgpt.config import BOXED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default=BOXED, metavar="CHECKPOINT")
    parser.add_argument("-n", type=int, default=16, metavar="N", help="pieces of each style")
    parser.add_argument("--bars", type=int, default=8, metavar="N", help="how long each is")
    options = parser.parse_args()
    model = musicgpt.load(options.checkpoint)
    index = model.index
    assert index is not None, "this checkpoint carries no index of its training pieces"
    print("| style | pieces | ill-formed | shared with training pieces | held-out pieces share | longest, bars |")
    print("|---" * 6 + "|")
    for style in model.midi_tokenizer.styles:
        pieces = [model.generate(bars=options.bars, style=style, seed=seed) for seed in range(options.n)]
        ids = [[id for id in piece.ids if id != model.tokenizer.eos_id] for piece in pieces]
        wrong = sum(any(faults(model, one).values()) for one in ids)
        found = [piece.originality(index) for piece in pieces]
        shares = [one.share_copied for one in found if one.share_copied is not None]
        mean = normal = longest = "–"
        if shares and style in index.normal:  # drums have no lines to compare
            mean, normal = f"{statistics.mean(shares):.1%}", f"{index.normal[style]:.1%}"
            longest = str(max(one.longest_bars for one in found))
        print(f"| `{style}` | {len(pieces)} | {wrong / len(pieces):.0%} | {mean} | {normal} | {longest} |", flush=True)


if __name__ == "__main__":
    main()
