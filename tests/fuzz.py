"""The readers of what comes from outside, real inputs to spoil, and a coverage-guided run over them.

    python tests/fuzz.py --seconds 300 [midi abc …]

The law: for any bytes a reader gives a value of its type or raises a MusicGPTError of one line. `obeys` checks it;
tests/test_hostile.py gives it inputs that hypothesis draws, this file as a program those that atheris finds to reach
new lines of musicgpt, miditok and mido. symusic, abc2midi, tokenizers and safetensors are native: their lines are
not seen, their crashes are. Each target runs in a process of its own, which is started again when an input kills it.
What broke the law is printed, and kept in a folder that is named.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import miditok
import symusic
from tokenizers import Tokenizer, models

from musicgpt.checkpoint import load_model, save_model
from musicgpt.cli import main as musicgpt
from musicgpt.errors import LONGEST_LINE, MusicGPTError
from musicgpt.midi import read_scores, seconds, write_midi
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.model import GPT, GPTConfig
from musicgpt.phrases import PHRASES, read_phrase
from musicgpt.provenance import provenance_text, read_provenance
from musicgpt.shards import SPLITS, Shards
from musicgpt.text_tokenizer import TextTokenizer
from musicgpt.tokenizer import load_tokenizer

HARD = Path(__file__).parents[2] / "shared" / "data" / "hard"

SECONDS_AN_INPUT, MEMORY = 90, 2048
"""Of one input, and MiB of the process: more is a finding."""


@dataclass(frozen=True)
class Target:
    """A reader; `folder` holds what it needs beside the file that is spoiled."""

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[bytes, Path], object]
    spoil: Callable[[Random, bytes], bytes]


def obeys(name: str, data: bytes, folder: Path) -> bool:
    """Whether the bytes are read, not refused. What is neither is raised."""
    try:
        TARGETS[name].read(data, folder)
    except MusicGPTError as error:
        text = str(error)
        if "\n" in text or not 0 < len(text) <= LONGEST_LINE:
            raise AssertionError(f"no line to show a user, {len(text)} characters: {text[:200]!r}") from error
        return False
    return True


# how to spoil


NUMBERS = (0, 1, -1, 7, 127, 128, 255, 2**15, 2**16 - 1, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64, 10**30)


def spoiled_bytes(random: Random, data: bytes) -> bytes:
    """Some bytes flipped, cut, doubled, moved, or replaced by a number that is too large."""
    spoiled = bytearray(data)
    for _ in range(random.randint(1, 4)):
        a, b = sorted(random.randrange(len(spoiled) + 1) for _ in range(2))
        kind = random.randrange(6)
        if kind == 0 and spoiled:
            spoiled[min(a, len(spoiled) - 1)] ^= 1 << random.randrange(8)
        elif kind == 1:
            width = random.choice((1, 2, 4, 8))
            number = random.choice(NUMBERS) % 256**width
            spoiled[a : a + width] = number.to_bytes(width, random.choice(("big", "little")))
        elif kind == 2:
            del spoiled[a : min(b, a + random.choice((1, 4, 64, 10**6)))]
        elif kind == 3:
            spoiled[a:a] = spoiled[a : min(b, a + 256)] * random.choice((1, 1, 2, 16))
        elif kind == 4:
            spoiled[a:a] = random.randbytes(random.choice((1, 4, 16)))
        else:
            place = random.randrange(len(spoiled) + 1)
            part = spoiled[a : min(b, a + 64)]
            spoiled[place : place + len(part)] = part
    return bytes(spoiled)


def spoiled_text(random: Random, data: bytes) -> bytes:
    """As bytes; or a number in it, or a word, is another."""
    places = list(re.finditer(rb"\d+|[A-Za-z]+:?", data))
    if not places or random.random() < 0.5:
        return spoiled_bytes(random, data)
    place = random.choice(places)
    words = (*(str(number).encode() for number in NUMBERS), *(other.group() for other in places), b"(" * 99, b"|:" * 99)
    return data[: place.start()] + random.choice(words) + data[place.end() :]


STRANGE = (
    None, True, False, 0.5, -1.5, 1e308, float("inf"), float("nan"), "", "x", "7", "\ud800", "\0", "\n", "é" * 9,
    "x" * 20_000, "../../../../etc/passwd", "BPE", [], [0], [[]], ["a"] * 3, {}, {"": 0}, {"a": {}},
)  # fmt: skip


def other_value(random: Random) -> Any:
    deep: Any = []
    for _ in range(random.choice((5, 90, 200))):
        deep = [deep] if random.random() < 0.5 else {"a": deep}
    return random.choice([*STRANGE, *NUMBERS, deep])


def spoiled_value(random: Random, value: Any) -> Any:
    """One place of a JSON value: replaced, dropped, doubled or renamed."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return other_value(random)
    if isinstance(value, dict):
        key = random.choice(sorted(value))
        kind = random.randrange(8)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return {(str(other_value(random))[:50] if k == key else k): v for k, v in value.items()}
        if kind == 2:
            return value | {key: value[random.choice(sorted(value))]}
        return value | {key: spoiled_value(random, value[key])}
    place = random.randrange(len(value))
    kind = random.randrange(6)
    if kind == 0:
        return value[:place] + value[place + 1 :]
    if kind == 1:
        return value[:place] + [value[place]] * random.choice((2, 300)) + value[place:]
    return [*value[:place], spoiled_value(random, value[place]), *value[place + 1 :]]


def spoiled_json(random: Random, data: bytes) -> bytes:
    """As a value; JSON that stands in it as a string, too; and sometimes as bytes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return spoiled_bytes(random, data)
    if random.random() < 0.1:
        return spoiled_bytes(random, data)
    for _ in range(random.randint(1, 3)):
        if isinstance(value, dict) and isinstance(value.get("_model"), str) and random.random() < 0.5:
            value["_model"] = spoiled_json(random, value["_model"].encode("utf-8", "replace")).decode(
                "utf-8", "replace"
            )
        else:
            value = spoiled_value(random, value)
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 100_000


def spoiled_safetensors(random: Random, data: bytes) -> bytes:
    """The bytes, or the JSON of the header with its length put right."""
    length = int.from_bytes(data[:8], "little")
    if random.random() < 0.4 or length > len(data):
        return spoiled_bytes(random, data)
    header = spoiled_json(random, data[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


# what is read


def _score() -> symusic.Score:
    return read_phrase("minimal")[0]


def _midi_seeds(folder: Path) -> list[bytes]:
    write_midi(_score(), folder / "said.mid", end=7680, text=provenance_text({"seed": 1, "prompt_ids": [1, 2, 3]}))
    found = [(folder / "said.mid").read_bytes(), *(read_phrase(name)[0].dumps_midi() for name in PHRASES)]
    real = sorted(path for path in HARD.rglob("*") if path.suffix.lower() in (".mid", ".rmi"))
    return found + [path.read_bytes() for path in real if path.stat().st_size < 2000]


def _read_midi(data: bytes, folder: Path) -> object:
    path = folder / "in.mid"
    path.write_bytes(data)
    said = read_provenance(path)
    scores, remarks = read_scores(path)
    assert all(score.note_num() > 0 and seconds(score) >= 0 for score in scores)
    return said, remarks


def _abc_seeds(folder: Path) -> list[bytes]:
    real = sorted(path for path in HARD.rglob("*.abc") if path.stat().st_size < 2000)
    ours = sorted((files("musicgpt") / "assets" / "phrases").iterdir(), key=str)
    return [path.read_bytes() for path in ours] + [path.read_bytes() for path in real]


def _read_abc(data: bytes, folder: Path) -> object:
    path = folder / "in.abc"
    path.write_bytes(data)
    return read_scores(path)


def _read_prompt(data: bytes, folder: Path) -> object:
    return read_phrase(data.decode("utf-8", "replace"))


def _prompt_seeds(folder: Path) -> list[bytes]:
    return [*_abc_seeds(folder), b"K:D DEFG ABcd|", b"minimal", b"CDEF|GABc|", b"M:6/8 K:Ador\\nABc|"]


def _music_seeds(folder: Path) -> list[bytes]:
    """One of each scheme, small; two with merges: ours and miditok's."""
    small = {"beat_res": {(0, 1): 2, (1, 4): 1}, "num_velocities": 2, "pitch_range": (55, 80), "programs": [-1, 0, 40]}
    small |= {"drums_pitch_range": (35, 40), "num_tempos": 3, "time_signature_range": {4: [3, 4]}}
    config = {
        "use_programs": True,
        "use_tempos": True,
        "use_time_signatures": True,
        "special_tokens": ["PAD", "BOS", "EOS"],
    }
    seeds = []
    for scheme in ("REMI", "TSD", "MIDILike", "Structured"):
        tokenizer = MidiTokenizer(getattr(miditok, scheme)(miditok.TokenizerConfig(**small, **config)))
        tokenizer.save(folder)
        seeds.append((folder / "tokenizer.json").read_bytes())
        if scheme in ("REMI", "MIDILike"):
            tokenizer.learn([read_phrase(name)[0] for name in PHRASES], tokenizer.vocab_size + 9)
            tokenizer.save(folder)
            seeds.append((folder / "tokenizer.json").read_bytes())
    shutil.rmtree(folder)
    folder.mkdir()
    return seeds


def _read_music(data: bytes, folder: Path) -> object:
    (folder / "tokenizer.json").write_bytes(data)
    return _used(load_tokenizer(folder))


def _used(tokenizer: Any) -> object:
    """What is loaded can be used: every id decodes, a document encodes or is refused."""
    ids = list(range(tokenizer.vocab_size))[:5000]
    Random(1).shuffle(ids)
    document = tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id])
    encoded = tokenizer.encode(_score() if isinstance(tokenizer, MidiTokenizer) else "Two words, 3 numbers\n")
    assert all(0 <= id < tokenizer.vocab_size for id in encoded)
    return document


def _text_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for name in ("bytes", "characters", "bpe"):
        tokenizer = TextTokenizer.new(name)
        if name != "bytes":
            tokenizer.learn(["to be or not to be"], 290)
        tokenizer.save(folder)
        seeds.append((folder / "tokenizer.json").read_bytes())
    tiny = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, merges=[("a", "b")]))
    (folder / "tokenizer_config.json").unlink()
    return [*seeds, tiny.to_str().encode()]


_read_text = _read_music  # which of the two it is, the file itself says


def _pair_seeds(folder: Path) -> list[bytes]:
    """vocab.json, a zero byte, merges.txt."""
    tokenizer = TextTokenizer.new("bpe")
    tokenizer.learn(["to be or not to be"], 270)
    model = json.loads(tokenizer.wrapped.to_str())["model"]
    vocabulary = json.dumps(model["vocab"] | {"<|endoftext|>": len(model["vocab"])})
    return [f"{vocabulary}\0#version: 0.2\n".encode() + "\n".join(" ".join(pair) for pair in model["merges"]).encode()]


def _read_pair(data: bytes, folder: Path) -> object:
    vocabulary, _, merges = data.partition(b"\0")
    (folder / "vocab.json").write_bytes(vocabulary)
    (folder / "merges.txt").write_bytes(merges)
    return _used(load_tokenizer(folder))


def _spoiled_pair(random: Random, data: bytes) -> bytes:
    vocabulary, _, merges = data.partition(b"\0")
    if random.random() < 0.5:
        return spoiled_json(random, vocabulary) + b"\0" + merges
    return vocabulary + b"\0" + spoiled_bytes(random, merges)


def _said_seeds(folder: Path) -> list[bytes]:
    """tokenizer_config.json, beside a sound tokenizer.json."""
    TextTokenizer.new("bytes").save(folder)
    object_form = {"eos_token": {"content": "<|endoftext|>"}, "tokenizer_file": "/etc/passwd", "auto_map": {"a": "b.c"}}
    return [(folder / "tokenizer_config.json").read_bytes(), json.dumps(object_form).encode()]


def _read_said(data: bytes, folder: Path) -> object:
    (folder / "tokenizer_config.json").write_bytes(data)
    return _used(load_tokenizer(folder))


def _model(folder: Path) -> None:
    save_model(folder, GPT(GPTConfig(vocab_size=16, n_positions=8, n_embd=4, n_layer=1, n_head=2)))


def _of_checkpoint(name: str, spoil: Callable[[Random, bytes], bytes]) -> Target:
    """A file of a checkpoint whose other files are sound."""

    def seeds(folder: Path) -> list[bytes]:
        _model(folder)
        return [(folder / name).read_bytes()]

    def read(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        return load_model(folder)

    return Target(seeds, read, spoil)


def _manifest_seeds(folder: Path) -> list[bytes]:
    with tempfile.TemporaryDirectory(prefix="musicgpt-") as corpus:
        for name in PHRASES:
            write_midi(read_phrase(name)[0], Path(corpus, f"{name}.mid"))
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            musicgpt(["prepare", corpus, "--out", str(folder)])
    return [(folder / "manifest.json").read_bytes()]


def _read_manifest(data: bytes, folder: Path) -> object:
    (folder / "manifest.json").write_bytes(data)
    shards = Shards(folder)
    return [shards.split(split).n_documents for split in SPLITS]


TARGETS = {
    "midi": Target(_midi_seeds, _read_midi, spoiled_bytes),
    "abc": Target(_abc_seeds, _read_abc, spoiled_text),
    "prompt": Target(_prompt_seeds, _read_prompt, spoiled_text),
    "tokenizer-music": Target(_music_seeds, _read_music, spoiled_json),
    "tokenizer-text": Target(_text_seeds, _read_text, spoiled_json),
    "vocabulary": Target(_pair_seeds, _read_pair, _spoiled_pair),
    "tokenizer-config": Target(_said_seeds, _read_said, spoiled_json),
    "config": _of_checkpoint("config.json", spoiled_json),
    "weights": _of_checkpoint("model.safetensors", spoiled_safetensors),
    "manifest": Target(_manifest_seeds, _read_manifest, spoiled_json),
}


# the coverage-guided run


CHILD = """
import sys
import atheris
with atheris.instrument_imports(include=["musicgpt", "miditok", "mido"]):
    import fuzz
fuzz.explore(atheris, *sys.argv[1:])
"""


def explore(atheris: Any, name: str, work: str, *flags: str) -> None:
    """In the child: until the time is over, or an input kills it. A broken law is noted, once a place in the code."""
    target, folder, found = TARGETS[name], Path(work) / "folder", Path(work) / "found"
    corpus = Path(work) / "corpus"
    folder.mkdir(exist_ok=True)
    for i, seed in enumerate(target.seeds(folder)):
        (corpus / f"seed{i}").write_bytes(seed)
    seen = {path.name for path in found.iterdir()}

    def one(data: bytes) -> None:
        try:
            obeys(name, data, folder)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__}-{Path(place.filename).stem}-{place.lineno}"
            if kind not in seen:
                seen.add(kind)
                (found / kind).write_bytes(data)
                (found.parent / "said").open("a").write(f"{kind}: {' '.join(str(error).split())[:200]}\n")

    def spoil(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        spoiled = target.spoil(random, data) if random.random() < 0.5 else atheris.Mutate(data, max_size)
        return bytes(spoiled[:max_size])

    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=spoil)
    atheris.Fuzz()


def run(name: str, seconds: int, found: Path) -> tuple[int, int]:
    """A target for so long -> executions, and how often it had to be started again; findings go into a folder."""
    executions = starts = 0
    with tempfile.TemporaryDirectory(prefix="musicgpt-fuzz-") as work:
        for part in ("corpus", "found"):
            (Path(work) / part).mkdir()
        end = time.monotonic() + seconds
        while (left := round(end - time.monotonic())) > 0:
            flags = [f"-max_total_time={left}", f"-timeout={SECONDS_AN_INPUT}", f"-rss_limit_mb={MEMORY}"]
            flags += ["-print_final_stats=1", "-max_len=60000", f"-seed={1 + starts}"]
            flags += [f"-artifact_prefix={work}/found/"]
            with open(f"{work}/log", "wb") as log:
                command = [sys.executable, "-c", CHILD, name, work, *flags]
                subprocess.run(command, cwd=Path(__file__).parent, stdout=log, stderr=log, check=False)
            said = Path(f"{work}/log").read_text(errors="replace")
            counts = re.findall(r"number_of_executed_units: (\d+)", said) or re.findall(r"^#(\d+)", said, re.MULTILINE)
            executions += int(counts[-1]) if counts else 0
            starts += 1
            if not counts:
                raise RuntimeError(said[-3000:])
        for path in Path(work, "found").iterdir():
            shutil.copy(path, found / f"{name}-{path.name}")
        if Path(work, "said").exists():
            print(Path(work, "said").read_text(), file=sys.stderr)
    return executions, starts - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=" ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=300, help="for each target")
    asked = parser.parse_args()
    found = Path(tempfile.mkdtemp(prefix="musicgpt-found-"))
    print(f"{'reader':18}{'seconds':>9}{'executions':>12}{'restarts':>10}{'findings':>10}")
    for name in asked.targets or TARGETS:
        executions, restarts = run(name, asked.seconds, found)
        findings = sorted(found.glob(f"{name}-*"))
        print(f"{name:18}{asked.seconds:9}{executions:12,}{restarts:10}{len(findings):10}", flush=True)
        for path in findings:
            print(f"    {path}")
    if any(found.iterdir()):
        raise SystemExit(1)
    found.rmdir()


if __name__ == "__main__":
    main()
