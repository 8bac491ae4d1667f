"""The back-off model: its formula on a few ids, that it is a distribution, and that longer contexts help real music."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from musicgpt.evaluate import evaluate
from musicgpt.ngrams import DISCOUNTS, ORDER, Ngrams
from musicgpt.shards import Shards


def documents(shards: Shards, split: str) -> list[np.ndarray]:
    shard = shards.split(split)
    return [shard.sequence(int(first)).astype(np.int64) for first in shard.documents[:-1]]


def test_two_ids_of_context_by_hand() -> None:
    """Training: 0 1 2, 0 1 3, 0 2; V = 4; so few grams that the discounts are those for n = 1, 2, 3."""
    train = [np.array(ids) for ids in ((0, 1, 2), (0, 1, 3), (0, 2))]
    D = DISCOUNTS
    # 1: before 1 stands 0; before 2 stand 1 and 0; before 3 stands 1
    alone = {b: (n - D[n]) / 4 + (2 * D[1] + D[2]) / 4 * (1 / 4) for b, n in {0: 0, 1: 1, 2: 2, 3: 1}.items()}
    # 2: after 0 come 1 (before 0 1 only the beginning) and 2 (likewise); after 1 come 2 and 3, once each before
    after_0 = {b: (n - D[n]) / 2 + 2 * D[1] / 2 * alone[b] for b, n in {1: 1, 2: 1, 3: 0}.items()}
    after_1 = {b: (n - D[n]) / 2 + 2 * D[1] / 2 * alone[b] for b, n in {1: 0, 2: 1, 3: 1}.items()}
    # 3: after the beginning and 0 come 1 twice and 2 once; after 0 1 come 2 and 3; after 0 2 nothing
    first = {b: (n - D[n]) / 3 + (D[2] + D[1]) / 3 * after_0[b] for b, n in {1: 2, 2: 1, 3: 0}.items()}
    second = {b: (n - D[n]) / 2 + 2 * D[1] / 2 * after_1[b] for b, n in {1: 0, 2: 1, 3: 1}.items()}
    model = Ngrams(train, 4, order=3)
    found = model.probabilities([np.array((0, 1, 3)), np.array((0, 2, 3)), np.array((0, 3, 1, 1))])
    expected = [
        *(first[1], second[3]),
        *(first[2], alone[3]),  # nothing is known after 2
        *(first[3], alone[1], after_1[1]),  # nor after 3, nor of 3 1, but of 1
    ]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("order", [1, 2, 4, ORDER])
def test_the_probabilities_of_all_ids_sum_to_one(run: Path, order: int) -> None:
    shards = Shards(run / "shards")
    V = shards.vocab_size
    model = Ngrams(documents(shards, "train"), V, order)
    random = np.random.default_rng(order)
    places = [document[: random.integers(1, len(document))] for document in documents(shards, "val")]
    places.append(random.integers(0, V, 20))  # what never was there
    for context in places:
        every = np.concatenate([np.tile(context, (V, 1)), np.arange(V)[:, None]], axis=1)
        p = model.probabilities(every).reshape(V, -1)[:, -1]
        assert (p > 0).all()
        assert p.sum() == pytest.approx(1, abs=1e-6)


def test_longer_contexts_make_real_music_likelier(run: Path) -> None:
    shards = Shards(run / "shards")
    train, val = documents(shards, "train"), documents(shards, "val")
    loss = {n: -np.log(Ngrams(train, shards.vocab_size, n).probabilities(val)).mean() for n in (1, 2, 4, ORDER)}
    assert loss[1] > loss[2] > loss[4] > loss[ORDER]
    found = evaluate(run, run / "shards", report=print)["baselines"]
    assert found["back_off"] < min(found["bigram"], found["copy"])
    assert loss[1] == pytest.approx(found["unigram"], abs=0.2)


def test_a_chain_is_known_and_noise_is_not() -> None:
    random = np.random.default_rng(0)
    chain = np.tile(random.permutation(50), 40)
    assert -np.log(Ngrams([chain], 50).probabilities([chain])).mean() < 0.05
    noise = [random.integers(0, 50, 3000) for _ in range(4)]
    assert -np.log(Ngrams(noise[1:], 50).probabilities(noise[:1])).mean() > math.log(50) - 0.01


def test_without_anything_counted_all_ids_are_equally_likely() -> None:
    assert Ngrams([], 8).probabilities([np.array([0, 1, 2])]).tolist() == [1 / 8, 1 / 8]
    assert Ngrams([np.array([0])], 8).probabilities([np.array([0, 1, 2])]).tolist() == [1 / 8, 1 / 8]
