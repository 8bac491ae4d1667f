"""The stream of windows: every id a target once an epoch, a pure function of (seed, step)."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from musicgpt.batches import IGNORED, Batches, windows_in_order
from musicgpt.shards import Shard, ShardWriter

BOS, EOS = 1, 2


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """30 documents of 3 variants, and all ids but BOS and EOS different."""
    random = np.random.default_rng(0)
    number = 10
    with ShardWriter(tmp_path, "train", 100_000) as writer:
        for _ in range(30):
            sequences = []
            for _ in range(3):
                length = int(random.integers(1, 60))
                sequences.append([BOS, *range(number, number + length), EOS])
                number += length
            writer.add(sequences)
    ids, offsets, documents = (
        np.fromfile(tmp_path / f"train.{part}", dtype=dtype)
        for part, dtype in (("ids", "<u4"), ("offsets", "<i8"), ("documents", "<i8"))
    )
    return Shard(ids, offsets, documents)


def batches(shard: Shard, **changes: int) -> Batches:
    return Batches(shard, **({"batch_size": 4, "n_positions": 16, "seed": 5, "bos_id": BOS, "eos_id": EOS} | changes))


def test_targets_are_the_next_ids_and_a_certain_bos_is_none(shard: Shard) -> None:
    for step in range(20):
        ids, targets = batches(shard)[step]
        assert ids.shape == targets.shape == (4, 16)
        assert ids.dtype == torch.int64
        inside = targets[:, :-1]
        assert ((inside == ids[:, 1:]) | ((inside == IGNORED) & (ids[:, 1:] == BOS))).all()
        assert not (targets == BOS).any()


def in_stream_order(made: Batches, steps: int) -> list[int]:
    """The ids of the first windows, put back into the order in which they stand in the stream."""
    windows = {}
    for step in range(steps):
        for start, ids in zip(made._starts(step), made[step][0], strict=True):
            windows[start] = ids.tolist()
    return [id for start in sorted(windows) for id in windows[start]]


def test_in_an_epoch_every_document_comes_once_in_one_variant(shard: Shard) -> None:
    made = batches(shard)
    length = next(step for step in range(1000) if made.epoch(step) >= 1)
    stream = in_stream_order(made, 2 * length)
    whole = [tuple(shard.sequence(i).tolist()) for i in range(90)]
    document_of = {sequence: i // 3 for i, sequence in enumerate(whole)}
    pieces, current = [], []
    for id in stream[: made._epoch_starts[1]]:
        if id == BOS:
            current = []
        current.append(id)
        if id == EOS:
            pieces.append(document_of[tuple(current)])
    assert sorted(pieces) == list(range(30))
    assert pieces != sorted(pieces)
    assert made._plan(1).order.tolist() != pieces


def test_every_window_of_the_stream_comes_once_and_none_beside_its_neighbour(shard: Shard) -> None:
    made = batches(shard, batch_size=1)
    starts = [made._starts(step)[0] for step in range(400)]
    assert len(set(starts)) == 400
    epochs = [made._epoch_of(start) for start in starts]
    assert epochs == sorted(epochs)  # an epoch is finished before the next begins
    done = epochs.index(epochs[-1])
    assert sorted(starts[:done]) == [16 * i for i in range(done)]
    neighbours = sum(b - a == 16 for a, b in itertools.pairwise(starts))
    assert neighbours < 40


def test_the_variant_changes_from_epoch_to_epoch(shard: Shard) -> None:
    made = batches(shard, batch_size=1)
    plans = [made._plan(epoch) for epoch in range(12)]
    seen = Counter(int(s) for plan in plans for s in plan.sequences)
    assert len(seen) > 80


def test_a_step_can_be_read_without_those_before_it_and_seeds_differ(shard: Shard) -> None:
    in_order = [batches(shard)[step] for step in range(30)]
    made = batches(shard)
    for step in (29, 3, 17, 0):
        for one, other in zip(made[step], in_order[step], strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(batches(shard, seed=6)[0][0], in_order[0][0])


def test_the_batch_size_cuts_the_same_stream(shard: Shard) -> None:
    two = torch.cat([batches(shard, batch_size=2)[step][0] for step in range(6)])
    assert torch.equal(two, torch.cat([batches(shard)[step][0] for step in range(3)]))


def test_the_documents_of_a_step_are_those_in_its_windows(shard: Shard) -> None:
    made = batches(shard, batch_size=2)
    owner = {int(id): i // 3 for i in range(90) for id in shard.sequence(i)[1:-1]}
    for step in range(25):
        ids, targets = made[step]
        inside = {owner[int(id)] for id in torch.cat((ids, targets), 1).flatten() if int(id) in owner}
        assert inside <= set(made.documents(step))
        assert len(set(made.documents(step)) - inside) <= 2  # a window may hold no more than a BOS of one


def test_a_corpus_smaller_than_a_window_repeats(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", 100) as writer:
        writer.add([[BOS, 10, 11, EOS]])
    tiny = Shard(np.fromfile(tmp_path / "train.ids", dtype="<u2"), np.array([0, 4]), np.array([0, 1]))
    ids, targets = batches(tiny, batch_size=1)[0]
    assert ids[0].tolist() == [BOS, 10, 11, EOS] * 4
    assert targets[0].tolist() == [10, 11, EOS, IGNORED] * 4


def test_where_bos_is_eos_it_is_scored(shard: Shard) -> None:
    _, targets = batches(shard, eos_id=BOS)[0]
    assert not (targets == IGNORED).any()


def test_an_empty_split_is_refused() -> None:
    empty = Shard(np.zeros(0, dtype="<u2"), np.zeros(1, dtype="<i8"), np.zeros(1, dtype="<i8"))
    with pytest.raises(ValueError, match="the training split is empty"):
        batches(empty)


def test_validation_scores_each_id_once(shard: Shard) -> None:
    windows = windows_in_order(shard, n_positions=16, bos_id=BOS, eos_id=EOS, limit=10**9)
    targets = torch.cat([targets[0] for _, targets in windows]).tolist()
    expected = [int(id) for i in range(0, 90, 3) for id in shard.sequence(i)]
    assert [id for id in targets if id != IGNORED] == [id for id in expected if id != BOS]
    few = windows_in_order(shard, n_positions=16, bos_id=BOS, eos_id=EOS, limit=100)
    assert 0 < sum(ids.numel() for ids, _ in few) <= 100
