"""Texts <-> ids, by Hugging Face tokenizers: a thin wrapper, no id of which is special by accident.

bpe         byte-level byte-pair merges as GPT-2's, learned on the corpus
bytes       one id a byte: any text, no learning
characters  one id for each character of the corpus; others are lost, and counted
GPT-2       its own vocabulary of 50,257, out of a directory: vocab.json and merges.txt, encoder.json and vocab.bpe,
            or a tokenizer.json of byte-pair merges

A literal `<|endoftext|>` in a text is characters, never the end of a document. What is saved here, transformers'
`AutoTokenizer` reads.

Source: Radford et al. 2019, section 2.2.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from musicgpt.errors import InputError, TokenizerError
from musicgpt.files import MAX_JSON, read_bytes, read_json, write_bytes, write_json
from musicgpt.vetting import vetted_merges

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".txt", ".md", ".text")
NAMES = ("bpe", "bytes", "characters")
END = "<|endoftext|>"

ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
"""What vocabularies from elsewhere call the end of a document, where their configuration does not say."""

VOCABULARIES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
"""The two names under which GPT-2's vocabulary is spread: as transformers', and as its first release."""

LEARNED_SIZE = 4096

UNMARKED = "--controls are of music: a tokenizer of text has no marks for them"

MAX_TEXT = 2**31
"""Bytes: a larger file is no document. As a text and as ids it takes some ten times the memory."""


class TextTokenizer:
    """`Tokenizer` for text. Make one with `new` or `load`; `bpe` and `characters` have to `learn`."""

    suffixes: tuple[str, ...] = SUFFIXES
    units: tuple[str, ...] = ("bytes",)
    loss_kinds: tuple[str, ...] = ("characters_lost",)
    has_controls = False
    whole: frozenset[int] = frozenset()
    complete = True
    prints = True
    compares = False
    max_document_ids: int | None = None  # text has no more ids than bytes

    def __init__(self, wrapped: Tokenizer, name: str, bos: str = END, eos: str = END) -> None:
        self.name = name
        self._bos, self._eos = bos, eos
        self._use(wrapped)

    def _use(self, wrapped: Tokenizer) -> None:
        if wrapped.token_to_id(END) is None and self._eos == END:
            wrapped.add_special_tokens([AddedToken(END, special=True, normalized=False)])
        wrapped.encode_special_tokens = True  # their spelling in a text is text
        bos_id, eos_id = wrapped.token_to_id(self._bos), wrapped.token_to_id(self._eos)
        if bos_id is None or eos_id is None:
            raise TokenizerError(f"the vocabulary has no id for {self._bos if bos_id is None else self._eos}")
        self.wrapped, self._bos_id, self._eos_id = wrapped, bos_id, eos_id

    @classmethod
    def new(cls, name: str) -> TextTokenizer:
        """bpe, bytes or characters. Raises: TokenizerError: another name."""
        if name == "characters":
            wrapped = _by_character(models.BPE(vocab={}, merges=[]))
        elif name in NAMES:
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
            wrapped = _byte_level(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
        else:
            raise TokenizerError(f"no text tokenizer is called {name!r}; choose one of {', '.join(NAMES)}")
        return cls(wrapped, name)

    @classmethod
    def load(cls, directory: Path) -> TextTokenizer:
        """A directory that `save` wrote, or one with GPT-2's vocabulary in any of its layouts.

        Raises:
            TokenizerError: no vocabulary there that can be read, or one without an end of text.
        """
        whole, config = directory / "tokenizer.json", directory / "tokenizer_config.json"
        pair = next((p for p in VOCABULARIES if all((directory / name).is_file() for name in p)), None)
        try:
            said = read_json(config) if config.is_file() else {}
            if whole.is_file():
                wrapped = vetted_merges(read_json(whole), str(whole))
            elif pair is not None:
                vocabulary, merges = read_json(directory / pair[0]), read_bytes(directory / pair[1], MAX_JSON)
                lines = merges.decode("utf-8", errors="replace").split("\n")
                written = [line for line in lines if line and not line.startswith("#version")]
                model = {"type": "BPE", "vocab": vocabulary, "merges": written}
                wrapped = _byte_level(vetted_merges({"model": model}, str(directory)).model)
            else:
                raise TokenizerError(
                    f"{directory} holds no vocabulary: expected tokenizer.json, or "
                    + ", or ".join(" and ".join(names) for names in VOCABULARIES)
                )
        except InputError as error:
            raise TokenizerError(str(error)) from error
        eos = _spelling(said.get("eos_token")) or next((e for e in ENDS if wrapped.token_to_id(e) is not None), END)
        return cls(wrapped, str(said.get("scheme", "bpe")), _spelling(said.get("bos_token")) or eos, eos)

    @property
    def vocab_size(self) -> int:
        return int(self.wrapped.get_vocab_size())

    @property
    def bos_id(self) -> int:
        return self._bos_id

    @property
    def eos_id(self) -> int:
        return self._eos_id

    @property
    def pad_id(self) -> int | None:
        return None

    @property
    def unscored(self) -> frozenset[int]:
        return frozenset({self.bos_id} - {self.eos_id})

    def marked(self, document: str, ids: Sequence[int]) -> list[int]:
        raise TokenizerError(UNMARKED)

    def altered(self, ids: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        raise TokenizerError(UNMARKED)

    @property
    def default_vocab_size(self) -> int | None:
        """How many ids to learn where none are asked for; None for one that is complete."""
        return {"bpe": LEARNED_SIZE, "characters": 2**20}.get(self.name) if self._is_new else None

    @property
    def _is_new(self) -> bool:
        return self.vocab_size <= {"bpe": 257, "characters": 1}.get(self.name, 0)

    def read(self, path: Path) -> tuple[list[str], list[str]]:
        data = read_bytes(path, MAX_TEXT)
        if not data.strip():
            raise InputError(f"{path} is empty; expected text")
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} is no text file by its name; expected one of {' '.join(SUFFIXES)}")
        text = data.decode("utf-8", errors="replace")
        replaced = text.count("\N{REPLACEMENT CHARACTER}") - data.count("\N{REPLACEMENT CHARACTER}".encode())
        if replaced > 0.1 * len(text):
            raise InputError(f"{path} is not text in UTF-8: {replaced:,} of its {len(text):,} characters are none")
        return [text], [f"{replaced} bytes that are not UTF-8 replaced"] if replaced else []

    def write(self, document: str, path: Path) -> None:
        write_bytes(path, document.encode())

    def prompt(self, text: str) -> tuple[str, list[str]]:
        """The text itself; or the content of a file, where there is one of that name.

        Raises:
            InputError: there is one, and it holds no text.
        """
        path = Path(text)
        if len(text) < 256 and "\n" not in text and path.suffix and path.is_file():
            (content,), remarks = self.read(path)
            return content, remarks
        whole = text.encode("utf-8", errors="replace").decode()  # an argument of a command can be half a character
        return whole, [] if whole == text else ["half characters replaced"]

    def encode(self, document: str) -> list[int]:
        return list(self.wrapped.encode(document, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.wrapped.decode(list(ids), skip_special_tokens=True))

    def window(self, ids: Sequence[int] | np.ndarray, first: int) -> tuple[int, list[int]]:
        return first, []  # what stands before a place says no more about it than what stands behind

    def losses(self, document: str, ids: Sequence[int]) -> dict[str, int]:
        kept = len(ids) if self.name == "characters" else len(document)
        return {"characters_lost": len(document) - kept}

    def changes(self, document: str, ids: Sequence[int]) -> list[str]:
        lost = self.losses(document, ids)["characters_lost"]
        return [f"{lost} characters lost: the vocabulary has none such"] if lost else []

    def variants(self, document: str, n: int) -> list[str]:
        return [document]

    def fingerprint(self, document: str) -> str:
        return hashlib.sha256(document.encode()).hexdigest()

    def likeness(self, document: str) -> list[str]:
        return []

    def measure(self, document: str) -> dict[str, float]:
        return {"bytes": float(len(document.encode()))}

    def learn(self, documents: Iterable[str], vocab_size: int | None) -> None:
        assert vocab_size is not None
        if not self._is_new:
            raise TokenizerError(f"the vocabulary {self.name} is complete; nothing can be added to it")
        if self.name == "characters":
            alphabet = sorted({c for document in documents for c in document})
            wrapped = _by_character(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
        else:
            if vocab_size <= self.vocab_size:
                raise TokenizerError(
                    f"a vocabulary of {vocab_size} ids was asked for; there are {self.vocab_size} before any "
                    f"merge: ask for more, or choose --tokenizer bytes"
                )
            wrapped = _byte_level(models.BPE())
            trainer = trainers.BpeTrainer(
                vocab_size=vocab_size - 1,
                initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                show_progress=False,
            )
            wrapped.train_from_iterator(documents, trainer)
        self._use(wrapped)

    def as_html(self, document: str, prompt: str | None) -> str:
        """The text, its prompt in bold."""
        given = prompt if prompt and document.startswith(prompt) else ""
        return f"<pre><b>{html.escape(given)}</b>{html.escape(document[len(given) :])}</pre>"

    def save(self, directory: Path) -> None:
        write_bytes(directory / "tokenizer.json", self.wrapped.to_str(pretty=True).encode())
        write_json(
            directory / "tokenizer_config.json",
            {
                "kind": "text",
                "tokenizer_class": "PreTrainedTokenizerFast",
                "scheme": self.name,
                "vocab_size": self.vocab_size,
                "bos_token": self._bos,
                "eos_token": self._eos,
                "clean_up_tokenization_spaces": False,
            },
        )


def _byte_level(model: models.BPE) -> Tokenizer:
    """GPT-2's own way from text to bytes: split by its pattern, every byte a printable character."""
    wrapped = Tokenizer(model)
    wrapped.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    wrapped.decoder = decoders.ByteLevel()
    return wrapped


def _by_character(model: models.BPE) -> Tokenizer:
    wrapped = Tokenizer(model)
    wrapped.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    wrapped.decoder = decoders.Fuse()
    return wrapped


def _spelling(token: Any) -> str | None:
    """A token of tokenizer_config.json, which may be a string or an object -> its spelling."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content.isprintable() else None
