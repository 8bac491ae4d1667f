"""What is asked of a model, by names, and the samples that come of it, one row each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from musicgpt.constraints import Constraints, program_name
from musicgpt.controls import distance
from musicgpt.errors import UsageError
from musicgpt.grammar import Grammar
from musicgpt.marks import Levels, in_words
from musicgpt.sampling import SamplingConfig
from musicgpt.state import Note, State

CONSTRAINT_NAMES = {field.name for field in fields(Constraints) if field.init}
SAMPLING_NAMES = {field.name for field in fields(SamplingConfig)}


def read_options(options: dict[str, Any], others: Iterable[str]) -> tuple[Constraints, SamplingConfig]:
    """Options by their names -> what the music keeps to, and how ids are chosen; `others` are those known elsewhere.

    Raises:
        TypeError: an option there is not.
        UsageError: a value outside its range.
    """
    if unknown := sorted(set(options) - CONSTRAINT_NAMES - SAMPLING_NAMES):
        known = ", ".join(sorted({*others, *CONSTRAINT_NAMES, *SAMPLING_NAMES}))
        raise TypeError(f"there is no option {unknown[0]}; expected one of {known}")
    asked = {name: value for name, value in options.items() if name in CONSTRAINT_NAMES}
    chosen = {name: value for name, value in options.items() if name in SAMPLING_NAMES}
    try:
        return Constraints(**{**asked, "track": tuple(asked.get("track") or ())}), SamplingConfig(**chosen)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_asked(constraints: Constraints, sampling: SamplingConfig, keep: str | None = None) -> None:
    """Raises: UsageError: another `keep` than best, or something that goes by controls, and none is asked for."""
    if keep not in (None, "best"):
        raise UsageError(f"keep {keep!r}: expected best, the result that is nearest to the controls asked for")
    for name, given in (("--keep best", keep), ("--guidance", sampling.guidance != 1)):
        if given and not constraints.controls:
            raise UsageError(
                f"{name} goes by the controls asked for (density, key …), and there are none; leave it out"
            )


class Answer:
    """A result, beside what was asked of it by controls."""

    asked: list[Levels]
    """The controls asked of each segment of the new music, if any were."""
    controls: list[Levels]
    """What they became: all that can be measured there, in the same levels."""

    @property
    def distance(self) -> float:
        """How far it is from the controls asked for, in levels: from 0 to 4."""
        return distance(self.asked, self.controls)

    @property
    def answers(self) -> list[str]:
        """A line for each control asked for: what was asked, segment by segment, and what it became."""
        lines = []
        for rank, control in dict.fromkeys(key for levels in self.asked for key in levels):
            asked, made = (
                ", ".join(in_words(control, levels.get((rank, control))) for levels in side)
                for side in (self.asked, self.controls)
            )
            whose = "" if rank is None else f" of {program_name(rank)}"
            lines.append(f"{control.replace('_', ' ')}{whose}: asked {asked}; made {made}")
        return lines


class Row:
    """One sample as it grows: its ids, and for music where in the piece it is."""

    def __init__(self, grammar: Grammar | None) -> None:
        self.grammar = grammar
        self.ids: list[int] = []
        self.notes: list[Note] = []
        self.ended = self.reached = self.stuck = self._closed = False
        if grammar is not None:
            self.state = grammar.begin
            self._kept, self._kept_state = 0, grammar.begin

    def take(self, id: int, state: State | None, limit: int | None) -> None:
        """One more id, and for music the state behind it; nothing once the row has ended."""
        if self.ended:
            return
        if self.grammar is None or state is None:
            self.ids.append(id)
            return
        if state.ended:
            self.ended = self.reached = True
            # the end token is barred until the length is reached, unless nothing else is left
            self.stuck = id == self.grammar.vocabulary.eos_id and self.grammar.end(self.state) is not None
            return
        self.ids.append(id)
        self.state = state
        self.notes += state.completed
        if self.grammar.complete(state):
            self._kept, self._kept_state = len(self.ids), state
        if limit is not None and len(self.ids) + self.grammar.reserve(state) >= limit:
            self.ended = True

    def close(self) -> None:
        """Cut back to the last complete note, and end what still sounds."""
        if self.grammar is None or self._closed:
            return
        self._closed = self.ended = True
        if not self.reached or self.grammar.dangling(self.state):
            tail, self.state = self.grammar.trimmed(self._kept_state, self.ids[self._kept :])
            self.ids[self._kept :] = tail
        for id in self.grammar.closing(self.state):
            self.ids.append(id)
            self.state = self.grammar.extend(self.state, id)
            self.notes += self.state.completed
        if self.reached:
            self.ids.append(self.grammar.vocabulary.eos_id)
