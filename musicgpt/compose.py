"""A model with its tokenizer: prompt in, finished piece out. The public face is `musicgpt.load`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgpt import checkpoint
from musicgpt.errors import InputError, UsageError
from musicgpt.generate import generate
from musicgpt.model import GPT
from musicgpt.sampling import SamplingConfig
from musicgpt.tokenizer import Tokenizer


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
        max_new_tokens: int = 512,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
        include_prompt: bool = True,
    ) -> list[Piece]:
        """Continue a prompt (a path, or ids; None begins a piece), in `num_samples` ways, as one batch.

        Raises:
            InputError: the prompt cannot be read, or is longer than the model's context.
            UsageError: a number outside its range.
        """
        prompt_ids = self.prompt_ids(prompt)
        rows: list[list[int]] = [[] for _ in range(num_samples)]
        for step in self.stream(
            prompt_ids, num_samples=num_samples, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed
        ):
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
        sampling: SamplingConfig | None = None,
        seed: int = 0,
    ) -> Iterator[list[int | None]]:
        """New ids as they are chosen, one for each sample a step; None for a sample that has ended."""
        for name, value, least in (
            ("num_samples", num_samples, 1),
            ("max_new_tokens", max_new_tokens, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise UsageError(f"{name} {value}: expected at least {least}")
        ids = [self.tokenizer.bos_id, *prompt_ids]
        n_positions = self.model.config.n_positions
        if len(ids) > n_positions:
            raise InputError(
                f"the prompt is {len(ids) - 1:,} ids long and the model's context holds {n_positions - 1:,}: "
                f"give a shorter one, or use its beginning with --prompt-tokens {n_positions // 2}"
            )
        return generate(
            self.model,
            ids,
            sampling or SamplingConfig(),
            max_new_tokens=max_new_tokens,
            seed=seed,
            num_samples=num_samples,
            eos_id=self.tokenizer.eos_id,
            n_ids=self.tokenizer.vocab_size,
        )

    def prompt_ids(self, prompt: str | Path | Sequence[int] | None) -> list[int]:
        """Ids of a prompt, without BOS. Raises: InputError: it cannot be read."""
        if prompt is None:
            return []
        if not isinstance(prompt, str | Path):
            return list(prompt)
        document, _ = self.tokenizer.prompt(str(prompt))
        return self.tokenizer.encode(document)


def load(directory: str | Path, *, device: str = "cpu") -> LanguageModel:
    """A checkpoint or a run (then its best one) -> a model that generates.

    Raises:
        CheckpointError: no checkpoint there, or one that does not fit.
        TokenizerError: it holds no tokenizer, or one that is refused.
    """
    return LanguageModel(*checkpoint.load(directory, device=device))
