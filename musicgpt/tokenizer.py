"""The one seam: what the rest of the package asks of a tokenizer, and how one is made, named and loaded.

Everything that knows what a document is (a score, a text) stands behind this protocol; `prepare`, `train` and
`generate` see documents and ids only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from musicgpt.errors import InputError, TokenizerError
from musicgpt.files import read_json
from musicgpt.midi_tokenizer import MidiTokenizer

D = TypeVar("D")

CONFIG_NAME = "tokenizer_config.json"
DEFAULT_NAME = "remi"


class Tokenizer(Protocol[D]):
    """Documents <-> ids.

    Laws, tested for every implementation:

    - `encode` emits no special ids; whoever builds a sequence adds BOS and EOS.
    - `decode` accepts any ids below `vocab_size`, ungrammatical ones too, and never raises.
    - For ids that `encode` gave, encoding settles after one pass: with n(ids) = encode(decode(ids)),
      n(n(ids)) == n(ids).
    - A tokenizer saved and loaded gives the same ids.
    """

    suffixes: tuple[str, ...]
    """Endings of the files it reads, lower case; the first is what it writes."""
    units: tuple[str, ...]
    """The keys of `measure`."""
    loss_kinds: tuple[str, ...]
    """The keys of `losses`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int | None: ...

    def read(self, path: Path) -> tuple[list[D], list[str]]:
        """A file -> its documents (a tune book holds many), and remarks on what was read differently.

        Raises:
            InputError: the file cannot be used.
        """

    def write(self, document: D, path: Path) -> None:
        """Raises: InputError: the file cannot be written."""

    def prompt(self, text: str) -> tuple[D, list[str]]:
        """What a user gave as a prompt -> a document, and remarks on what was read differently.

        Raises:
            InputError: it cannot be a prompt.
        """

    def encode(self, document: D) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> D: ...

    def losses(self, document: D, ids: Sequence[int]) -> dict[str, int]:
        """What `ids = encode(document)` could not keep, counted by kind."""

    def variants(self, document: D, n: int) -> list[D]:
        """The document, then up to n - 1 others as good to learn from (for music: transpositions)."""

    def fingerprint(self, document: D) -> str:
        """A hash of the content, the same for every tokenizer of this kind of document."""

    def measure(self, document: D) -> dict[str, float]:
        """What a loss can be counted per: {"notes": …, "seconds": …} or {"bytes": …}."""

    def learn(self, documents: Iterable[D], vocab_size: int) -> None:
        """Grow the vocabulary to at most `vocab_size` by byte-pair merges; deterministic.

        Raises:
            TokenizerError: a size below that of the basic vocabulary, or a vocabulary already learned.
        """

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, and tokenizer_config.json that says which kind it is."""


KINDS: dict[str, Any] = {"midi": MidiTokenizer}
"""The `kind` of tokenizer_config.json -> the class that loads such a directory."""


def new_tokenizer(name: str) -> Tokenizer[Any]:
    """A scheme by name, with its basic vocabulary: remi, tsd, midilike, structured.

    Raises:
        TokenizerError: a name that is unknown, or known and refused; the message says why.
    """
    return MidiTokenizer.new(name)


def load_tokenizer(directory: Path) -> Tokenizer[Any]:
    """A directory that `save` wrote, a checkpoint included -> its tokenizer.

    Raises:
        TokenizerError: no tokenizer there, or one that is refused.
    """
    if not (directory / CONFIG_NAME).is_file():
        raise TokenizerError(
            f"{directory} holds no tokenizer: expected {CONFIG_NAME} and tokenizer.json beside each other"
        )
    try:
        kind = read_json(directory / CONFIG_NAME).get("kind")
    except InputError as error:
        raise TokenizerError(str(error)) from error
    if kind not in KINDS:
        raise TokenizerError(f"{directory / CONFIG_NAME} says kind {kind!r}; expected {' or '.join(map(repr, KINDS))}")
    tokenizer: Tokenizer[Any] = KINDS[kind].load(directory)
    return tokenizer
