"""Text mode from end to end: the same stack, trainer and sampler as GPT-2 itself."""

from __future__ import annotations

import json
import os
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import musicgpt
from musicgpt.checkpoint import load_model
from musicgpt.cli import main
from musicgpt.tokenizer import load_tokenizer

TEXT = "\n".join(pydoc_data.topics.topics.values())
SMALL = "--preset music-tiny --n-positions 64 --batch-size 2 --steps 4 --checkpoint-every 4"


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "notes.txt").write_text(TEXT[:60_000])
    main(f"train {folder / 'notes.txt'} --out {folder / 'run'} {SMALL}".split())
    return folder / "run"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """What transformers saves of a GPT-2: random weights (no others can be had), the real vocabulary."""
    directory = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=48, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    load_tokenizer(shared / "text" / "gpt2-bpe").save(directory / "..")
    theirs = transformers.AutoTokenizer.from_pretrained(directory / "..")
    theirs.save_pretrained(directory)
    return directory


def test_one_file_is_split_by_position(text_run: Path) -> None:
    manifest = json.loads((text_run / "shards" / "manifest.json").read_text())
    assert manifest["split_within_documents"]
    train, val = (manifest["splits"][name] for name in ("train", "val"))
    assert train["ids"] / (train["ids"] + val["ids"]) == pytest.approx(0.9, abs=0.001)
    assert train["bytes"] + val["bytes"] == pytest.approx(len(TEXT[:60_000].encode()), rel=0.001)
    assert load_tokenizer(text_run / "best").vocab_size <= 4096


def test_text_is_streamed_to_the_terminal(text_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", str(text_run), "--prompt", "The Python ", "--max-new-tokens", "30"])
    whole = capsys.readouterr().out
    assert whole.startswith("The Python ")
    model = musicgpt.load(text_run)
    pieces = list(model.stream("The Python ", max_new_tokens=30))
    assert len(pieces) > 5
    assert "The Python " + "".join(pieces) + "\n" == whole
    assert model.generate("The Python ", max_new_tokens=30).document + "\n" == whole


def test_text_goes_into_a_file_and_several_samples_come_apart(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(f"generate {text_run} --prompt if --max-new-tokens 10 -o {tmp_path / 'a.txt'}".split())
    assert (tmp_path / "a.txt").read_text().startswith("if")
    capsys.readouterr()
    main(f"generate {text_run} --prompt if --max-new-tokens 10 --num-samples 3".split())
    assert capsys.readouterr().out.count("\n--- ") == 2
    with pytest.raises(SystemExit):
        main(f"generate {text_run} --prompt if -o {tmp_path / 'a.mid'}".split())
    assert "this model writes .txt files" in capsys.readouterr().err


def test_no_piece_of_a_stream_ends_within_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("日本語のテスト😀" * 300)
    main(f"train {tmp_path / 'a.txt'} --out {tmp_path / 'run'} --tokenizer bytes {SMALL}".split())
    model = musicgpt.load(tmp_path / "run")
    pieces = list(model.stream(max_new_tokens=60, temperature=1.5, top_k=None))
    whole = model.generate(max_new_tokens=60, temperature=1.5, top_k=None).document
    assert "".join(pieces) == whole


@pytest.mark.parametrize("tokenizer", ["bpe", "bytes", "characters"])
def test_a_folder_of_texts_in_every_tokenizer(
    tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(6):
        (tmp_path / "texts" / f"{i}.txt").write_text(TEXT[i * 3000 : (i + 1) * 3000])
    run = tmp_path / "run"
    main(f"train {tmp_path / 'texts'} --out {run} --tokenizer {tokenizer} {SMALL}".split())
    main(f"generate {run} --prompt if --max-new-tokens 5".split())
    main(f"evaluate {run} {tmp_path / 'texts'} --json".split())
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["bits_per_byte"] > 0


def test_a_folder_of_both_is_music_unless_said(folk: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    (both / "a.txt").write_text(TEXT[:5000])
    for path in sorted(folk.iterdir())[:3]:
        (both / path.name).symlink_to(path)
    for kind, name in (("", "remi"), ("--kind text", "bpe"), ("--kind music", "remi")):
        main(f"prepare {both} --out {tmp_path / 'shards'} --force {kind}".split())
        assert load_tokenizer(tmp_path / "shards").name == name


def test_a_gpt2_saved_by_transformers_generates_what_it_does_there(foreign: Path) -> None:
    model = musicgpt.load(foreign)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(foreign)
    assert model.tokenizer.vocab_size == 50_257
    ids = model.prompt_ids("Music is")
    expected = theirs.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, pad_token_id=50_256)
    piece = model.generate(ids, max_new_tokens=20, temperature=0)
    assert piece.ids == expected[0].tolist()


def test_the_tasks_of_the_paper(foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "article.txt").write_text(TEXT[:20_000])  # longer than the context: cut, and TL;DR: kept
    main(f"generate {foreign} --task summarize --prompt {tmp_path / 'article.txt'}".split())
    (tmp_path / "pairs.txt").write_text("good day = bonjour\nthank you = merci\nthe cat sleeps\n")
    main(f"generate {foreign} --task translate --prompt {tmp_path / 'pairs.txt'}".split())
    assert capsys.readouterr().out.count("\n") == 2
    with pytest.raises(SystemExit):
        main(f"generate {foreign} --task translate".split())
    assert "--task translate needs a model of text, and the file as --prompt" in capsys.readouterr().err


def test_the_hub_without_a_network_is_one_line(tmp_path: Path) -> None:
    """The real client, pointed at a port where nobody listens."""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "musicgpt", "generate", "openai-community/gpt2", "--prompt", "Hello"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("musicgpt: error:")]
    assert "openai-community/gpt2 is no directory here, and cannot be had from the Hugging Face Hub" in line
    assert "Traceback" not in done.stderr


def test_a_model_in_the_cache_of_the_hub_needs_no_network(foreign: Path, tmp_path: Path) -> None:
    """A snapshot laid out as the client lays it out; it is then read, offline, by its name and revision."""
    revision = "0123456789012345678901234567890123456789"
    repository = tmp_path / "hub" / "models--someone--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / revision).symlink_to(foreign)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for flags in ([], ["--revision", revision]):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "musicgpt",
                "generate",
                "someone/small",
                "--prompt",
                "Hi",
                "--max-new-tokens",
                "3",
                *flags,
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout.startswith("Hi"), done.stderr


def test_a_text_checkpoint_is_read_by_transformers(text_run: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_run / "best")
    model = transformers.AutoModelForCausalLM.from_pretrained(text_run / "best")
    ids = tokenizer("if x is None:", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == load_tokenizer(text_run / "best").encode("if x is None:")
    with torch.inference_mode():
        assert (model(ids).logits - load_model(text_run)(ids)).abs().max() < 1e-4
