"""The one seam: what the rest of the package asks of a tokenizer, and how one is made, named and loaded.

Everything that knows what a document is (a score, a text) stands behind this protocol; `prepare`, `train` and
`generate` see documents and ids only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from musicgpt.errors import InputError, TokenizerError
from musicgpt.files import read_json
from musicgpt.grid_tokenizer import GridTokenizer
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.text_tokenizer import NAMES, VOCABULARIES, TextTokenizer

if TYPE_CHECKING:
    import numpy as np

D = TypeVar("D")

CONFIG_NAME = "tokenizer_config.json"


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
    prints: bool
    """Whether a document is a str, which a terminal shows as it comes."""
    compares: bool
    """Whether `likeness` finds more than exact copies."""
    max_document_ids: int | None
    """A longer document is taken for a broken one where the user does not say; None: none is."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def unscored(self) -> frozenset[int]:
        """The ids that are never a target: what sets music or text up, and is given and not predicted."""

    @property
    def whole(self) -> frozenset[int]:
        """The ids that, behind BOS or BOS and a style, begin a document which is learned from its beginning only."""

    @property
    def has_controls(self) -> bool:
        """Whether it has marks that say what is in the music."""

    @property
    def complete(self) -> bool:
        """Whether nothing has to be learned but, perhaps, a vocabulary of merges."""

    @property
    def default_vocab_size(self) -> int | None:
        """How many ids `learn` is asked for where the user does not say; None: it is complete as it is."""

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

    def marked(self, document: D, ids: Sequence[int]) -> list[int]:
        """`ids = encode(document)`, or their beginning, with marks between them that say what is in the music.

        For training; without the ids that are marks they are the same.

        Raises:
            TokenizerError: it has no such marks.
        """

    def altered(self, ids: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(T,) ids with such marks -> the same, one mark of each segment saying another level, and each id's segment.

        For training; segments count from 1, 0 is what is in none.

        Raises:
            TokenizerError: it has no such marks.
        """

    def window(self, ids: Sequence[int] | np.ndarray, first: int) -> tuple[int, list[int]]:
        """Where a window may begin, at or after `first`, and the ids that say there what would else be unknown.

        Text begins anywhere: (first, []). Music begins at a bar line, with metre, tempo, program and, where their
        ends are written apart, open notes: header + ids[start:] decodes to the notes of ids from that line on. An end
        or a beginning of a document (EOS, BOS) is a place too. Where none is left, it is (first, []).
        """

    def losses(self, document: D, ids: Sequence[int]) -> dict[str, int]:
        """What `ids = encode(document)` could not keep, counted by kind."""

    def changes(self, document: D, ids: Sequence[int]) -> list[str]:
        """What `ids = encode(document)` could not keep as it is, in words: a line for each kind."""

    def variants(self, document: D, n: int) -> list[D]:
        """The document, then up to n - 1 others as good to learn from (for music: transpositions)."""

    def fingerprint(self, document: D) -> str:
        """A hash of the content, the same for every tokenizer of this kind of document."""

    def likeness(self, document: D) -> list[str]:
        """Keys: documents that share one are the same piece, perhaps transposed or exported anew.

        Where there are none, exact copies are all that is known.
        """

    def measure(self, document: D) -> dict[str, float]:
        """What a loss can be counted per: {"notes": …, "seconds": …} or {"bytes": …}."""

    def learn(self, documents: Iterable[D], vocab_size: int | None) -> None:
        """Grow the vocabulary to at most `vocab_size` by byte-pair merges (None: as it is); deterministic.

        What else it needs to be `complete` is learned too.

        Raises:
            TokenizerError: a size below that of the basic vocabulary, or a vocabulary already learned.
        """

    def as_html(self, document: D, prompt: D | None) -> str:
        """How a notebook shows a document, and of it the beginning that was given as a prompt."""

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, and tokenizer_config.json that says which kind it is."""

    @classmethod
    def load(cls, directory: Path) -> Tokenizer[D]:
        """Raises: TokenizerError: `save` did not write this."""


KINDS: dict[str, Any] = {"midi": MidiTokenizer, "grid": GridTokenizer, "text": TextTokenizer}
"""The `kind` of tokenizer_config.json -> the class that loads such a directory."""

DEFAULTS = {"music": "remi", "text": "bpe"}
"""What a user calls the kind of a corpus -> the tokenizer it gets when none is named."""


def new_tokenizer(name: str, marks: Sequence[str] = ()) -> Tokenizer[Any]:
    """By name: remi, tsd, midilike, structured for music, with these marks, and grid; bpe, bytes, characters for text.

    Raises:
        TokenizerError: a name that is unknown, or known and refused, the message says why; or marks for text.
    """
    if name.lower() not in (*NAMES, GridTokenizer.name):
        return MidiTokenizer.new(name, marks)
    if marks:
        raise TokenizerError(
            f"the tokenizer {name} has no marks: --infill, --controls and --styles are for remi, tsd, midilike, "
            f"structured"
        )
    if name.lower() == GridTokenizer.name:
        return GridTokenizer()
    return TextTokenizer.new(name)


def default_name(suffixes: Set[str], kind: str | None) -> str:
    """The tokenizer for a corpus: that of its kind; where none is said, text if it has text files and no music."""
    if kind is None:
        kind = (
            "text" if suffixes & set(TextTokenizer.suffixes) and not suffixes & set(MidiTokenizer.suffixes) else "music"
        )
    return DEFAULTS[kind]


def load_tokenizer(directory: Path) -> Tokenizer[Any]:
    """A directory that `save` wrote, a checkpoint included, or one with GPT-2's vocabulary -> its tokenizer.

    Raises:
        TokenizerError: no tokenizer there, or one that is refused.
    """
    try:
        kind = read_json(directory / CONFIG_NAME).get("kind") if (directory / CONFIG_NAME).is_file() else None
        if kind is None and (directory / "tokenizer.json").is_file():  # another's: miditok's says its scheme
            kind = "midi" if "tokenization" in read_json(directory / "tokenizer.json") else "text"
    except InputError as error:
        raise TokenizerError(str(error)) from error
    if kind is None and any((directory / name).is_file() for names in VOCABULARIES for name in names):
        kind = "text"
    if kind is None:
        raise TokenizerError(f"{directory} holds no tokenizer: expected {CONFIG_NAME} and tokenizer.json")
    if not isinstance(kind, str) or kind not in KINDS:
        raise TokenizerError(f"{directory / CONFIG_NAME} says kind {kind!r}; expected {' or '.join(map(repr, KINDS))}")
    tokenizer: Tokenizer[Any] = KINDS[kind].load(directory)
    return tokenizer
