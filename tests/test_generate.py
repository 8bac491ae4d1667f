"""Ids from ids: what the cache and the sliding window give is what plain recomputation gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from musicgpt.drafts import Drafts
from musicgpt.engine import TorchEngine
from musicgpt.generate import generate
from musicgpt.model import GPT, GPTConfig
from musicgpt.sampling import SamplingConfig, sample, uniform

CONFIG = GPTConfig(vocab_size=97, n_positions=32, n_embd=32, n_layer=2, n_head=2)


@pytest.fixture(scope="module")
def gpt() -> GPT:
    torch.manual_seed(2)
    model = GPT(CONFIG)
    with torch.no_grad():  # as they begin, the weights predict almost nothing
        for weight in model.parameters():
            weight.mul_(4)
    return model.eval()


def new_ids(*arguments: Any, **options: Any) -> Iterator[list[int | None]]:
    """The ids that `generate` yields."""
    return (ids for ids, _ in generate(TorchEngine(arguments[0]), *arguments[1:], **options))


class Exactly(TorchEngine):
    """In double precision no rounding is large enough to choose another id."""

    exact = True


def plainly(model: GPT, prompt: list[int], n: int, seed: int) -> list[int]:
    """The same without a cache: a window that is halved whenever it is full."""
    ids, start = list(prompt), 0
    with torch.inference_mode():
        for _ in range(n):
            if len(ids) - start > CONFIG.n_positions:
                start = len(ids) - CONFIG.n_positions // 2
            logits = model(torch.tensor([ids[start:]]))[:, -1]
            number = torch.from_numpy(uniform(seed, 1, len(ids)))
            ids.append(int(sample(logits, SamplingConfig(), number)))
    return ids[len(prompt) :]


@pytest.mark.parametrize("length", [1, 5, 31, 32])
def test_far_beyond_the_context_the_ids_are_those_of_plain_recomputation(gpt: GPT, length: int) -> None:
    prompt = torch.randint(0, 97, (length,)).tolist()
    steps = list(new_ids(gpt, prompt, SamplingConfig(), max_new_tokens=150, seed=9))
    assert [step[0] for step in steps] == plainly(gpt, prompt, 150, seed=9)


def test_a_row_does_not_depend_on_how_many_there_are(gpt: GPT) -> None:
    def rows(n: int) -> list[list[int | None]]:
        steps = list(new_ids(gpt, [1, 2, 3], SamplingConfig(), max_new_tokens=60, seed=4, num_samples=n))
        return [list(row) for row in zip(*steps, strict=True)]

    four = rows(4)
    assert rows(2) == four[:2]
    assert four[0] != four[1]


def test_a_sample_ends_behind_its_end_and_the_others_go_on(gpt: GPT) -> None:
    steps = list(new_ids(gpt, [1], SamplingConfig(temperature=3), max_new_tokens=400, seed=5, num_samples=3, eos_id=7))
    rows = list(zip(*steps, strict=True))
    ends = [row.index(7) for row in rows if 7 in row]
    assert len(ends) >= 2
    for row in rows:
        if 7 in row:
            assert set(row[row.index(7) + 1 :]) <= {None}
    assert len(steps) == (max(ends) + 1 if len(ends) == 3 else 400)


def test_ids_that_the_tokenizer_lacks_are_never_chosen(gpt: GPT) -> None:
    steps = list(new_ids(gpt, [1], SamplingConfig(top_k=None, temperature=5), max_new_tokens=300, seed=0, n_ids=11))
    assert {step[0] for step in steps} <= set(range(11))


def test_a_prompt_of_no_ids_is_refused(gpt: GPT) -> None:
    with pytest.raises(ValueError, match="an empty prompt"):
        next(generate(TorchEngine(gpt), [], SamplingConfig(), max_new_tokens=1, seed=0))


def test_of_a_long_prompt_the_model_sees_the_last_window(gpt: GPT) -> None:
    prompt = torch.randint(0, 97, (100,)).tolist()
    steps = list(new_ids(gpt, prompt, SamplingConfig(), max_new_tokens=9, seed=3))
    assert [step[0] for step in steps] != []
    numbers = torch.from_numpy(uniform(3, 1, 100))
    with torch.inference_mode():
        logits = gpt(torch.tensor([prompt[-16:]]))[:, -1]
    assert steps[0][0] == int(sample(logits, SamplingConfig(), numbers))


class Threes:
    """Multiples of three only; the state is how many ids came, and a sample ends behind the tenth."""

    class State(int):
        @property
        def ended(self) -> bool:
            return self >= 10

    def mask(self, state: State) -> np.ndarray:
        return np.arange(97) % 3 == 0

    def advance(self, state: State, id: int) -> State:
        return self.State(state + 1)


def test_a_guide_says_which_ids_may_follow_and_when_a_sample_ends(gpt: GPT) -> None:
    options = {"max_new_tokens": 50, "seed": 1, "num_samples": 2, "guide": Threes(), "state": Threes.State(0)}
    steps = list(generate(TorchEngine(gpt), [1], SamplingConfig(), **options))
    assert [states for _, states in steps] == [[n, n] for n in range(1, 11)]
    assert all(id is not None and id % 3 == 0 for ids, _ in steps for id in ids)


@pytest.mark.parametrize("samples", [1, 3])
def test_windows_begin_where_they_may_and_say_what_they_must(gpt: GPT, samples: int) -> None:
    gpt = copy.deepcopy(gpt).double()  # else a batch and a single row may differ by a rounding, and then by all

    def window(ids: Sequence[int], first: int) -> tuple[int, list[int]]:
        """Windows begin at an id below 30, with its number of places said before."""
        start = next((i for i in range(first, len(ids)) if ids[i] < 30), first)
        return start, [start % 97]

    options = {"max_new_tokens": 120, "seed": 5, "num_samples": samples}
    rows = list(zip(*new_ids(gpt, [1, 2, 3], SamplingConfig(), window=window, **options), strict=True))
    for row, made in enumerate(rows):
        ids, context = [1, 2, 3], [1, 2, 3]
        with torch.inference_mode():
            for _ in range(120):
                if len(context) > CONFIG.n_positions:
                    start, header = window(ids, len(ids) - 16)
                    if start - (len(ids) - 16) > CONFIG.n_positions // 4:  # too little would be left
                        start, header = len(ids) - 16, []
                    context = [*header, *ids[start:]]
                numbers = torch.from_numpy(uniform(5, samples, len(ids)))[row : row + 1]
                id = int(sample(gpt(torch.tensor([context]))[:, -1], SamplingConfig(), numbers))
                ids.append(id)
                context.append(id)
        assert list(made) == ids[3:]


@pytest.mark.parametrize("prompt", [[3], [1, 2, 3, 4] * 6, [5] * 32])
@pytest.mark.parametrize("top_k", [2, 40])
def test_drafts_change_no_id(gpt: GPT, prompt: list[int], top_k: int) -> None:
    engine = Exactly(copy.deepcopy(gpt).double())
    options = {"max_new_tokens": 200, "seed": 8}
    expected = list(generate(engine, prompt, SamplingConfig(top_k=top_k), **options))
    drafts = Drafts()
    assert list(generate(engine, prompt, SamplingConfig(top_k=top_k), drafts=drafts, **options)) == expected
    assert drafts.tried > 0 or top_k == 40


@pytest.mark.parametrize("stretch", [10, 32, 33, 100])
def test_forced_ids_beyond_the_context_change_nothing(gpt: GPT, stretch: int) -> None:
    class Stretches:
        """So many ids of no choice, then as many of some: windows end in either."""

        def mask(self, state: int) -> np.ndarray:
            return np.arange(97) < 50 if state // stretch % 2 else np.arange(97) == 60 + state % 7

        def advance(self, state: int, id: int) -> int:
            return Forever(state + 1)

    class Forever(int):
        ended = False

    engine = Exactly(copy.deepcopy(gpt).double())
    options = {"max_new_tokens": 300, "seed": 1, "guide": Stretches(), "state": Forever(0)}
    alone = [ids[0] for ids, _ in generate(engine, [1, 2], SamplingConfig(), drafts=Drafts(), **options)]
    # of several samples none skips a pass
    beside = [ids[0] for ids, _ in generate(engine, [1, 2], SamplingConfig(), num_samples=2, **options)]
    assert alone == beside


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_gives_what_the_cpu_gives(gpt: GPT) -> None:
    prompt = torch.randint(0, 97, (9,)).tolist()
    options = {"max_new_tokens": 60, "seed": 2}
    there = copy.deepcopy(gpt).cuda()
    expected = list(new_ids(gpt, prompt, SamplingConfig(), **options))
    assert list(new_ids(there, prompt, SamplingConfig(), **options)) == expected
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        difference = there.bfloat16()(ids.cuda()).float().cpu() - gpt(ids)
    assert difference.abs().max() < 0.05 * gpt(ids).abs().max()
    assert len(list(new_ids(there, prompt, SamplingConfig(), **options))) == 60
