"""Texts: the laws of the protocol, and GPT-2's own vocabulary against tiktoken."""

from __future__ import annotations

import base64
import json
import pydoc_data.topics
import shutil
from pathlib import Path

import pytest
import tiktoken
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgpt.errors import InputError, TokenizerError
from musicgpt.text_tokenizer import END, NAMES, TextTokenizer
from musicgpt.tokenizer import load_tokenizer, new_tokenizer

TEXT = "\n".join(pydoc_data.topics.topics.values())  # 465,048 characters of English that every Python has
SCRIPTS = (
    "Ünïcödé ß 日本語のテスト العربية हिन्दी ไทย 한국어 Ελληνικά кириллица "
    "😀👩‍👩‍👧‍👦🏳️‍🌈 \t\r\n\x00\x7f\u200b\ufeff don't we'll 3.14 <|endoftext|>"
)


@pytest.fixture(scope="module")
def learned() -> dict[str, TextTokenizer]:
    made = {name: TextTokenizer.new(name) for name in NAMES}
    for tokenizer in made.values():
        if tokenizer.default_vocab_size is not None:
            tokenizer.learn([TEXT[:200_000]], min(tokenizer.default_vocab_size, 1500))
    return made


@pytest.fixture(scope="module")
def gpt2(shared: Path) -> TextTokenizer:
    tokenizer = load_tokenizer(shared / "text" / "gpt2-bpe")
    assert isinstance(tokenizer, TextTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def reference(shared: Path) -> tiktoken.Encoding:
    """tiktoken's gpt2, from the same vocabulary in its own format."""
    lines = (shared / "text" / "gpt2-bpe" / "r50k_base.tiktoken").read_bytes().splitlines()
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)},
        special_tokens={END: 50256},
    )


def test_gpt2_ids_are_those_of_tiktoken_on_megabytes(
    gpt2: TextTokenizer, reference: tiktoken.Encoding, shared: Path
) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted((shared / "text").glob("*.txt"))]
    texts += [TEXT, SCRIPTS * 100]
    assert sum(len(text.encode()) for text in texts) > 2_500_000
    for text in texts:
        ids = gpt2.encode(text)
        assert ids == reference.encode_ordinary(text)
        assert gpt2.decode(ids) == text


def test_every_character_there_is_comes_back(gpt2: TextTokenizer, learned: dict[str, TextTokenizer]) -> None:
    everything = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    for tokenizer in (gpt2, learned["bpe"], learned["bytes"]):
        assert tokenizer.decode(tokenizer.encode(everything)) == everything


def test_every_byte_has_an_id_of_its_own(learned: dict[str, TextTokenizer], gpt2: TextTokenizer) -> None:
    for tokenizer in (learned["bytes"], learned["bpe"], gpt2):
        spelled = {tokenizer.wrapped.id_to_token(i) for i in range(tokenizer.vocab_size)}
        assert set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) <= spelled
    assert learned["bytes"].vocab_size == 257


def test_the_size_and_the_end_are_gpt2s(gpt2: TextTokenizer) -> None:
    assert (gpt2.vocab_size, gpt2.bos_id, gpt2.eos_id) == (50_257, 50_256, 50_256)


@pytest.mark.parametrize("layout", ["vocab.json", "tokenizer.json", "saved by transformers"])
def test_gpt2_in_every_layout_is_the_same(layout: str, gpt2: TextTokenizer, shared: Path, tmp_path: Path) -> None:
    source = shared / "text" / "gpt2-bpe"
    if layout == "vocab.json":
        shutil.copy(source / "encoder.json", tmp_path / "vocab.json")
        shutil.copy(source / "vocab.bpe", tmp_path / "merges.txt")
    elif layout == "tokenizer.json":
        gpt2.save(tmp_path)
        (tmp_path / "tokenizer_config.json").unlink()
    else:
        (tmp_path / "ours").mkdir()
        gpt2.save(tmp_path / "ours")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
        theirs.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.encode(SCRIPTS) == gpt2.encode(SCRIPTS)
    assert (again.eos_id, again.vocab_size) == (50_256, 50_257)


@pytest.mark.parametrize("name", NAMES)
def test_the_laws(name: str, learned: dict[str, TextTokenizer], tmp_path: Path) -> None:
    tokenizer = learned[name]
    ids = tokenizer.encode(TEXT[:50_000])
    assert tokenizer.decode(ids) == TEXT[:50_000]
    assert tokenizer.eos_id not in ids
    assert not any(tokenizer.losses(TEXT[:50_000], ids).values())
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.encode(TEXT[:5000]) == tokenizer.encode(TEXT[:5000])
    assert (again.name, again.vocab_size, again.bos_id) == (name, tokenizer.vocab_size, tokenizer.bos_id)
    assert again.default_vocab_size is None
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXT[:500])["input_ids"] == tokenizer.encode(TEXT[:500])


@pytest.mark.parametrize("name", ["bpe", "bytes", "characters"])
def test_a_literal_end_of_text_is_characters(name: str, learned: dict[str, TextTokenizer]) -> None:
    ids = learned[name].encode(f"a {END} b")
    assert learned[name].eos_id not in ids
    if name != "characters":  # whose alphabet is that of its corpus
        assert learned[name].decode(ids) == f"a {END} b"
    assert learned[name].decode([learned[name].eos_id]) == ""


@settings(max_examples=200)
@given(text=st.text(max_size=200))
def test_any_text_comes_back(text: str, learned: dict[str, TextTokenizer]) -> None:
    for name in ("bpe", "bytes"):
        assert learned[name].decode(learned[name].encode(text)) == text


@settings(max_examples=200)
@given(data=st.data())
def test_any_ids_decode(data: st.DataObject, learned: dict[str, TextTokenizer]) -> None:
    for tokenizer in learned.values():
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=50))
        assert isinstance(tokenizer.decode(ids), str)


def test_learning_is_deterministic_and_bounded(learned: dict[str, TextTokenizer]) -> None:
    again = TextTokenizer.new("bpe")
    again.learn(iter([TEXT[:200_000]]), 1500)
    assert again.wrapped.to_str() == learned["bpe"].wrapped.to_str()
    assert again.vocab_size == 1500
    with pytest.raises(TokenizerError, match="is complete; nothing can be added"):
        again.learn([TEXT], 2000)
    with pytest.raises(TokenizerError, match="a vocabulary of 200 ids was asked for; there are 257"):
        TextTokenizer.new("bpe").learn([TEXT], 200)


def test_characters_that_were_not_learned_are_counted(learned: dict[str, TextTokenizer]) -> None:
    tokenizer = learned["characters"]
    ids = tokenizer.encode("日本 music 語")
    assert tokenizer.decode(ids) == " music "
    assert tokenizer.losses("日本 music 語", ids) == {"characters_lost": 3}


def test_files_are_read_or_refused(tmp_path: Path) -> None:
    tokenizer = new_tokenizer("bytes")
    files = {
        "a.txt": b"caf\xc3\xa9",
        "b.txt": b"caf\xe9 and more text",
        "c.txt": b" \n",
        "d.txt": bytes(range(128, 256)),
        "e.xls": b"x",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert tokenizer.read(tmp_path / "a.txt") == (["café"], [])
    assert tokenizer.read(tmp_path / "b.txt")[1] == ["1 bytes that are not UTF-8 replaced"]
    for name, why in (
        ("c.txt", "is empty"),
        ("d.txt", "is not text in UTF-8"),
        ("e.xls", "is no text file by its name"),
    ):
        with pytest.raises(InputError, match=why):
            tokenizer.read(tmp_path / name)


def test_a_vocabulary_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[")
    with pytest.raises(TokenizerError, match="is not JSON"):
        load_tokenizer(tmp_path)
    other = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    other.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[nothing]"}))
    with pytest.raises(TokenizerError, match=r"has no id for \[nothing\]"):
        load_tokenizer(tmp_path)


def test_a_prompt_is_the_words_or_a_text_file(tmp_path: Path) -> None:
    tokenizer = new_tokenizer("bytes")
    (tmp_path / "a.txt").write_text("the content")
    assert tokenizer.prompt("ROMEO:") == ("ROMEO:", [])
    assert tokenizer.prompt(str(tmp_path / "a.txt"))[0] == "the content"
    (tmp_path / "a.mid").write_bytes(b"MThd")
    with pytest.raises(InputError, match="is no text file by its name"):
        tokenizer.prompt(str(tmp_path / "a.mid"))
