"""Training against what a user would pick instead: speed, memory, loading, and time to quality.

    python benchmarks/training.py [throughput] [memory] [loading] [small] [large] [--nanogpt FOLDER] [--json FILE]
    python benchmarks/training.py --score RUN

All tables, or those named. Contenders take turns on the same ids, the same shape of model and the same threads, each in
a process of its own; medians are printed. nanoGPT is on no package index: FOLDER is a clone of it, of which model.py is
loaded; its training loop (batches, schedule, clipping) is followed here. Where validation is scored, the same function
scores all of the validation text in windows of the block length, and its time counts for nobody. So does --score, of a
run of `musicgpt train tinyshakespeare.txt --tokenizer characters`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16")
SPEED = {"n_layer": 6, "n_embd": 512, "n_head": 8, "n_positions": 1024, "batch": 4}
RECIPES = {  # of nanoGPT's README and config/train_shakespeare_char.py
    "small": {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64, "batch": 12, "dropout": 0.0, "steps": 2000},
    "large": {"n_layer": 6, "n_head": 6, "n_embd": 384, "n_positions": 256, "batch": 64, "dropout": 0.2, "steps": 5000},
}
OURS = {  # the rest is the default of `musicgpt train`
    "small": {"steps": 3600, "batch": 12, "learning_rate": 1e-2},
    "large": {"steps": 400, "batch": 16, "learning_rate": 3.3e-3},
}
QUALITY = 1.88
TEXT = Path(__file__).parents[1] / "../shared/data/text/tinyshakespeare.txt"

Step = Callable[[], Any]
"""One update of the weights."""


def ours(shape: dict[str, Any], dtype: str) -> Step:
    import torch

    from musicgpt.optim import make_optimizers
    from musicgpt.train import keep_freed_memory

    keep_freed_memory()
    model = our_model(shape)
    (optimizer,) = make_optimizers(model, "adamw", learning_rate=1e-4, weight_decay=0.1)
    ids, targets = some_ids(shape)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model.loss(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def transformers(shape: dict[str, Any], dtype: str) -> Step:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, logging

    logging.set_verbosity_error()
    sizes = {name: shape[name] for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")}
    config = GPT2Config(**sizes, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids, _ = some_ids(shape)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def nanogpt(shape: dict[str, Any], dtype: str) -> Step:
    import torch

    model = nano_model(shape, bias=True)
    optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.99), "cpu")
    ids, targets = some_ids(shape)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            _, loss = model(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_model(shape: dict[str, Any]) -> Any:
    from musicgpt.model import GPT, GPTConfig

    sizes = {name: shape[name] for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")}
    dropout = shape.get("dropout", 0.0)
    return GPT(GPTConfig(**sizes, embd_pdrop=dropout, resid_pdrop=dropout, attn_pdrop=0.0))


def nano_model(shape: dict[str, Any], *, bias: bool) -> Any:
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(shape["nanogpt"]) / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sizes = {name: shape[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    config = module.GPTConfig(**sizes, block_size=shape["n_positions"], dropout=shape.get("dropout", 0.0), bias=bias)
    with redirect_stdout(sys.stderr):
        return module.GPT(config)


def some_ids(shape: dict[str, Any]) -> Any:
    import torch

    torch.manual_seed(0)
    ids = torch.randint(0, shape["vocab_size"], (shape["batch"], shape["n_positions"] + 1))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def matmuls(shape: dict[str, Any], dtype: str) -> Step:
    """The products of a step with its weights, each at its own shape, by the calls of our model."""
    import torch

    from musicgpt.cpu_ops import over_rows, product

    kind = getattr(torch, dtype)
    rows, width = shape["batch"] * shape["n_positions"], shape["n_embd"]
    sizes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)] * shape["n_layer"]
    sizes += [(width, shape["vocab_size"])]
    tensors = {(m, k): [torch.randn(size).to(kind) for size in ((rows, m), (m, k), (rows, k))] for m, k in set(sizes)}

    def step() -> None:
        for size in sizes:
            x, weight, grad = tensors[size]
            product(x, weight)
            product(grad, weight.t())
            over_rows(x, grad)

    return step


def operations(shape: dict[str, Any], who: str) -> float:
    """Multiplications and additions of a step: 6 for each weight and id, and half the squares of attention."""
    C, T = shape["n_embd"], shape["n_positions"]
    weights = shape["n_layer"] * 12 * C * C + shape["vocab_size"] * C
    attention = shape["n_layer"] * 6 * T * C if who != "matmuls" else 0
    return shape["batch"] * T * (6 * weights + attention)


def serve() -> None:
    """A contender in a process of its own: builds what the first line says, then makes a step for each line."""
    asked = json.loads(sys.stdin.readline())
    step = globals()[asked["who"]](asked["shape"], asked["dtype"])
    for _ in range(2):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(time.perf_counter() - began, flush=True)


def throughput(nano: str | None, rounds: int = 3) -> list[dict[str, Any]]:
    shape = SPEED | {"vocab_size": 512, "nanogpt": nano}
    names = ["ours", "transformers", *(["nanogpt"] if nano else []), "matmuls"]
    found = []
    for dtype in DTYPES:
        children = {}
        for name in names:  # one after the other: two that work at once slow each other down many times over
            children[name] = started("--serve", {"who": name, "shape": shape, "dtype": dtype})
            assert children[name].stdout.readline() == "ready\n"
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, child in children.items():
                child.stdin.write("step\n")
                child.stdin.flush()
                times[name].append(float(child.stdout.readline()))
        for child in children.values():
            child.stdin.close()
            child.wait()
        middle = {name: statistics.median(times[name]) for name in names}
        for name in names:
            speed = shape["batch"] * shape["n_positions"] / middle[name]
            rate = operations(shape, name) / middle[name] / 1e9
            ratio = middle[name] / middle["ours"]
            found.append({"dtype": dtype, "who": name, "tokens_per_second": speed, "gflops": rate, "ours": ratio})
    table(
        f"{shape['n_layer']} layers, {shape['n_embd']} wide, V 512, 4 x 1,024 ids, AdamW, {threads()} threads",
        ["", "precision", "tokens/s", "GFLOP/s", "ours is"],
        [
            [
                row["who"],
                row["dtype"],
                f"{row['tokens_per_second']:,.0f}",
                f"{row['gflops']:,.0f}",
                f"{row['ours']:.2f} x",
            ]
            for row in found
        ],
    )
    return found


def peak() -> None:
    """The peak of the resident memory over two steps, above what it was before them; prints it in bytes."""
    import psutil

    asked = json.loads(sys.stdin.readline())
    step = globals()[asked["who"]](asked["shape"], asked["dtype"])
    process = psutil.Process()
    before = highest = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2):
        step()
    done.set()
    watcher.join()
    print(highest - before)


def memory(nano: str | None) -> list[dict[str, Any]]:
    found = []
    for vocab_size in (512, 50_257):
        for dtype in DTYPES:
            shape = SPEED | {"vocab_size": vocab_size, "nanogpt": nano}
            sizes = {}
            for name in ("ours", "transformers", *(["nanogpt"] if nano else [])):
                child = started("--peak", {"who": name, "shape": shape, "dtype": dtype})
                sizes[name] = int(child.communicate()[0])
            found += [{"vocab_size": vocab_size, "dtype": dtype, "who": name, "bytes": size,
                       "ours": sizes["ours"] / size} for name, size in sizes.items()]  # fmt: skip
    table(
        "Peak memory of a training step above the level before it",
        ["", "V", "precision", "MiB", "ours is"],
        [[row["who"], f"{row['vocab_size']:,}", row["dtype"], f"{row['bytes'] / 2**20:,.0f}", f"{row['ours']:.2f} x"]
         for row in found],
    )  # fmt: skip
    return found


def loading(nano: str | None) -> dict[str, float]:
    """The share of a step that goes into its ids: folk tunes, at the settings of `throughput`."""
    import tempfile

    from musicgpt.batches import Batches
    from musicgpt.config import PrepareConfig
    from musicgpt.corpus import resolve_corpus
    from musicgpt.prepare import prepare
    from musicgpt.tokenizer import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        shards = prepare(
            resolve_corpus("folk", _silent), Path(folder) / "shards", PrepareConfig(transpositions=1), report=_silent
        )
        tokenizer = load_tokenizer(shards.directory)
        shape = SPEED | {"vocab_size": tokenizer.vocab_size}
        batches = Batches(
            shards.split("train"),
            window=tokenizer.window,
            batch_size=shape["batch"],
            n_positions=shape["n_positions"],
            seed=0,
            eos_id=tokenizer.eos_id,
            unscored=tokenizer.unscored,
        )
        step = ours(shape, "bfloat16")
        step()
        loads, steps = [], []
        for number in range(10):
            began = time.perf_counter()
            batches.rows(number, slice(None))
            loaded = time.perf_counter()
            step()
            loads.append(loaded - began)
            steps.append(time.perf_counter() - loaded)
    load, rest = statistics.median(loads), statistics.median(steps)
    print(f"\nLoading takes {1000 * load:.1f} ms, the rest of a step {rest:.2f} s: {load / (load + rest):.2%}")
    return {"load_seconds": load, "rest_seconds": rest, "share": load / (load + rest)}


def _silent(line: str) -> None:
    """For reports that say nothing of what is measured here."""


def text() -> tuple[Any, Any, int]:
    """Ids of the training and validation text as nanoGPT splits it, and the number of characters."""
    import torch

    said = TEXT.read_text()
    number = {character: i for i, character in enumerate(sorted(set(said)))}
    ids = torch.tensor([number[character] for character in said])
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:], len(number)


def scorer(T: int) -> Callable[[Callable[[Any], Any]], float]:
    """The loss over all of the validation text, of a function from ids to logits."""
    import torch
    import torch.nn.functional as F

    _, held, _ = text()
    windows = (len(held) - 1) // T
    ids, targets = held[: windows * T].view(windows, T), held[1 : windows * T + 1].view(windows, T)

    @torch.no_grad()
    def score(logits_of: Callable[[Any], Any]) -> float:
        total = 0.0
        for some, wanted in zip(ids.split(4096 // T), targets.split(4096 // T), strict=True):
            total += float(F.cross_entropy(logits_of(some).flatten(0, 1).float(), wanted.flatten(), reduction="sum"))
        return total / (windows * T)

    return score


def scored(run: str) -> float:
    """The loss of a trained model of characters, as `scorer` has it of the models here."""
    import torch

    import musicgpt

    model = musicgpt.load(run)
    of = [model.tokenizer.encode(character)[0] for character in sorted(set(TEXT.read_text()))]
    order = torch.tensor([*of, *sorted(set(range(model.tokenizer.vocab_size)) - set(of))])
    return scorer(model.model.config.n_positions)(lambda ids: model.model(order[ids])[..., order])


def learn() -> None:
    """One run of a recipe; prints [steps, seconds of training, validation loss] as it goes."""
    import torch

    from musicgpt.optim import learning_rate_at, make_optimizers
    from musicgpt.train import keep_freed_memory

    asked = json.loads(sys.stdin.readline())
    shape, limit, steps = asked["shape"], asked["seconds"], asked["steps"]
    train, _, shape["vocab_size"] = text()
    T = shape["n_positions"]
    score = scorer(T)
    torch.manual_seed(1337)
    if asked["who"] == "nanogpt":
        model = nano_model(shape, bias=False)
        optimizers = [model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")]

        def logits(ids: Any) -> Any:  # its own forward gives all logits only where targets are given
            return model(ids, ids)[0]

        def rate_at(step: int) -> float:
            if step < 100:
                return 1e-3 * (step + 1) / 101
            return 1e-4 + 9e-4 * 0.5 * (1 + math.cos(math.pi * (step - 100) / (shape["steps"] - 100)))

        def loss_of(ids: Any, targets: Any) -> Any:  # on CPUs its train.py has no autocast
            return model(ids, targets)[1]
    else:
        keep_freed_memory()
        model = our_model(shape)
        optimizers = make_optimizers(model, "muon", learning_rate=asked["learning_rate"], weight_decay=0.1)
        logits = model

        def rate_at(step: int) -> float:
            return asked["learning_rate"] * learning_rate_at(step, "muon", steps=steps, warmup=0.05)

        def loss_of(ids: Any, targets: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return model.loss(ids, targets)

    spent = 0.0
    for step in range(steps + 1):
        if step % asked["every"] == 0 or step == steps or spent > limit:
            model.eval()
            print(json.dumps([step, spent, score(logits)]), flush=True)
            model.train()
            if step == steps or spent > limit:
                break
        began = time.perf_counter()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step)
        starts = torch.randint(len(train) - T, (asked["batch"],))
        ids = torch.stack([train[i : i + T] for i in starts])
        targets = torch.stack([train[i + 1 : i + 1 + T] for i in starts])
        loss_of(ids, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        spent += time.perf_counter() - began


def learned(who: str, recipe: str, nano: str | None, **asked: Any) -> list[tuple[int, float, float]]:
    shape = RECIPES[recipe] | {"nanogpt": nano}
    child = started("--learn", {"who": who, "shape": shape, **asked})
    return [tuple(json.loads(line)) for line in child.communicate()[0].splitlines()]


def small(nano: str | None) -> dict[str, Any]:
    """nanoGPT's small recipe: its whole run; ours in a third of its time, and in all of it."""
    batch = RECIPES["small"]["batch"]
    asked = OURS["small"] | {"seconds": math.inf, "every": 100}
    found: dict[str, Any] = {}
    if nano:
        found["nanoGPT"] = learned("nanogpt", "small", nano, batch=batch, steps=2000, seconds=math.inf, every=100)
        *_, (first, began, _), (last, ended, _) = learned("ours", "small", nano, **asked | {"steps": 100, "every": 50})
        asked["steps"] = round(found["nanoGPT"][-1][1] * (last - first) / (ended - began))
    for name, share in (("ours, a third of its time", 3), ("ours, all of its time", 1)):
        found[name] = learned("ours", "small", nano, **asked | {"steps": asked["steps"] // share})
    table(
        f"nanoGPT's small recipe on tinyshakespeare, {threads()} threads",
        ["", "steps", "seconds", "validation loss", f"seconds to {QUALITY}"],
        [[name, f"{curve[-1][0]:,}", f"{curve[-1][1]:.0f}", f"{curve[-1][2]:.3f}", reached(curve)]
         for name, curve in found.items()],
    )  # fmt: skip
    return found


def reached(curve: list[tuple[int, float, float]]) -> str:
    return next((f"{seconds:.0f}" for _, seconds, loss in curve if loss <= QUALITY), "not reached")


def large(nano: str | None, seconds: float = 120.0) -> dict[str, Any]:
    """nanoGPT's larger recipe for some minutes: the validation loss of both at the same times."""
    theirs = learned("nanogpt", "large", nano, batch=64, steps=5000, seconds=seconds, every=5) if nano else []
    mine = learned("ours", "large", nano, **OURS["large"], seconds=seconds, every=20)
    rows = [[f"{at:.0f}", f"{_at(mine, at):.3f}", f"{_at(theirs, at):.3f}" if theirs else ""]
            for at in range(20, round(seconds) + 1, 20)]  # fmt: skip
    table(f"nanoGPT's larger recipe, validation loss, {threads()} threads", ["seconds", "ours", "nanoGPT"], rows)
    return {"nanogpt": theirs, "ours": mine}


def _at(curve: list[tuple[int, float, float]], seconds: float) -> float:
    """The last loss that was known by then."""
    return [loss for _, spent, loss in curve if spent <= seconds][-1]


def started(how: str, asked: dict[str, Any]) -> Any:
    child = subprocess.Popen([sys.executable, __file__, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    child.stdin.write(json.dumps(asked) + "\n")
    child.stdin.flush()
    return child


def threads() -> int:
    import torch

    return torch.get_num_threads()


def table(title: str, heads: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


TABLES = {"throughput": throughput, "memory": memory, "loading": loading, "small": small, "large": large}
WORK = {"--serve": serve, "--peak": peak, "--learn": learn}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WORK:
        WORK[sys.argv[1]]()
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="which (all)")
    parser.add_argument("--nanogpt", help="a clone of github.com/karpathy/nanoGPT")
    parser.add_argument("--json", type=Path, help="write all that was measured here")
    parser.add_argument("--score", metavar="RUN", help="a run of characters, on the validation text; nothing else")
    options = parser.parse_args()
    if options.score:
        print(f"{scored(options.score):.4f}")
        sys.exit()
    if options.nanogpt is None:
        print("without --nanogpt FOLDER, a clone of github.com/karpathy/nanoGPT, it is left out")
    measured = {name: TABLES[name](options.nanogpt) for name in options.tables or TABLES}
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1))
