"""The compiled engine against torch: the same logits, the same ids, whatever goes together, and with fewer bits."""

from __future__ import annotations

import copy
import dataclasses
import gc
import multiprocessing
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musicgpt.cpu_engine import PART, SHORT, CpuEngine
from musicgpt.drafts import Drafts
from musicgpt.engine import TorchEngine
from musicgpt.generate import generate
from musicgpt.int8 import is_int8, to_int8
from musicgpt.model import GPT, GPTConfig, KVCache
from musicgpt.sampling import SamplingConfig

CONFIG = GPTConfig(vocab_size=301, n_positions=160, n_embd=128, n_layer=3, n_head=4)
TOLERANCE = {"float32": 2e-4, "int8": 1e-2}
"""Of a logit; their standard deviation is above 1. Both add the same numbers in float32, in another order; with int8
weights torch takes inputs as they are, the engine as whole numbers, and what they cache is then now and then rounded to
the other side."""


def made(kind: str) -> GPT:
    torch.manual_seed(5)
    model = GPT(CONFIG).eval()
    with torch.no_grad():  # as they begin, the weights predict almost nothing, and norms and biases do nothing
        for weight in model.parameters():
            weight.copy_(weight * 6 if weight.dim() == 2 else weight + 0.1 * torch.randn_like(weight))
    return to_int8(model) if kind == "int8" else model


@pytest.fixture(scope="module", params=["float32", "int8"])
def engine(request: pytest.FixtureRequest) -> CpuEngine:
    engine = CpuEngine(made(request.param))
    assert engine.ready()
    return engine


class ByTorch(TorchEngine):
    """An engine's model by torch, its keys and values in the precision of the engine."""

    def __init__(self, engine: CpuEngine) -> None:
        super().__init__(engine.model)
        self.cache = engine.cache  # type: ignore[method-assign]


def read(engine: TorchEngine, ids: list[int], sizes: list[int]) -> np.ndarray:
    """(T, V) logits of all ids, read in parts of these sizes."""
    cache, parts, at = engine.cache(1), [], 0
    for size in sizes:
        parts.append(torch.as_tensor(engine.extend([ids[at : at + size]], cache, size))[0].numpy())
        at += size
    return np.concatenate(parts)


def kind_of(engine: CpuEngine) -> str:
    return "int8" if is_int8(engine.model) else "float32"


def ids_of(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, n).tolist()


def test_the_logits_are_those_of_torch(engine: CpuEngine) -> None:
    ids = ids_of(96)
    with torch.inference_mode():
        expected = read(ByTorch(engine), ids, [96])
    assert expected.std() > 1
    assert np.abs(read(engine, ids, [1] * 96) - expected).max() < TOLERANCE[kind_of(engine)]


@pytest.mark.parametrize("sizes", [[96], [5] * 19 + [1], [2, 3, 4, 7, 8, 72], [33, 63]])
def test_to_the_last_bit_it_does_not_matter_how_many_ids_are_read_at_once(engine: CpuEngine, sizes: list[int]) -> None:
    ids = ids_of(96)
    assert np.array_equal(read(engine, ids, sizes), read(engine, ids, [1] * 96))


@pytest.mark.parametrize("rows", [2, 3, 8, 40])
def test_nor_how_many_rows_there_are(engine: CpuEngine, rows: int) -> None:
    many = [ids_of(4, seed) for seed in range(rows)]
    cache = engine.cache(rows)
    together = [np.array(engine.extend([[row[t]] for row in many], cache)[:, 0]) for t in range(4)]
    for i, row in enumerate(many):
        assert np.array_equal(np.stack([step[i] for step in together]), read(engine, row, [1] * 4))


def test_nor_how_many_threads(engine: CpuEngine) -> None:
    ids, before = ids_of(40), torch.get_num_threads()
    expected = read(engine, ids, [1] * 40)
    try:
        for threads in (1, 2, 3, 5):  # more than there are cores, too
            torch.set_num_threads(threads)
            assert np.array_equal(read(engine, ids, [1] * 40), expected)
    finally:
        torch.set_num_threads(before)


def test_it_goes_on_from_a_long_prompt(engine: CpuEngine) -> None:
    ids = ids_of(150)
    cache = engine.cache(1)
    engine.prefill(ids[:140], cache)
    assert SHORT < PART < 140
    with torch.inference_mode():
        expected = read(ByTorch(engine), ids, [150])[140:]
    assert np.abs(np.array(engine.extend([ids[140:]], cache, 10)[0]) - expected).max() < TOLERANCE[kind_of(engine)]


CHOICES = [
    SamplingConfig(),
    SamplingConfig(temperature=0),
    SamplingConfig(temperature=0.7, top_k=5),
    SamplingConfig(top_k=3, top_p=0.6),
    SamplingConfig(temperature=1.5, top_k=100, min_p=0.05),
    SamplingConfig(top_k=None, top_p=0.9),
]


@pytest.mark.parametrize("config", CHOICES)
def test_it_chooses_as_torch_does(engine: CpuEngine, config: SamplingConfig) -> None:
    random = np.random.default_rng(1)
    for _ in range(200):
        logits = (random.standard_normal((2, 301)) * 4).astype(np.float32)
        allowed = [random.random(301) < share for share in (0.05, 0.9)]
        numbers = random.random(2)
        plain = TorchEngine.choose(engine, torch.from_numpy(logits), config, numbers, allowed)
        assert engine.choose(logits, config, numbers, allowed) == plain
        assert all(mask[id] for mask, id in zip(allowed, plain, strict=True))


def test_of_equal_logits_exactly_k_are_candidates(engine: CpuEngine) -> None:
    logits = np.zeros((1, 301), dtype=np.float32)
    numbers = np.linspace(0, 1, 500, endpoint=False)
    chosen = {engine.choose(logits, SamplingConfig(top_k=7), numbers[i : i + 1], None)[0] for i in range(500)}
    assert chosen == set(range(7))


def sequences(engine: TorchEngine, prompt: list[int], drafts: Drafts | None = None, **options: object) -> list[list]:
    settings = {"max_new_tokens": 300, "seed": 3, **options}
    steps = [ids for ids, _ in generate(engine, prompt, SamplingConfig(top_k=4), drafts=drafts, **settings)]
    return [list(row) for row in zip(*steps, strict=True)]


def test_the_ids_are_those_of_torch() -> None:
    """With int8 weights rounding decides now and then, see TOLERANCE."""
    engine = CpuEngine(made("float32"))
    assert engine.ready()
    assert sequences(engine, [1, 2, 3]) == sequences(ByTorch(engine), [1, 2, 3])


def test_a_row_does_not_depend_on_how_many_there_are(engine: CpuEngine) -> None:
    rows = sequences(engine, [1, 2, 3], num_samples=5)
    assert rows[0] == sequences(engine, [1, 2, 3])[0] != rows[1]


class Repeating:
    """A guide that lets ids come again as they came, in turns of twelve, with now and then another; some are forced."""

    class State(int):
        ended = False

    def mask(self, state: State) -> np.ndarray:
        allowed = np.zeros(301, dtype=np.bool_)
        allowed[state % 12] = True
        allowed[100 + state % 12] = state % 3 > 0
        return allowed

    def advance(self, state: State, id: int) -> State:
        return self.State(state + 1)


@pytest.mark.parametrize("prompt", [[1], [5, 6, 7] * 30])
def test_drafts_and_forced_ids_change_nothing_but_the_passes(engine: CpuEngine, prompt: list[int]) -> None:
    class Counting(CpuEngine):
        passes = 0

        def extend(self, *arguments: object) -> object:
            self.passes += 1
            return super().extend(*arguments)

    class Eager(Drafts):
        """Takes no notice of what passes take, which of so small a model is chance."""

        def took(self, n: int, seconds: float) -> None:
            pass

    counting = copy.copy(engine)
    counting.__class__ = Counting
    guided = {"guide": Repeating(), "state": Repeating.State(0)}
    for options in ({}, guided):
        counting.passes = 0
        drafts = Eager()
        assert sequences(counting, prompt, drafts, **options) == sequences(engine, prompt, **options)
        assert 0 <= drafts.right <= drafts.tried
        if options:
            assert counting.passes < 150  # a third of 300 is forced, and much of the rest comes as it came before
            assert drafts.right > 50


def test_int8_is_near_what_it_was_made_from() -> None:
    whole, rounded = made("float32"), made("int8")
    ids = torch.tensor([ids_of(96)])
    with torch.inference_mode():
        before, after = whole(ids).log_softmax(-1), rounded(ids).log_softmax(-1)
    assert 0 < (before.exp() * (before - after)).sum(-1).mean() < 0.02
    assert sum(weight.numel() * weight.element_size() for weight in rounded.state_dict().values()) < 0.3 * sum(
        weight.numel() * weight.element_size() for weight in whole.state_dict().values()
    )


@pytest.mark.parametrize("factor", [1, 30, 1000])
def test_whole_inputs_cost_little_beside_whole_weights(factor: int) -> None:
    """Two inputs of each layer larger than the others, as in trained models, whose weights make up for it."""
    model = made("float32")
    with torch.no_grad():
        for block in model.h:
            for norm, product in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
                for weight in (norm.weight, norm.bias):
                    weight[[5, 70]] *= factor
                product.weight[[5, 70]] /= factor
    ids = ids_of(96)
    with torch.inference_mode():
        whole = model(torch.tensor([ids]))[0].numpy()
        engine = CpuEngine(to_int8(model))
        rounded = read(ByTorch(engine), ids, [96])
        assert engine.ready()
        assert (read(engine, ids, [96]) - rounded).std() < 0.1 * (rounded - whole).std()


def test_keys_and_values_in_bfloat16_cost_little_beside_whole_weights(engine: CpuEngine) -> None:
    if kind_of(engine) == "float32":
        assert engine.cache(1).data.dtype == torch.float32
        return
    ids = ids_of(96)
    with torch.inference_mode():
        whole, rounded = (model(torch.tensor([ids]))[0].numpy() for model in (made("float32"), engine.model))
        cached = read(ByTorch(engine), ids, [96])
    assert 0 < (cached - rounded).std() < 0.2 * (rounded - whole).std()


def test_model_and_engine_have_the_same_weights() -> None:
    engine = CpuEngine(made("float32"))
    assert engine.ready()
    ids = torch.tensor([ids_of(9)])
    with torch.inference_mode():
        before = engine.model(ids)
        for weight in engine.model.parameters():
            weight.mul_(1.1)
        after = engine.model(ids)[0].numpy()
    assert np.abs(after - before.numpy()).max() > 1
    assert np.abs(read(engine, ids[0].tolist(), [9]) - after).max() < 2 * TOLERANCE["float32"]


def test_what_it_does_not_serve_is_left_to_torch() -> None:
    assert not CpuEngine.serves(GPT(GPTConfig(vocab_size=9, n_embd=32, n_layer=1, n_head=1)))
    assert not CpuEngine.serves(GPT(GPTConfig(vocab_size=9, n_embd=64, n_layer=1, n_head=4)))
    assert not CpuEngine.serves(made("float32").bfloat16())
    assert CpuEngine.serves(made("float32"))
    assert CpuEngine.serves(made("int8"))


def test_ids_and_positions_that_there_are_not_are_refused(engine: CpuEngine) -> None:
    for ids in ([-1], [301]):
        with pytest.raises(ValueError, match="301"):
            engine.extend([ids], engine.cache(1))
    with pytest.raises(ValueError, match="do not fit"):
        engine.extend([ids_of(161)], engine.cache(1))
    with pytest.raises(ValueError, match="do not fit"):
        engine.extend([[1], [2]], engine.cache(1))
    with pytest.raises(ValueError, match="as many in each"):
        engine.extend([[1, 2], [3], [4, 5, 6]], engine.cache(3))
    others = (
        dataclasses.replace(CONFIG, **changes) for changes in ({"n_positions": 161}, {"n_layer": 4}, {"n_embd": 64})
    )
    for cache in (
        *(KVCache(config, 1, dtype=engine.cache(1).data.dtype) for config in others),
        KVCache(CONFIG, 1, dtype=torch.float16),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            engine.extend([[1]], cache)
    with pytest.raises(ValueError, match="a mask of 300 ids"):
        engine.choose(np.zeros((1, 301), np.float32), SamplingConfig(), np.zeros(1), [np.ones(300, np.bool_)])


def test_callers_in_several_threads_do_not_disturb_each_other(engine: CpuEngine) -> None:
    expected = {seed: read(engine, ids_of(60, seed), [1] * 60) for seed in range(4)}
    found: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        cache = engine.cache(1)
        logits = [engine.extend([[id]], cache)[0] for id in ids_of(60, seed)]
        found[seed] = np.concatenate(logits)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[seed], expected[seed]) for seed in expected)


def test_two_streams_in_turns_are_those_of_each_alone(engine: CpuEngine) -> None:
    def stream(seed: int) -> Iterator[list[int | None]]:
        options = {"max_new_tokens": 200, "seed": seed, "drafts": Drafts()}
        return (ids for ids, _ in generate(engine, [1, 2] * 20, SamplingConfig(top_k=2), **options))

    in_turns = list(zip(stream(1), stream(2), strict=True))
    assert [one for one, _ in in_turns] == list(stream(1))
    assert [other for _, other in in_turns] == list(stream(2))


def test_samples_whose_windows_part_are_those_of_torch(engine: CpuEngine) -> None:
    def window(ids: Sequence[int], first: int) -> tuple[int, list[int]]:
        return next((i for i in range(first, len(ids)) if ids[i] % 5 == 0), first), []

    rows = sequences(engine, [1, 2, 3], num_samples=3, window=window)
    if kind_of(engine) == "float32":
        assert rows == sequences(ByTorch(engine), [1, 2, 3], num_samples=3, window=window)
    assert rows[0] == sequences(engine, [1, 2, 3], window=window)[0]


def test_helpers_go_when_the_engine_goes() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        engine = CpuEngine(made("float32"))
        assert engine.ready()
        alone = threading.active_count()
        read(engine, ids_of(3), [1] * 3)
        assert threading.active_count() == alone + 2
        del engine
        gc.collect()
        for thread in threading.enumerate():
            if thread.name == "musicgpt":
                thread.join(5)
        assert threading.active_count() == alone
    finally:
        torch.set_num_threads(before)


def _in_a_fork(engine: CpuEngine, cache: KVCache, expected: np.ndarray, answers: Any) -> None:
    # torch itself may hang there, where its own threads are gone: the cache is made before
    logits = [engine.extend([[id]], cache)[0] for id in ids_of(20)]
    answers.put(bool(np.array_equal(np.concatenate(logits), expected)))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are not forked")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_has_helpers_of_its_own(engine: CpuEngine) -> None:
    expected = read(engine, ids_of(20), [1] * 20)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_a_fork, args=(engine, engine.cache(1), expected, answers), daemon=True)
    child.start()
    assert answers.get(timeout=60)
    child.join()


READ_ONLY = """
import pathlib, sys, warnings
import torch
from musicgpt.cpu_engine import CpuEngine
from musicgpt.model import GPT, GPTConfig, KVCache
engine = CpuEngine(GPT(GPTConfig(vocab_size=9, n_embd=64, n_layer=1, n_head=1)).eval())
print(engine.ready(), engine.extend([[1]], engine.cache(1)).shape)
"""


def test_it_compiles_where_nothing_can_be_kept(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(nowhere / "cache"), "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", READ_ONLY],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True (1, 1, 9)"
    assert stat.S_ISREG(nowhere.stat().st_mode)
