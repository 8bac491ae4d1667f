"""The stream of windows: a pure function of (seed, step); each id of text a target once an epoch, music by its bars."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musicgpt import midi
from musicgpt.batches import IGNORED, Batches, Window, windows_in_order
from musicgpt.shards import Shard
from musicgpt.tokenizer import Tokenizer, new_tokenizer

BOS, EOS = 1, 2


def shard_of(documents: list[list[list[int]]]) -> Shard:
    """Documents, each the list of its sequences, as they stand in the files of a split."""
    sequences = [sequence for document in documents for sequence in document]
    ends = np.cumsum([len(sequence) for sequence in sequences])
    ids = np.array([id for sequence in sequences for id in sequence], dtype=np.uint32)
    return Shard(ids, np.append(0, ends), np.append(0, np.cumsum([len(document) for document in documents])))


@pytest.fixture
def shard() -> Shard:
    """30 documents of 3 variants, and all ids but BOS and EOS different."""
    random = np.random.default_rng(0)
    number = 10
    documents = []
    for _ in range(30):
        sequences = []
        for _ in range(3):
            length = int(random.integers(1, 60))
            sequences.append([BOS, *range(number, number + length), EOS])
            number += length
        documents.append(sequences)
    return shard_of(documents)


def anywhere(ids: np.ndarray, first: int) -> tuple[int, list[int]]:
    return first, []


def batches(shard: Shard, window: Window = anywhere, **changes: Any) -> Batches:
    given = {"batch_size": 4, "n_positions": 16, "seed": 5, "eos_id": EOS, "unscored": frozenset({BOS})} | changes
    return Batches(shard, window=window, **given)


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
        for start, ids in zip(made._cuts(step), made[step][0], strict=True):
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
    starts = [made._cuts(step)[0] for step in range(400)]
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


def test_a_corpus_smaller_than_a_window_repeats() -> None:
    tiny = shard_of([[[BOS, 10, 11, EOS]]])
    ids, targets = batches(tiny, batch_size=1)[0]
    assert ids[0].tolist() == [BOS, 10, 11, EOS] * 4
    assert targets[0].tolist() == [10, 11, EOS, IGNORED] * 4


def stream_of(made: Batches, epochs: int) -> np.ndarray:
    """All ids of the first epochs, put together sequence by sequence."""
    return np.concatenate([made.shard.sequence(int(n)) for e in range(epochs) for n in made._plan(e).sequences]).astype(
        np.int64
    )


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_text_is_the_stream_cut_at_every_t_ids(shard: Shard, name: str) -> None:
    made = batches(shard, new_tokenizer(name).window)
    stream = stream_of(made, 4)
    for step in range(40):
        for cut, ids, targets in zip(made._cuts(step), *made[step], strict=True):
            assert ids.tolist() == stream[cut : cut + 16].tolist()
            following = stream[cut + 1 : cut + 17]
            assert targets.tolist() == np.where(following == BOS, IGNORED, following).tolist()


def test_where_bos_is_eos_it_is_scored(shard: Shard) -> None:
    _, targets = batches(shard, eos_id=BOS)[0]
    assert not (targets == IGNORED).any()


def test_an_empty_split_is_refused() -> None:
    empty = Shard(np.zeros(0, dtype="<u2"), np.zeros(1, dtype="<i8"), np.zeros(1, dtype="<i8"))
    with pytest.raises(ValueError, match="the training split is empty"):
        batches(empty)


def test_validation_scores_each_id_once(shard: Shard) -> None:
    windows = windows_in_order(shard, n_positions=16, unscored=frozenset({BOS}), limit=10**9)
    targets = torch.cat([targets[0] for _, targets in windows]).tolist()
    expected = [int(id) for i in range(0, 90, 3) for id in shard.sequence(i)]
    assert [id for id in targets if id != IGNORED] == [id for id in expected if id != BOS]
    few = windows_in_order(shard, n_positions=16, unscored=frozenset({BOS}), limit=100)
    assert 0 < sum(ids.numel() for ids, _ in few) <= 100


def music_shard(corpora: list[Path], tokenizer: Tokenizer[object], end: bool = True) -> Shard:
    scores = [midi.read_scores(path)[0][0] for path in corpora]
    tail = [tokenizer.eos_id] if end else []
    encoded = [tokenizer.encode(score) for score in scores if score.note_num() < 2500]
    return shard_of([[[tokenizer.bos_id, *ids, *tail]] for ids in encoded])


@pytest.fixture(params=["remi", "tsd", "midilike", "structured"])
def music(request: pytest.FixtureRequest, corpora: list[Path]) -> tuple[Shard, Batches]:
    tokenizer = new_tokenizer(request.param)
    shard = music_shard(corpora, tokenizer)
    return shard, batches(
        shard, tokenizer.window, n_positions=256, eos_id=tokenizer.eos_id, unscored=tokenizer.unscored
    )


def test_a_window_of_music_begins_at_a_bar_line_or_with_the_next_document(music: tuple[Shard, Batches]) -> None:
    _, made = music
    stream = stream_of(made, 3)
    bos = int(made.shard.ids[0])
    begins = np.flatnonzero(stream == bos)
    headers = 0
    for step in range(20):
        for cut, ids, targets in zip(made._cuts(step), *made[step], strict=True):
            n = int(np.searchsorted(begins, cut, side="right"))
            begin, end = int(begins[n - 1]), int(begins[n])
            start, header = made.window(stream[begin:end], cut - begin)
            start += begin
            if start - cut + len(header) > 128:
                start, header = cut, []
            if cut < start == end - 1:
                start = end
            assert [*header, *stream[start : start + 257 - len(header)].tolist()][:-1] == ids.tolist()
            scored = max(0, len(header) - 1)
            assert (targets[:scored] == IGNORED).all()
            following = stream[start + (not header) :][: 256 - scored]
            assert targets[scored:].tolist() == np.where(following == bos, IGNORED, following).tolist()
            assert header or start in (cut, end)
            headers += bool(header)
    assert headers > 50  # of 80


def test_what_is_skipped_in_one_epoch_is_learned_in_another(music: tuple[Shard, Batches]) -> None:
    shard, made = music
    made = Batches(
        shard, window=made.window, batch_size=1, n_positions=256, seed=0, eos_id=made.eos_id, unscored=made.unscored
    )
    epochs = 24
    stream = stream_of(made, epochs + 1)
    seen = np.zeros(len(stream), dtype=np.int64)
    made._epoch_of(len(stream) - 1)
    for cut in range(0, made._epoch_starts[epochs], 256):
        start, header = made._begin(cut)
        seen[start + (len(header) == 0) : start + 257 - len(header)] += 1
    length = len(shard.ids)
    document_of = np.repeat(np.arange(shard.n_documents), np.diff(shard.offsets))
    epochs_seen = np.zeros(length, dtype=np.int64)
    for epoch in range(epochs):
        start = made._epoch_starts[epoch]
        part = seen[start : start + length]
        assert (part > 0).mean() > 0.85
        assert part.max() <= 2
        where = np.concatenate([np.flatnonzero(document_of == d) for d in made._plan(epoch).order])
        epochs_seen[where] += part > 0
    assert (epochs_seen[~np.isin(shard.ids, sorted(made.unscored))] > 0).all()


def test_a_piece_without_an_end_is_followed_by_the_next(corpora: list[Path]) -> None:
    tokenizer = new_tokenizer("remi")
    shard = music_shard(corpora, tokenizer, end=False)
    made = batches(shard, tokenizer.window, n_positions=1024, eos_id=tokenizer.eos_id, unscored=tokenizer.unscored)
    bar = tokenizer.wrapped.vocab["Bar_None"]
    for step in range(25):
        for ids in made[step][0].tolist():
            assert ids[0] == tokenizer.bos_id or bar in ids[:3]


def test_a_header_that_would_fill_the_context_is_left_out(music: tuple[Shard, Batches]) -> None:
    shard, made = music
    tiny = Batches(
        shard, window=made.window, batch_size=8, n_positions=4, seed=0, eos_id=made.eos_id, unscored=made.unscored
    )
    assert all((tiny[step][1] != IGNORED).sum() >= 8 for step in range(50))
