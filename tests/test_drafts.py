"""Guesses: they come true where a sequence repeats itself, and stop where it does not."""

from __future__ import annotations

import numpy as np

from musicgpt.drafts import MOST, Drafts


def tried_and_right(ids: list[int]) -> tuple[list[int], list[int]]:
    """How many ids were guessed before each pass, and how many of them came true, when nothing else is known."""
    drafts, tried, right, at = Drafts(), [], [], 0
    while at < len(ids):
        guesses = drafts.guess(len(ids) - at)
        n = 0
        while n < len(guesses) and guesses[n] == ids[at + n]:
            n += 1
        drafts.add(ids[at : at + n + 1])
        at += n + 1
        tried.append(len(guesses))
        right.append(n)
    return tried, right


def test_what_repeats_itself_is_guessed() -> None:
    phrase = np.random.default_rng(0).integers(0, 1000, 100).tolist()
    tried, right = tried_and_right(phrase * 5)
    assert sum(tried[:100]) < 10
    assert sum(right) / sum(tried) > 0.95
    assert len(tried) < 100 + 400 / 4  # passes: one for each new id, then one for several
    assert max(tried) == MOST


def test_of_a_note_never_heard_the_rest_is_guessed() -> None:
    """Ids of the same kind stand three apart: pitch, velocity, duration."""
    drafts = Drafts()
    for pitch in range(60):
        drafts.add([pitch, 500, 600 + pitch // 30])
    drafts.add([60])
    assert drafts.guess(2) == [500, 601]


def test_where_nothing_comes_again_hardly_anything_is_guessed() -> None:
    tried, _ = tried_and_right(np.random.default_rng(1).integers(0, 40, 3000).tolist())
    assert sum(tried[1000:]) < 0.05 * len(tried[1000:])


def test_it_begins_again_when_the_piece_does() -> None:
    random = np.random.default_rng(2)
    phrase = random.integers(0, 1000, 100).tolist()
    ids = [*phrase, *random.integers(1000, 1040, 1500).tolist(), *phrase * 2]
    drafts = Drafts()
    drafts.add(ids[:-80])
    guesses = drafts.guess(80)
    assert len(guesses) >= 1
    assert guesses == ids[-80 : len(guesses) - 80]


def test_guesses_depend_on_the_ids_alone() -> None:
    ids = np.random.default_rng(3).integers(0, 8, 500).tolist()
    one, other = Drafts(), Drafts()
    one.add(ids)
    for id in ids:
        other.guess(5)
        other.add([id])
    assert one.guess(5) == other.guess(5)


def test_where_one_more_id_costs_a_pass_nothing_is_guessed_but_for_a_try() -> None:
    cheap, dear = Drafts(), Drafts()
    tried = 0
    for _ in range(100):
        for drafts, share in ((cheap, 0.1), (dear, 1.0)):
            n = 1 + len(drafts.guess(7))
            drafts.took(n, 0.001 * (1 + share * (n - 1)))
            drafts.add([1, 2, 3, 4, 5, 6, 7])
            tried += n - 1 if drafts is dear else 0
    assert len(cheap.guess(7)) == MOST
    assert 0 < tried < 200


def test_no_more_than_there_is_room_for() -> None:
    drafts = Drafts()
    assert drafts.guess(5) == []
    drafts.add([1, 2] * 50)
    assert drafts.guess(0) == []
    assert drafts.guess(3) == [1, 2, 1]
    assert len(drafts.guess(100)) == MOST
