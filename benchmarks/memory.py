"""The memory of a training step: worked out for GPT-2's four sizes, and measured for those that fit here.

    python benchmarks/memory.py [--measure]

A measurement is the peak of the resident memory of a fresh process over one step of a training (AdamW, float32, no
dropout), less what it was before the model was made. Two processes share a model by FSDP2 on the gloo backend.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict

PRESETS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
GIB = 2**30
MEASURED = [
    {"preset": "gpt2", "recomputed": False, "devices": 1},
    {"preset": "gpt2", "recomputed": True, "devices": 1},
    {"preset": "gpt2", "recomputed": True, "devices": 2},
    {"preset": "gpt2-medium", "recomputed": False, "devices": 1},
    {"preset": "gpt2-medium", "recomputed": True, "devices": 2},
    {"preset": "gpt2-large", "recomputed": True, "devices": 1},
]


def shape(preset: str):
    from musicgpt.model import PRESETS as SIZES
    from musicgpt.model import GPTConfig

    return GPTConfig(vocab_size=50_257, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0, **SIZES[preset])


def table() -> None:
    from musicgpt.distributed import memory

    print("GiB on each device, one sequence of 1,024 ids at a time, dropout 0, activations recomputed\n")
    print(f"{'':14}{'devices':>8} {'':5}{'weights':>9}{'gradients':>11}{'moments':>9}{'activations':>13}{'total':>8}")
    for preset in PRESETS:
        for devices, parallel in ((1, "ddp"), (8, "ddp"), (8, "fsdp"), (64, "fsdp")):
            need = memory(shape(preset), devices=devices, parallel=parallel, recomputed=True, optimizer="adamw")
            parts = [value / GIB for value in asdict(need).values()]
            how = "" if devices == 1 else parallel
            print(
                f"{preset:14}{devices:8} {how:5}{parts[0]:9.2f}{parts[1]:11.2f}{parts[2]:9.2f}{parts[3]:13.2f}"
                f"{need.total / GIB:8.2f}"
            )
    print("\nactivations of one sequence where all are kept, and recomputed, in float32 and bfloat16\n")
    for preset in PRESETS:
        sizes = [
            memory(shape(preset), recomputed=recomputed, bfloat16=half).activations / GIB
            for recomputed in (False, True)
            for half in (False, True)
        ]
        kept, kept_half, again, again_half = sizes
        print(f"{preset:14} kept {kept:6.2f} {kept_half:6.2f}   recomputed {again:6.2f} {again_half:6.2f}")


def measure() -> None:
    """One step, in this process and those that torchrun started beside it; prints the peak in bytes."""
    import psutil
    import torch

    from musicgpt.distributed import joined, recompute
    from musicgpt.model import empty, initialise
    from musicgpt.optim import make_optimizers

    asked = json.loads(os.environ["MEASURE"])
    config = shape(asked["preset"])
    process = psutil.Process()
    with joined(torch.device("cpu"), "fsdp" if asked["devices"] > 1 else None) as world:
        before = process.memory_info().rss
        peak = [before]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                peak[0] = max(peak[0], process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        model = empty(config)
        if asked["recomputed"]:
            recompute(model)
        world.spread(model)
        world.fill(model, lambda name, size: initialise(config, name, torch.empty(size)))
        (optimizer,) = make_optimizers(model, "adamw", learning_rate=1e-4, weight_decay=0.1)
        objective = world.objective(model)
        ids = torch.randint(0, config.vocab_size, (1, config.n_positions))
        for _ in range(2):  # the moments are made at the end of the first
            torch.autograd.backward(objective(ids, ids))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done.set()
        watcher.join()
        if world.is_first:
            print(json.dumps({"peak": peak[0] - before}))


def measured() -> None:
    from musicgpt.distributed import memory

    print("\nmeasured, GiB: the peak of one process over two steps, and its ratio to the function's total\n")
    for asked in MEASURED:
        start = [sys.executable]
        if asked["devices"] > 1:
            start += ["-m", "torch.distributed.run", "--nproc-per-node", str(asked["devices"])]
        began = time.perf_counter()
        done = subprocess.run(
            [*start, __file__, "--one"],
            env=os.environ | {"MEASURE": json.dumps(asked), "MALLOC_TRIM_THRESHOLD_": "0"},
            capture_output=True,
            text=True,
            check=True,
        )
        peak = json.loads(done.stdout.strip().splitlines()[-1])["peak"]
        need = memory(
            shape(asked["preset"]), devices=asked["devices"], recomputed=asked["recomputed"], optimizer="adamw"
        ).total
        how = ("recomputed" if asked["recomputed"] else "kept") + (", fsdp" if asked["devices"] > 1 else "")
        print(
            f"{asked['preset']:14}{asked['devices']} {how:18} function {need / GIB:6.2f}   measured {peak / GIB:6.2f}"
            f"   ratio {peak / need:.2f}   {time.perf_counter() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="also measure: some minutes, and 16 GiB")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure()
    else:
        table()
        if options.measure:
            measured()
