"""The zero-shot prompts of the GPT-2 paper: a file of text -> the prompt, and what to keep of the answer.

Source: Radford et al. 2019, sections 3.6 (summaries: "TL;DR:", top-k 2, 100 ids, the first three sentences) and 3.7
(translation: lines "source = target" as examples, then "source =", the most likely ids, the first sentence).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from musicgpt.errors import InputError


@dataclass(frozen=True)
class Task:
    """How a prompt is made of a text, how it is sampled, and how much of the answer is kept."""

    prompt: Callable[[str], tuple[str, str]]
    """Text -> what may be cut short to fit the context, and what must stand at its end."""
    sampling: Mapping[str, Any]
    """Fields of `SamplingConfig`."""
    max_new_tokens: int
    sentences: int


def summarize(text: str) -> tuple[str, str]:
    return text.rstrip(), "\nTL;DR:"


def translate(text: str) -> tuple[str, str]:
    """Lines "source = target", and as the last one the sentence to translate.

    Raises:
        InputError: no example, or a last line that is one.
    """
    *examples, sentence = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if not examples or not all("=" in line for line in examples) or "=" in sentence:
        raise InputError("to translate, the file needs lines 'source = target', then a last line with the source alone")
    return "", "\n".join([*examples, f"{sentence} ="])


def first_sentences(text: str, n: int) -> str:
    """The first n sentences of what was generated; a line break ends one too."""
    parts = [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text.strip())]
    return " ".join([part for part in parts if part][:n])


TASKS = {
    "summarize": Task(summarize, {"top_k": 2}, 100, 3),
    "translate": Task(translate, {"temperature": 0.0}, 100, 1),
}
