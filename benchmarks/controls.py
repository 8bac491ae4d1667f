"""How well a model does what it is asked for: 200 samples for each control, asked and realised.

    python benchmarks/controls.py CHECKPOINT [--instruments violin,viola,cello] [--prompt FILE] [--guidance G]
        [--json OUT]

Of each control every level is asked for equally often, of all segments alike and of nothing else. Each pair of a
segment and an instrument gives what was asked and what it became, by the bins of the model's own training pieces.
`within one` is the share of pairs at most one level apart, `by chance` what it would be if what is made did not depend
on what is asked; `rho` is Spearman's rank correlation. A key is right or wrong. The bars that are left are not here:
how many there are the grammar sees to.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import musicgpt
from musicgpt.marks import KEYS, LEVELS, PER_INSTRUMENT, TOGETHER

BATCH = 25


def pairs(
    model: musicgpt.LanguageModel, control: str, level: int, options: argparse.Namespace
) -> list[tuple[int, int]]:
    """(asked, made) of each segment and instrument in which there is something to measure."""
    asked = {control: KEYS[level] if control == "key" else level}
    count = -(-options.samples // (len(KEYS) if control == "key" else len(LEVELS)))
    found = []
    for begin in range(0, count, BATCH):
        made = model.generate_many(
            min(BATCH, count - begin),
            options.prompt,
            bars=options.bars,
            instruments=options.instruments,
            seed=1000 * level + begin,
            include_prompt=False,
            guidance=options.guidance,
            **asked,
        )
        for piece in made:
            for levels, there in zip(piece.asked, piece.controls, strict=True):
                found += [(level, there[key]) for key, level in levels.items() if key in there]
    return found


def measure(control: str, found: list[tuple[int, int]]) -> dict[str, float | int | None]:
    asked, made = np.array(found).T
    near = 0 if control == "key" else 1
    rho = spearmanr(asked, made).statistic if control != "key" and len(set(made.tolist())) > 1 else None
    return {
        "pairs": len(asked),
        "exact": float((asked == made).mean()),
        "within_one": float((abs(asked - made) <= near).mean()),
        "by_chance": float((abs(asked[:, None] - made[None]) <= near).mean()),
        "rho": None if rho is None else float(rho),
        "made_at_each": [round(float(made[asked == level].mean()), 2) for level in sorted(set(asked.tolist()))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--samples", type=int, default=200, help="of each control (200)")
    parser.add_argument("--bars", type=int, default=8, help="new bars of each (8)")
    parser.add_argument("--instruments", default="piano", help="as for generate (piano)")
    parser.add_argument("--prompt", help="as for generate; none begins a piece")
    parser.add_argument("--guidance", type=float, default=1.0, help="as for generate (1)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the table there too")
    options = parser.parse_args()
    model = musicgpt.load(options.checkpoint)
    table = {}
    print(
        f"{'control':12} {'pairs':>6} {'exact':>6} {'within one':>10} {'by chance':>9} {'rho':>6} {'seconds':>7}  made"
    )
    for control in (*PER_INSTRUMENT, *TOGETHER):
        begin = time.perf_counter()
        levels = range(len(KEYS) if control == "key" else len(LEVELS))
        found = [pair for level in levels for pair in pairs(model, control, level, options)]
        if not found:
            print(f"{control:12} nothing that could be measured")
            continue
        row = table[control] = measure(control, found)
        rho = "–" if row["rho"] is None else f"{row['rho']:.3f}"
        made = "" if control == "key" else " ".join(map(str, row["made_at_each"]))
        print(
            f"{control:12} {row['pairs']:6} {row['exact']:6.3f} {row['within_one']:10.3f} {row['by_chance']:9.3f} "
            f"{rho:>6} {time.perf_counter() - begin:7.1f}  {made}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(
            json.dumps({"asked": vars(options) | {"json": None}, "controls": table}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
