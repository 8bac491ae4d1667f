"""The command line: every mistake is one line and exit status 1, and leaves nothing half-written."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import symusic

from musicgpt.cli import main, make_parser


def fails(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command which must fail says."""
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("musicgpt: error: ")]
    assert len(said) == 1
    return said[0].removeprefix("musicgpt: error: ")


def test_generate_writes_a_continuation(
    run: Path, folk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mid"
    main(f"generate {run} --prompt {folk / '001.mid'} --prompt-tokens 50 --max-new-tokens 60 -o {out}".split())
    assert capsys.readouterr().out == f"{out}\n"
    assert symusic.Score(out).note_num() > 0


def test_the_same_command_writes_the_same_bytes_and_another_seed_does_not(run: Path, tmp_path: Path) -> None:
    data = []
    for i, seed in enumerate((7, 7, 8)):
        main(f"generate {run} --seed {seed} --max-new-tokens 100 -o {tmp_path / f'{i}.mid'}".split())
        data.append((tmp_path / f"{i}.mid").read_bytes())
    assert data[0] == data[1] != data[2]


def test_several_samples_are_several_files(run: Path, tmp_path: Path) -> None:
    main(
        f"generate {run} --num-samples 3 --max-new-tokens 30 --no-top-k --top-p 0.9 --min-p 0.01 "
        f"-o {tmp_path / 'a.mid'}".split()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.mid", "a-2.mid", "a-3.mid"]


def test_without_the_prompt_only_the_new_is_written(run: Path, folk: Path, tmp_path: Path) -> None:
    ask = f"generate {run} --prompt {folk / '002.mid'} --prompt-tokens 100 --max-new-tokens 20 --temperature 0"
    main([*ask.split(), "-o", str(tmp_path / "with.mid")])
    main([*ask.split(), "--no-include-prompt", "-o", str(tmp_path / "without.mid")])
    assert symusic.Score(tmp_path / "without.mid").note_num() < 12 < symusic.Score(tmp_path / "with.mid").note_num()


def test_nothing_is_overwritten_without_force(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mid"
    out.write_bytes(b"mine")
    ask = f"generate {run} --max-new-tokens 60 -o {out}"
    assert "is there already; choose another -o, or overwrite it with --force" in fails(ask, capsys)
    assert out.read_bytes() == b"mine"
    main([*ask.split(), "--force"])
    assert out.read_bytes()[:4] == b"MThd"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--top-k 0", "top_k is 0; expected at least 1 (no limit: --no-top-k"),
        ("--top-k many", "argument --top-k: invalid int value: 'many'"),
        ("--temperature -1", "temperature is -1.0; expected 0"),
        ("--top-p 2", "top_p is 2.0; expected a share"),
        ("--min-p -1", "min_p is -1.0; expected a share"),
        ("--max-new-tokens 0", "max_new_tokens 0: expected at least 1"),
        ("--num-samples 0", "num_samples 0"),
        ("--seed -3", "seed -3"),
        ("--prompt missing.mid", "there is no file 'missing.mid'; this model continues a file of music"),
        ("--prompt EMPTY", "is empty (0 bytes); expected music in .mid"),
        ("--prompt PAGE", "is not a MIDI file: it begins with"),
        ("--prompt CUT", "cannot be read"),
        ("--prompt TEXT", "is no music file by its name"),
        ("--prompt TUNE --prompt-tokens 0", "prompt_tokens 0: expected at least 1"),
        ("--prompt TUNE --prompt-bars 0", "prompt_bars 0: expected at least 1"),
        ("--bars 0", "bars 0: expected at least 1"),
        ("--seconds 0.1", "seconds 0.1: expected at least 1"),
        ("--bars 2 --seconds 3", "bars and seconds: one of them is the length"),
        ("--best-of 0", "best_of 0: expected at least 1"),
        ("--prompt TUNE --max-new-tokens 2", "the way to the first bar line takes"),
        ("--max-new-tokens 3", "no note was complete: ask for more"),
        ("--tempo fast", "--tempo fast: expected quarter notes a minute"),
        ("--time-signature 4/5", "--time-signature 4/5: expected one such as 4/4"),
        ("--time-signature 25/16", "this tokenizer does not have it"),
        ("--instruments piano,kazoo", "'kazoo': no instrument of General MIDI is called so"),
        ("--instruments 128", "programs are numbered 0 to 127"),
        ("--scale H-dur", "expected a tonic and one of major, minor"),
        ("--pitch-range C6-C3", "expected two notes from low to high"),
        ("--pitch-range C#4-C#4 --scale C", "holds no note of"),
        ("--chords Am,H", "--chords: 'H' is no chord that is known here"),
        ("--chords-strict", "--chords-strict: expected --chords, too"),
        ("--chords C,G --pitch-range C4-C4", "--chords G: none of its tones is in the scale and pitch range of"),
        ("--max-polyphony 0", "--max-polyphony 0: expected at least 1"),
        ("--track piano", "expected a track and what holds for it"),
        ("--track 3:scale=C --instruments piano", "there are 1 tracks, counted from 0"),
        ("--track 0:scale=C", "there are 0 tracks, counted from 0"),
        ("--track cello:scale=C --instruments piano", "Cello does not play here"),
        ("--instruments piano,²", "no instrument of General MIDI"),
        ("--tempo 1e9", "this tokenizer has 20 to 300"),
        ("--replay TUNE", "does not say how it was made"),
        ("--replay TUNE --bars 3", "--replay takes everything from the file: leave out --bars"),
        ("--replay TUNE --seed 0", "--replay takes everything from the file: leave out --seed"),
        ("--replay TUNE --num-samples 1", "--replay takes everything from the file: leave out --num-samples"),
        ("--replay TUNE --best-of 2", "--replay takes everything from the file: leave out --best-of"),
        ("--replay TUNE --no-include-prompt", "--replay takes everything from the file: leave out --no-include-prompt"),
        ("--replay TUNE --stream", "--replay takes everything from the file: leave out --stream"),
        ("--replay TUNE --scale C", "--replay takes everything from the file: leave out --scale"),
        ("--stream --num-samples 2", "--stream shows one piece"),
        ("-o FOLDER/no/out.mid", "does not exist; make it, or choose another -o"),
        ("-o FOLDER/out.wav", "this model writes .mid files"),
        ("--nonsense", "unrecognized arguments: --nonsense; see musicgpt generate --help"),
    ],
)
def test_generate_refuses_in_one_line_and_writes_nothing(
    flags: str,
    message: str,
    run: Path,
    folk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    whole = (folk / "000.mid").read_bytes()
    files = {"EMPTY": b"", "PAGE": b"<html></html>", "CUT": whole[:10], "TUNE": whole}
    for name, data in files.items():
        (given / f"{name}.mid").write_bytes(data)
        flags = flags.replace(name, str(given / f"{name}.mid"))
    (given / "a.txt").write_text("hello")
    flags = flags.replace("TEXT", str(given / "a.txt")).replace("FOLDER", str(tmp_path))
    out = "" if "-o " in flags else f"-o {tmp_path / 'out.mid'}"
    assert message in fails(f"generate {run} {flags} {out}", capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train FOLK --out FOLDER/run --preset no", "--preset no is unknown"),
        ("train FOLK --out FOLDER/run --device no", "the device no cannot be used here"),
        ("train FOLK --out FOLDER/run --seed 4294967296", "--seed 4294967296: expected 0 to"),
        ("train FOLK --out FOLK/run", "is inside the corpus"),
        ("train FOLK --out FOLK/000.mid", "is a file; choose another --out"),
        ("prepare FOLK --out FOLDER/texts/a.pdf", "is a file; expected a folder"),
        ("generate FOLDER/none -o FOLDER/a.mid", "does not exist; expected a checkpoint or a run"),
        ("generate FOLDER -o FOLDER/a.mid", "is another folder; expected a checkpoint"),
        ("train FOLDER/none --out FOLDER/run", "is neither a file nor a folder, nor a corpus that is known by name"),
        ("train EMPTY --out FOLDER/run", "holds no files; expected music in it"),
        ("train TEXTS --out FOLDER/run", "none of the 1 files in"),
        ("train FOLK --out FOLDER/run --tokenizer octuple", "octuple is refused: it sums several vocabularies"),
        ("train FOLK --out FOLDER/run --vocab-size 20", "a vocabulary of 20 ids was asked for; remi has"),
        ("train FOLK --out FOLDER/run --batch-size 0", "--batch-size 0: expected at least 1"),
        (
            "train FOLK --out FOLDER/run --batch-size 8 --micro-batch 3",
            "--micro-batch 3 does not divide --batch-size 8",
        ),
        ("train FOLK --out FOLDER/run --dropout 1", "--dropout 1.0: expected a probability below 1"),
        ("train FOLK --out FOLDER/run --dtype float16", "invalid choice: 'float16'"),
        ("train FOLK --out FOLDER/run --init-from FOLDER/none", "does not exist; expected a checkpoint or a run"),
        ("train FOLK", "the following arguments are required: --out"),
        ("prepare FOLK --out FOLDER/s --transpositions 0", "--transpositions 0: expected 1"),
        ("prepare FOLK --out EMPTY/../texts --force", "which is no part of shards; choose another --out"),
        ("dance", "invalid choice: 'dance'"),
    ],
)
def test_other_mistakes_are_one_line_too(
    command: str, message: str, folk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.pdf").write_text("hello")
    for name, path in (
        ("EMPTY", tmp_path / "empty"),
        ("TEXTS", tmp_path / "texts"),
        ("FOLK", folk),
        ("FOLDER", tmp_path),
    ):
        command = command.replace(name, str(path))
    assert message in fails(command, capsys)
    assert {path.name for path in tmp_path.rglob("*")} == {"empty", "texts", "a.pdf"}


def test_help_is_instant_and_imports_no_torch() -> None:
    for verb in ([], ["train"], ["generate"], ["prepare"]):
        code = (
            "import sys; from musicgpt.cli import main\n"
            "try: main(sys.argv[1:])\n"
            "finally: assert 'torch' not in sys.modules"
        )
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, *verb, "--help"], check=True, stdout=subprocess.PIPE)
        assert time.perf_counter() - began < 1.5  # 0.1 s on a quiet machine


def test_every_flag_is_explained() -> None:
    (verbs,) = [action for action in make_parser()._actions if action.choices]
    assert verbs.choices is not None
    for verb, parser in dict(verbs.choices).items():  # type: ignore[call-overload]
        for action in parser._actions:
            assert action.help, f"{verb} {action.option_strings}"
            assert "None" not in action.help


def test_prepare_and_train_on_its_shards(folk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"prepare {folk} --out {tmp_path / 'shards'} --tokenizer tsd --vocab-size 1200 --transpositions 2".split())
    main(
        f"train {tmp_path / 'shards'} --out {tmp_path / 'run'} --preset music-tiny --n-positions 32 --batch-size 2 "
        f"--steps 2".split()
    )
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "shards"), str(tmp_path / "run" / "best")]
    assert not (tmp_path / "run" / "shards").exists()
    main(f"generate {tmp_path / 'run'} --max-new-tokens 30 -o {tmp_path / 'a.mid'}".split())


def test_python_m_and_a_closed_pipe(folk: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "musicgpt", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("musicgpt 0.")
    command = [sys.executable, "-m", "musicgpt", "inspect", str(folk / "000.mid")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()  # as `| head -0` does
        assert "Traceback" not in child.stderr.read()
    assert child.returncode == 1


def test_render_writes_sound_and_pictures(folk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".wav", b"RIFF")):
        out = tmp_path / f"a{suffix}"
        main(f"render {folk / '000.mid'} -o {out} --boundary 8".split())
        assert out.read_bytes().startswith(magic)
        assert "is there already" in fails(f"render {folk / '000.mid'} -o {out}", capsys)
    assert "expected .wav, .png or .svg" in fails(f"render {folk / '000.mid'} -o {tmp_path / 'a.mp3'}", capsys)
