"""Whatever a file holds, its reader gives a value or refuses it in one line, in little time and memory.

The law is that of `fuzz.py`, which also says how files are spoiled. What broke it once stands here by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from fuzz import TARGETS, obeys
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from musicgpt import midi
from musicgpt.checkpoint import MAX_LAYERS, load_model, save_model
from musicgpt.compose import LanguageModel
from musicgpt.errors import LONGEST_LINE, CheckpointError, InputError, MusicGPTError, TokenizerError
from musicgpt.files import MAX_JSON, read_json
from musicgpt.model import GPT, GPTConfig
from musicgpt.phrases import read_phrase
from musicgpt.provenance import provenance_text
from musicgpt.tokenizer import load_tokenizer, new_tokenizer

CONFIG = GPTConfig(vocab_size=16, n_positions=8, n_embd=4, n_layer=1, n_head=2)

EXAMPLES = {
    "midi": 1500, "abc": 120, "prompt": 250, "tokenizer-music": 120, "tokenizer-text": 600, "vocabulary": 400,
    "tokenizer-config": 400, "config": 400, "weights": 300, "manifest": 400,
}  # fmt: skip
"""So many spoiled files of each kind, and half as many of arbitrary bytes."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[bytes], Path]]:
    """A target -> its sound files, and the folder that it reads in."""
    made: dict[str, tuple[list[bytes], Path]] = {}

    def of(name: str) -> tuple[list[bytes], Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = TARGETS[name].seeds(folder), folder
        return made[name]

    return of


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_spoiled_file_is_read_or_refused_in_one_line(name: str, sound: Any) -> None:
    seeds, folder = sound(name)
    outcomes = Counter(obeys(name, seed, folder) for seed in seeds)
    assert outcomes[True]

    @settings(max_examples=EXAMPLES[name])
    @given(seed=st.integers(0, 2**64), which=st.integers(0, len(seeds) - 1))
    def law(seed: int, which: int) -> None:
        outcomes[obeys(name, TARGETS[name].spoil(Random(seed), seeds[which]), folder)] += 1

    law()
    assert min(outcomes[True], outcomes[False]) > 5


@pytest.mark.parametrize("name", EXAMPLES)
def test_any_bytes_are_read_or_refused_in_one_line(name: str, sound: Any) -> None:
    seeds, folder = sound(name)

    @settings(max_examples=EXAMPLES[name] // 2)
    @given(data=st.binary(max_size=200), begin=st.sampled_from([0, 4, 14, 100]))
    def law(data: bytes, begin: int) -> None:
        obeys(name, seeds[0][:begin] + data, folder)

    law()


# one line


def test_what_a_message_quotes_cannot_write_on_the_terminal() -> None:
    text = str(MusicGPTError("\x1b[2J\r\n\ud800 \u202e" + "x" * 5000 + " expected a file: do this"))
    assert text.isprintable() and len(text) == LONGEST_LINE
    assert text.startswith(r"\x1b[2J\r\n\ud800 \u202exx") and text.endswith("expected a file: do this")
    assert str(MusicGPTError("Frühling 日本.mid is empty")) == "Frühling 日本.mid is empty"


# sizes, devices and pipes


@pytest.mark.parametrize("name", ["a.mid", "a.abc", "a.musicxml", "a.txt", "tokenizer.json"])
def test_a_file_too_large_a_device_and_a_pipe_are_refused_unread(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    tokenizer = new_tokenizer("bytes" if name == "a.txt" else "remi")
    read = read_json if name == "tokenizer.json" else tokenizer.read
    path.touch()
    os.truncate(path, 2**40)  # of holes
    with pytest.raises(InputError, match=r"has 1,099,511,627,776 bytes; expected at most"):
        read(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="no regular file"):
        read(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="no regular file"):
        read(path)


def test_json_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ' + "[" * (MAX_JSON // 100))
    with pytest.raises(InputError, match="is not JSON"):
        read_json(tmp_path / "a.json")


# MIDI


def midi_file(*tracks: bytes, declared: int | None = None) -> bytes:
    chunks = b"".join(b"MTrk" + len(track).to_bytes(4, "big") + track for track in tracks)
    return b"MThd\0\0\0\6\0\1" + (declared or len(tracks)).to_bytes(2, "big") + b"\1\xe0" + chunks


def test_more_tracks_than_a_file_can_declare_are_refused(tmp_path: Path) -> None:
    note = b"\0\x90\x3c\x40\x60\x3c\0\0\xff\x2f\0"
    (tmp_path / "a.mid").write_bytes(midi_file(note, *[b"\0\xff\x2f\0"] * 65_534))
    assert midi.read_scores(tmp_path / "a.mid")[0][0].note_num() == 1
    (tmp_path / "a.mid").write_bytes(midi_file(note, *[b"\0\xff\x2f\0"] * 65_535, declared=1))
    with pytest.raises(InputError, match="has 65,536 tracks; a MIDI file can declare 65,535"):
        midi.read_scores(tmp_path / "a.mid")


def test_hundreds_of_thousands_of_notes_without_end_take_no_time(tmp_path: Path) -> None:
    """Each closed by itself, they took minutes."""
    (tmp_path / "a.mid").write_bytes(midi_file(b"\0\x90\x3c\x40" + b"\0\x3c\x40" * 300_000))
    begun = time.process_time()
    (score,), remarks = midi.read_scores(tmp_path / "a.mid")
    assert (score.note_num(), remarks[-1]) == (300_001, "300001 notes without end closed")
    assert time.process_time() - begun < 5


# ABC

TUNE = "X:1\nM:4/4\nL:1/8\nK:C\n"


@pytest.mark.parametrize(
    "command",
    [
        "%%abc-include {}",
        "  %%abc-include {}",
        "%%abc-include\t{}",
        "%%MIDI ptstress {}",
        "I:MIDI ptstress {}",
        "[I:MIDI ptstress {}]",
        "%%ptstressabc-include {}",
    ],
)
def test_a_tune_cannot_name_another_file(command: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("GABc|\n")
    (tmp_path / "plain.abc").write_text(f"{TUNE}CDEF|\n")
    (tmp_path / "a.abc").write_text(f"{TUNE}{command.format(secret)}\nCDEF|\n")
    (plain,), _ = midi.read_scores(tmp_path / "plain.abc")
    (score,), remarks = midi.read_scores(tmp_path / "a.abc")
    assert midi.fingerprint(score) == midi.fingerprint(plain)
    assert remarks == [f"{1 + command.count('ptstressabc')} commands that name another file left out"]
    (prompt, remarks) = read_phrase(f"{TUNE}{command.format('/dev/zero')}\nCDEF|\n")
    assert [note.pitch for note in prompt.tracks[0].notes] == [60, 62, 64, 65]


@pytest.mark.parametrize(
    "tune",
    [
        TUNE.replace("K:", f"P:{'(' * 8}A{'9)' * 8}\nK:") + "P:A\nCDEF CDEF|\n",
        TUNE + "|:" * 500 + "CDEF|" + ":|" * 500,
        TUNE + "C999999999 [M:1/1073741824] D [L:1/999999999] E [Q:1/4=0] F|",
        TUNE + "(99999:3:2CDE" + "{c}" * 9999 + "|",
        "X:1\nK:C\nC|\n" * 300 + "X:1\n" * 5000,
    ],
    ids=["parts", "repeats", "lengths", "tuplets", "empty tunes"],
)
def test_a_tune_that_grows_is_read_or_refused_soon(tune: str, tmp_path: Path) -> None:
    (tmp_path / "a.abc").write_text(tune)
    begun = time.monotonic()
    try:
        scores, _ = midi.read_scores(tmp_path / "a.abc")
        assert all(score.note_num() < 1_000_000 for score in scores)
    except InputError:
        pass
    assert time.monotonic() - begun < 30


def test_a_converter_that_does_not_end_is_given_up() -> None:
    with pytest.raises(InputError, match="did not finish in time"):
        read_phrase("A54775808ddG:|")


def test_half_a_character_of_an_argument_is_replaced() -> None:
    score, _ = read_phrase('K:C "\udcff"CDEF|')
    assert score.note_num() == 4
    tokenizer = new_tokenizer("bytes")
    text, remarks = tokenizer.prompt("a\udcffb")
    assert tokenizer.decode(tokenizer.encode(text)) == text == "a?b"
    assert remarks == ["half characters replaced"]


def test_more_tunes_than_a_book_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.abc").write_text("\nX:" * midi.MAX_TUNES)
    with pytest.raises(InputError, match="holds more than 10,000 ABC tunes"):
        midi.read_scores(tmp_path / "a.abc")
    (tmp_path / "a.abc").write_text("A:b\n" * 1_000_000 + "X:1\nK:C\nC|\n" * 5000)  # 20 GB, if it were done
    with pytest.raises(InputError, match="begins with 4,000,000 characters that hold for each of its 5,000 tunes"):
        midi.read_scores(tmp_path / "a.abc")


# tokenizer.json

SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1_000_000}


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("pre_tokenizer", SPLIT, "has the pre_tokenizer Split, which is refused; expected ByteLevel, Metaspace"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [SPLIT]}, "has the pre_tokenizer Sequence"),
        ("normalizer", REPLACE | {"pattern": {"Regex": r"[\s\S]"}}, "has the normalizer Replace, which is refused"),
        ("normalizer", {"pattern": {"String": "a"}, "content": "aa"}, "has the normalizer None"),
        ("normalizer", {"type": None, "pattern": {"String": "a"}, "content": "aa"}, "has the normalizer None"),
        ("normalizer", "Replace", "has the normalizer Replace, which is refused"),
        ("normalizer", REPLACE, "has the normalizer Replace, which is refused"),
        ("decoder", REPLACE, "has the decoder Replace, which is refused"),
        ("model.vocab.a", 4_294_967_295, "expected ids from 0 without gaps"),
        ("model.vocab.a", 1, "expected ids from 0 without gaps"),
        ("model.vocab.a", "0", "expected ids from 0 without gaps"),
        ("model.vocab", [], "cannot be read"),
        ("model", 3, "cannot be read"),
        ("model.vocab." + "a" * 5000, 4, "the longest of 5,000 characters"),
        ("model.unk_token", "?", "has no id for its unknown token"),
        ("model.dropout", 0.5, "drops merges at random"),
        ("model.continuing_subword_prefix", "é", "marks parts of words"),
        ("model.type", "Unigram", "holds a vocabulary of the kind Unigram; expected BPE"),
        ("model.merges", [["a", "x"]], "cannot be read"),
        ("added_tokens", [{"id": 9, "content": "z", "special": True}], "expected ids from 0 without gaps"),
    ],
)
def test_a_vocabulary_that_would_run_away_is_refused(section: str, value: Any, message: str, tmp_path: Path) -> None:
    values = small_vocabulary()
    *path, last = section.split(".")
    inner = values
    for key in path:
        inner = inner[key]
    inner[last] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def small_vocabulary() -> dict[str, Any]:
    end = {"id": 3, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False}
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    return {"model": model, "added_tokens": [{**end, "normalized": False, "special": True}]}


def test_what_would_change_ids_behind_the_merges_is_left_out(tmp_path: Path) -> None:
    padding = {"strategy": {"Fixed": 2_000_000_000}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    shorter = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    values = small_vocabulary() | {"padding": padding, "truncation": shorter, "post_processor": {"type": "nonsense"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert load_tokenizer(tmp_path).encode("abba") == [2, 1, 0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beat_res", {"0_1000000000": 8}),
        ("beat_res", {"0_4": 10**9}),
        ("beat_res", {"0_9999": 0}),
        ("time_signature_range", {"4": [10**9]}),
        ("time_signature_range", {"1024": [4]}),
        ("num_tempos", 10**9),
        ("tempo_range", [0, 300]),
        ("tempo_range", [float("nan"), 300]),
        ("programs", ["piano"]),
        ("programs", [0, 128]),
        ("pitch_bend_range", [0, 1, 10**9]),
        ("max_pitch_interval", 10**9),
        ("chord_maps", {str(i): [0, 4] for i in range(2000)}),
        ("special_tokens", ["PAD_None", "BOS_None", "EOS_None", "Pitch_sharp"]),
        ("special_tokens", ["PAD_None"]),
        ("additional_params", {"max_bar_embedding": 10**9}),
        ("nb_velocities", 10**9),
        ("use_programs", "yes, please"),
    ],
)
def test_a_config_that_asks_for_too_much_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    new_tokenizer("remi").save(tmp_path)
    values = read_json(tmp_path / "tokenizer.json")
    values["config"][field] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_music_takes_no_attribute_from_its_file(tmp_path: Path) -> None:
    """miditok sets any key that it does not know."""
    tokenizer, (score, _) = new_tokenizer("remi"), read_phrase("jig")
    tokenizer.save(tmp_path)
    values = read_json(tmp_path / "tokenizer.json") | {"encode": 1, "preprocess_score": None, "time_division": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert load_tokenizer(tmp_path).encode(score) == tokenizer.encode(score)


@pytest.mark.parametrize("spoil", ["another token", "ids exchanged", "a merge of none", "merges of another"])
def test_merges_that_do_not_fit_the_config_are_refused(spoil: str, tmp_path: Path) -> None:
    tokenizer, phrases = new_tokenizer("midilike"), [read_phrase(name)[0] for name in ("jig", "reel", "waltz")]
    tokenizer.learn(phrases, tokenizer.vocab_size + 9)
    tokenizer.save(tmp_path)
    values = read_json(tmp_path / "tokenizer.json")
    model, base = json.loads(values["_model"]), values["_vocab_base"]
    if spoil == "another token":
        base["Pitch_999"] = base.pop("NoteOn_60")
    elif spoil == "ids exchanged":
        model["model"]["vocab"]['"'], model["model"]["vocab"]["!"] = 0, 1
    elif spoil == "a merge of none":
        model["model"]["vocab"]["\N{SNOWMAN}"] = len(model["model"]["vocab"])
    else:
        base.popitem()
    values["_model"] = json.dumps(model)
    assert tokenizer.encode(phrases[0]) == load_tokenizer(tmp_path).encode(phrases[0])
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)


# checkpoints


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_layer", 2**31 - 1, "layers; expected at most"),
        ("n_layer", MAX_LAYERS, "cannot hold what config"),
        ("n_positions", 2**31 - 1, "cannot hold what config"),
        ("vocab_size", 10**30, "expected a whole number"),
        ("n_embd", None, "n_inner 16, which is not implemented"),
        ("n_embd", [4] * 1000, "n_inner 16, which is not implemented"),
        ("layer_norm_epsilon", float("nan"), "expected a number between 0 and 1"),
        ("quantization_config", {"a": "x" * 10**6}, "quantization_config .* is not implemented|expected None"),
    ],
)
def test_a_config_is_refused_before_anything_is_made(field: str, value: Any, message: str, tmp_path: Path) -> None:
    save_model(tmp_path, GPT(CONFIG))
    values = read_json(tmp_path / "config.json") | {"n_inner": 16, field: value}
    (tmp_path / "config.json").write_text(json.dumps(values))
    begun = time.process_time()
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)
    assert time.process_time() - begun < 2


def test_layers_are_counted_before_they_are_made(tmp_path: Path) -> None:
    """A file of zeros that is long enough for a million of them."""
    save_model(tmp_path, GPT(CONFIG))
    values = read_json(tmp_path / "config.json") | {"n_layer": 1_000_000, "n_embd": 2, "n_inner": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    os.truncate(tmp_path / "model.safetensors", 2**30)
    with pytest.raises(CheckpointError, match="has 1,000,000 layers; expected at most 1,024"):
        load_model(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**62, 2**64 - 1])
def test_the_length_of_a_header_is_not_believed(length: int, tmp_path: Path) -> None:
    save_model(tmp_path, GPT(CONFIG))
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", ["wpe.weight", "lm_head.weight"])
def test_weights_of_another_kind_of_number_are_refused(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_model(tmp_path, GPT(CONFIG))
    weights = load_file(tmp_path / "model.safetensors")
    weights = {key.removeprefix("transformer."): weight for key, weight in weights.items()}
    weights[name] = torch.zeros(weights[name.replace("lm_head", "wte")].shape, dtype=dtype)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"the weight {name} is not made of finite floating-point numbers"):
        load_model(tmp_path)


AUDIT = """
import sys
import tempfile
from pathlib import Path

import musicgpt.checkpoint as checkpoint
import musicgpt.compose
from musicgpt.errors import MusicGPTError

sound, hostile = map(Path, sys.argv[1:])
for folder in sound.iterdir():  # what is imported late is imported now
    checkpoint.load(folder)
seen = []
inside = (str(hostile), sys.prefix, sys.base_prefix, str(Path(tempfile.gettempdir(), "musicgpt-")))


def hook(event, arguments):
    if event in ("pickle.find_class", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system",
                 "os.exec", "os.posix_spawn", "exec", "compile", "import", "marshal.loads"):
        seen.append((event, str(arguments)[:100]))
    elif event == "open" and isinstance(arguments[0], str) and not arguments[0].startswith(inside):
        seen.append((event, arguments[0]))


sys.addaudithook(hook)
for folder in sorted(hostile.iterdir()):
    try:
        checkpoint.load(folder)
        print(folder.name, "loaded")
    except MusicGPTError as error:
        print(folder.name, "refused", error)
print("seen", seen)
"""


def test_nothing_is_unpickled_executed_fetched_or_looked_up(tmp_path: Path) -> None:
    """Every event of the interpreter that a load of a hostile checkpoint could raise, in a process of its own."""
    sound, hostile, secret = tmp_path / "sound", tmp_path / "hostile", tmp_path / "secret.safetensors"
    for kind, name in (("music", "remi"), ("text", "bytes")):
        tokenizer = new_tokenizer(name)
        config = GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=8, n_embd=4, n_layer=1, n_head=2)
        for folder in (sound / kind, *(hostile / f"{kind}-{part}" for part in ("whole", "without", "pickled"))):
            folder.mkdir(parents=True)
            save_model(folder, GPT(config), tokenizer)
        for folder in hostile.glob(f"{kind}-*"):
            poison(folder, secret)
        (hostile / f"{kind}-without" / "tokenizer.json").unlink()
        (hostile / f"{kind}-pickled" / "model.safetensors").unlink()
    save_file({"wte.weight": torch.zeros(2, 2)}, secret)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AUDIT, sound, hostile], capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 7, done.stderr
    assert lines[-1] == "seen []"
    assert [line.split()[:2] for line in lines[:-1]] == [
        [f"{kind}-{part}", "loaded" if part == "whole" else "refused"]
        for kind in ("music", "text")
        for part in ("pickled", "whole", "without")
    ]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('unpickled')",)


def poison(folder: Path, secret: Path) -> None:
    """What a checkpoint can name or hold to make a careless reader run, fetch or open something else."""
    outside = str(secret)
    names = {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "_name_or_path": "somebody/else", "custom": outside}
    config, said = read_json(folder / "config.json"), read_json(folder / "tokenizer_config.json")
    (folder / "config.json").write_text(json.dumps(config | {k: v for k, v in names.items() if k != "custom"}))
    named = {"tokenizer_file": outside, "vocab_file": outside, "special_tokens_map_file": outside}
    (folder / "tokenizer_config.json").write_text(json.dumps(said | names | named))
    index = {"weight_map": {"transformer.wte.weight": f"../../{secret.name}", "transformer.wpe.weight": outside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    for name in ("pytorch_model.bin", "tokenizer.pkl", "training_args.bin", "model.ckpt"):
        torch.save(Bomb(), folder / name)


def test_how_a_piece_was_made_may_be_said_in_numbers_without_end(tmp_path: Path) -> None:
    tokenizer = new_tokenizer("tsd")
    model = LanguageModel(GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_embd=4, n_layer=1, n_head=1)), tokenizer)
    said: dict[str, Any] = {**model.hashes, "versions": {}, "settings": {}, "seed": 1, "prompt_ids": [], "sample": 1}
    for number in (float("inf"), float("nan"), 10**30, -1, None, "x"):
        midi.write_midi(read_phrase("jig")[0], tmp_path / "a.mid", text=provenance_text(said | {"num_samples": number}))
        with pytest.raises(MusicGPTError):
            model.replay(tmp_path / "a.mid")
