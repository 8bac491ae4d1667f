"""The zero-shot prompts of the paper."""

from __future__ import annotations

import pytest

from musicgpt.errors import InputError
from musicgpt.tasks import TASKS, first_sentences, summarize, translate


def test_a_summary_is_asked_for_behind_the_article() -> None:
    assert summarize("An article.\n\nIts end.\n") == ("An article.\n\nIts end.", "\nTL;DR:")
    assert TASKS["summarize"].sampling == {"top_k": 2}
    assert TASKS["summarize"].sentences == 3


def test_a_translation_is_asked_for_by_examples() -> None:
    text = "good day = bonjour\n\nthank you = merci\nthe cat sleeps\n"
    assert translate(text) == ("", "good day = bonjour\nthank you = merci\nthe cat sleeps =")
    assert TASKS["translate"].sampling == {"temperature": 0.0}


@pytest.mark.parametrize("text", ["", "alone", "a = b", "a = b\nc = d", "no example\nsentence"])
def test_what_makes_no_translation_prompt_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="lines 'source = target', then a last line"):
        translate(text)


def test_sentences_end_at_a_stop_or_a_line() -> None:
    text = " One is 3.5 long. Two! Three?\nFour\n\nFive."
    assert first_sentences(text, 3) == "One is 3.5 long. Two! Three?"
    assert first_sentences(text, 4) == "One is 3.5 long. Two! Three? Four"
    assert first_sentences("", 2) == ""
