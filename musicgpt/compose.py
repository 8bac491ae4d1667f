"""A model with its tokenizer: prompt in, finished piece out. The public face is `musicgpt.load`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgpt import checkpoint
from musicgpt.config import Report
from musicgpt.errors import InputError, UsageError
from musicgpt.generate import generate
from musicgpt.model import GPT
from musicgpt.sampling import SamplingConfig
from musicgpt.tasks import TASKS, first_sentences
from musicgpt.tokenizer import Tokenizer

MAX_SAMPLES = 1024
"""Each sample has a cache of its own."""


@dataclass(frozen=True)
class Piece:
    """One result: the ids of the prompt, those that the model added, and both (or the new ones alone) decoded."""

    prompt_ids: list[int]
    new_ids: list[int]
    include_prompt: bool
    tokenizer: Tokenizer[Any]

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.new_ids if self.include_prompt else self.new_ids

    @property
    def document(self) -> Any:
        """A `symusic.Score` from a model of music, a str from a model of text."""
        return self.tokenizer.decode(self.ids)

    @property
    def score(self) -> Any:
        """The `symusic.Score` of a piece of music."""
        return self.document

    def _repr_html_(self) -> str:
        prompt = self.tokenizer.decode(self.prompt_ids) if self.include_prompt and self.prompt_ids else None
        return self.tokenizer.as_html(self.document, prompt)

    def save(self, path: str | Path) -> None:
        """Raises: InputError: the file cannot be written."""
        self.tokenizer.write(self.document, Path(path))


class LanguageModel:
    """What `musicgpt.load` gives: a GPT-2 and the tokenizer it was trained with.

    >>> model = musicgpt.load("runs/mine")                      # doctest: +SKIP
    >>> piece = model.generate(prompt="phrase.mid", seed=7)     # doctest: +SKIP
    >>> piece.save("out.mid")                                   # doctest: +SKIP
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer[Any]) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    def generate(self, prompt: str | Path | Sequence[int] | None = None, **options: Any) -> Piece:
        """One piece; the options are those of `generate_many`."""
        return self.generate_many(1, prompt, **options)[0]

    def generate_many(
        self,
        num_samples: int,
        prompt: str | Path | Sequence[int] | None = None,
        *,
        prompt_tokens: int | None = None,
        max_new_tokens: int = 512,
        seed: int = 0,
        include_prompt: bool = True,
        **sampling: Any,
    ) -> list[Piece]:
        """Continue a prompt (a path, or ids; None begins a piece), in `num_samples` ways, as one batch.

        Of a long prompt, `prompt_tokens` takes the first ids.
        `sampling` takes the fields of `SamplingConfig`: temperature, top_k, top_p, min_p.

        Raises:
            InputError: the prompt cannot be read, or is longer than the model's context.
            UsageError: a number outside its range.
        """
        if prompt_tokens is not None and prompt_tokens < 1:
            raise UsageError(f"prompt_tokens {prompt_tokens}: expected at least 1")
        prompt_ids = self.prompt_ids(prompt)[:prompt_tokens]
        steps = self.stream(prompt_ids, num_samples=num_samples, max_new_tokens=max_new_tokens, seed=seed, **sampling)
        rows: list[list[int]] = [[] for _ in range(num_samples)]
        for step in steps:
            for row, id in zip(rows, step, strict=True):
                if id is not None:
                    row.append(id)
        return [Piece(prompt_ids, row, include_prompt, self.tokenizer) for row in rows]

    def stream(
        self,
        prompt_ids: Sequence[int] = (),
        *,
        num_samples: int = 1,
        max_new_tokens: int = 512,
        seed: int = 0,
        **sampling: Any,
    ) -> Iterator[list[int | None]]:
        """New ids as they are chosen, one for each sample a step; None for a sample that has ended."""
        for name, value, least, most in (
            ("num_samples", num_samples, 1, MAX_SAMPLES),
            ("max_new_tokens", max_new_tokens, 1, 2**63),
            ("seed", seed, 0, 2**63),
        ):
            if not least <= value <= most:
                raise UsageError(f"{name} {value}: expected at least {least}, at most {most:,}")
        try:
            config = SamplingConfig(**sampling)
        except ValueError as error:
            raise UsageError(str(error)) from error
        foreign = [id for id in prompt_ids if not 0 <= id < self.tokenizer.vocab_size]
        if foreign:
            raise UsageError(f"the prompt has the id {foreign[0]}; expected 0 to {self.tokenizer.vocab_size - 1}")
        # where BOS is EOS it ends the text before: GPT-2 reads a prompt without it, and begins from it alone
        alone = len(prompt_ids) > 0 and self.tokenizer.bos_id == self.tokenizer.eos_id
        ids = [*prompt_ids] if alone else [self.tokenizer.bos_id, *prompt_ids]
        n_positions = self.model.config.n_positions
        if len(ids) > n_positions:
            raise InputError(
                f"the prompt is {len(prompt_ids):,} ids long and the model's context holds {n_positions - 1:,}: "
                f"give a shorter one, or use its beginning: --prompt-tokens {n_positions // 2}, in Python prompt_tokens"
            )
        return generate(
            self.model,
            ids,
            config,
            max_new_tokens=max_new_tokens,
            seed=seed,
            num_samples=num_samples,
            eos_id=self.tokenizer.eos_id,
            n_ids=self.tokenizer.vocab_size,
        )

    def stream_text(self, prompt_ids: Sequence[int] = (), **options: Any) -> Iterator[str]:
        """What a model of text adds, in pieces as it comes; no piece ends within a character."""
        ids: list[int] = []
        shown = ""
        for (id,) in self.stream(prompt_ids, **options):
            if id is not None:
                ids.append(id)
            text = self.tokenizer.decode(ids)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(shown) :]
                shown = text
        yield self.tokenizer.decode(ids)[len(shown) :]

    def task(self, name: str, text: str, *, seed: int = 0) -> str:
        """`summarize` an article or `translate` a sentence, by the zero-shot prompts of the GPT-2 paper.

        Raises:
            InputError: a text that makes no prompt, or examples that do not fit the context.
        """
        task = TASKS[name]
        head, tail = (self.tokenizer.encode(part) for part in task.prompt(text))
        room = self.model.config.n_positions - task.max_new_tokens - len(tail)
        if room < 0:
            raise InputError(
                f"the examples are {len(tail):,} ids long; at most {room + len(tail):,} fit beside the answer"
            )
        options = {"max_new_tokens": task.max_new_tokens, "seed": seed, **task.sampling}
        answer = "".join(self.stream_text(head[:room] + tail, **options))
        return first_sentences(answer, task.sentences)

    def prompt_ids(self, prompt: str | Path | Sequence[int] | None, report: Report = lambda text: None) -> list[int]:
        """Ids of a prompt, without BOS; `report` gets a line for each thing that had to be changed in it.

        Raises:
            InputError: it cannot be read.
        """
        if prompt is None:
            return []
        if not isinstance(prompt, str | Path):
            return list(prompt)
        document, remarks = self.tokenizer.prompt(str(prompt))
        ids = self.tokenizer.encode(document)
        losses = self.tokenizer.losses(document, ids)
        for remark in [*remarks, *(f"{count} {kind.replace('_', ' ')}" for kind, count in losses.items() if count)]:
            report(f"prompt: {remark}")
        return ids


def load(directory: str | Path, *, revision: str | None = None, device: str = "cpu") -> LanguageModel:
    """A checkpoint, a run (then its best one), or `organisation/model` of the Hub -> a model that generates.

    Raises:
        CheckpointError: no checkpoint there, or one that does not fit.
        TokenizerError: it holds no tokenizer, or one that is refused.
    """
    return LanguageModel(*checkpoint.load(directory, revision=revision, device=device))
