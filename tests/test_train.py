"""Runs: what they leave, how they go on, and that they learn."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import symusic
import torch
from safetensors.torch import load_file

from musicgpt import train as train_module
from musicgpt.checkpoint import load_model
from musicgpt.cli import main
from musicgpt.config import PrepareConfig, TrainConfig
from musicgpt.errors import CheckpointError, MusicGPTError, ShardsError, UsageError
from musicgpt.prepare import prepare
from musicgpt.runs import checkpoints
from musicgpt.train import train

NAMES = ("whole", "parts")
SMALL = "--preset music-tiny --n-positions 64 --batch-size 2 --checkpoint-every 2 --warmup 0.2"


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def shards(folk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "shards"
    prepare(folk, out, PrepareConfig(transpositions=3), report=quiet)
    return out


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run)]


def test_a_run_holds_all_it_should(run: Path) -> None:
    assert [row["step"] for row in rows(run)] == list(range(1, 9))
    assert all({"loss", "learning_rate", "grad_norm", "tokens_per_second"} <= set(row) for row in rows(run))
    assert [row["step"] for row in rows(run) if "val_loss" in row] == [4, 8]
    assert losses(run)[-1] < losses(run)[0] - 1
    settings = json.loads((run / "run.json").read_text())
    assert settings["train"]["steps"] == 8
    assert settings["train"]["dtype"] in ("float32", "bfloat16")
    assert set(json.loads((run / "baselines.json").read_text())) == {"unigram", "bigram"}
    assert symusic.Score(run / "samples" / "step_000008.mid") is not None
    assert [path.name for path in checkpoints(run)] == ["000008", "000004"]
    assert load_model(checkpoints(run)[0]).config == load_model(run / "best").config
    assert not (run / "best" / "optimizer.safetensors").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resumed_equals_never_stopped_bit_for_bit(dtype: str, shards: Path, tmp_path: Path) -> None:
    whole, parts = (
        f"train {shards} --out {tmp_path / name} {SMALL} --checkpoint-every 30 --steps 60 --dtype {dtype}"
        for name in NAMES
    )
    in_a_process(whole)
    interrupt(parts)
    interrupt(f"{parts} --resume")
    in_a_process(f"{parts} --resume")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for part in ("model", "optimizer"):
        one, other = (load_file(tmp_path / name / "checkpoints" / "000060" / f"{part}.safetensors") for name in NAMES)
        assert set(one) == set(other)
        assert all(torch.equal(one[key], other[key]) for key in one)


def in_a_process(command: str) -> None:
    subprocess.run([sys.executable, "-m", "musicgpt", *command.split()], check=True, capture_output=True)


def started(command: str) -> subprocess.Popen[str]:
    """A training in a process of its own, which has just made its first step."""
    metrics = Path(command.split()[3]) / "metrics.jsonl"
    before = metrics.read_text().count("\n") if metrics.is_file() else 0
    child = subprocess.Popen([sys.executable, "-m", "musicgpt", *command.split()], stderr=subprocess.PIPE, text=True)
    while not (metrics.is_file() and metrics.read_text().count("\n") > before):
        time.sleep(0.002)
        assert child.poll() is None, child.communicate()[1]
    return child


def interrupt(command: str, number: int = signal.SIGINT) -> str:
    """Stop a training as Ctrl-C does, after a step or some; what it says."""
    child = started(command)
    child.send_signal(number)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 0, said
    return said


def test_an_interrupted_run_says_how_to_go_on(shards: Path, tmp_path: Path) -> None:
    said = interrupt(f"train {shards} --out {tmp_path / 'run'} {SMALL} --steps 5000", signal.SIGTERM)
    assert re.search(r"stopped behind step [\d,]+, all saved; go on with the same command and --resume", said)
    assert load_model(tmp_path / "run")


def test_killed_outright_it_goes_on_from_the_last_checkpoint(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = f"train {shards} --out {run} {SMALL} --steps 500"
    child = started(command)
    while len(losses(run)) < 5:
        time.sleep(0.002)
    child.kill()
    child.communicate()
    main([*command.split()[:-1], str(len(losses(run)) + 3), "--resume"])
    assert [row["step"] for row in rows(run)] == list(range(1, len(losses(run)) + 1))


def test_micro_batches_change_nothing_but_memory(shards: Path, tmp_path: Path) -> None:
    for micro in (4, 1):
        main(
            f"train {shards} --out {tmp_path / str(micro)} --preset music-tiny --n-positions 64 --batch-size 4 "
            f"--micro-batch {micro} --steps 4 --dropout 0 --dtype float32".split()
        )
    # sums in another order, which Muon, in bfloat16, makes more of
    np.testing.assert_allclose(losses(tmp_path / "4"), losses(tmp_path / "1"), rtol=2e-4)


def test_one_step_of_gpt2s_own_batch(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """512 sequences of 1,024 ids, on a model small enough for two cores."""
    monkeypatch.setitem(train_module.PRESETS, "one-layer", {"n_layer": 1, "n_head": 1, "n_embd": 32})  # type: ignore[attr-defined]
    main(f"train {shards} --out {tmp_path / 'run'} --preset one-layer --batch-size 512 --steps 1".split())
    (row,) = rows(tmp_path / "run")
    assert row["epoch"] > 10
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["train"]
    assert settings["batch_size"] * settings["n_positions"] == 524_288


def test_a_model_that_sees_one_tune_learns_it(folk: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    shutil.copy(folk / "000.mid", tmp_path / "corpus")
    main(
        f"train {tmp_path / 'corpus'} --out {tmp_path / 'run'} --preset music-tiny --n-positions 128 --batch-size 4 "
        f"--transpositions 1 --steps 150 --dropout 0 --checkpoint-every 150".split()
    )
    assert losses(tmp_path / "run")[-1] < 0.3


def test_the_preset_is_chosen_from_the_corpus_and_said(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(f"train {shards} --out {tmp_path / 'run'} --n-positions 32 --batch-size 1 --steps 1".split())
    assert re.search(r"preset music-tiny: the one for [\d,]+ training ids", capsys.readouterr().err)


def test_fine_tuning_begins_with_the_weights_and_vocabulary_of_the_checkpoint(
    run: Path, folk: Path, tmp_path: Path
) -> None:
    main(
        f"train {folk} --out {tmp_path / 'tuned'} --init-from {run} --steps 2 --batch-size 2 "
        f"--learning-rate 1e-9".split()
    )
    before, after = load_model(run).state_dict(), load_model(tmp_path / "tuned").state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    tokenizer = "tokenizer.json"
    assert (tmp_path / "tuned" / "best" / tokenizer).read_bytes() == (run / "best" / tokenizer).read_bytes()


def test_flags_that_do_not_go_together_are_refused(run: Path, folk: Path, shards: Path, tmp_path: Path) -> None:
    config, prepared = TrainConfig(), PrepareConfig()
    with pytest.raises(UsageError, match="holds a run: go on with --resume"):
        train(str(folk), run, config, prepared, report=quiet)
    with pytest.raises(UsageError, match="--batch-size 3 differs from 4"):
        train(
            str(folk),
            run,
            TrainConfig(batch_size=3),
            prepared,
            given=frozenset(["batch_size"]),
            resume=True,
            report=quiet,
        )
    with pytest.raises(UsageError, match="--init-from boxed: this run began without one"):
        train(str(folk), run, config, prepared, init_from="boxed", resume=True, report=quiet)
    with pytest.raises(UsageError, match="does not exist; there is nothing to resume"):
        train(str(folk), tmp_path / "no", config, prepared, resume=True, report=quiet)
    with pytest.raises(UsageError, match="--preset does not go with --init-from"):
        train(
            str(folk),
            tmp_path / "no",
            TrainConfig(preset="gpt2"),
            prepared,
            given=frozenset(["preset"]),
            init_from=str(run),
        )
    with pytest.raises(UsageError, match="--preset huge is unknown; expected one of nano, music-tiny"):
        train(str(shards), tmp_path / "no", TrainConfig(preset="huge"), prepared, report=quiet)
    other = PrepareConfig(tokenizer="tsd", transpositions=1)
    prepare(folk, tmp_path / "tsd", other, report=quiet)
    with pytest.raises(ShardsError, match="was prepared with another tokenizer"):
        train(str(tmp_path / "tsd"), tmp_path / "no", config, prepared, init_from=str(run), report=quiet)


def test_a_run_that_is_older_than_an_option_goes_on_without_it_and_says_so(
    run: Path, folk: Path, tmp_path: Path
) -> None:
    older, later = tmp_path / "older", tmp_path / "later"
    for copy in (older, later):
        shutil.copytree(run, copy)
    record = json.loads((run / "run.json").read_text())
    later_record = record | {"prepare": record["prepare"] | {"unheard_of": 1}}
    (later / "run.json").write_text(json.dumps(later_record))
    for name in ("styles", "controls", "infill"):
        del record["prepare"][name]
    (older / "run.json").write_text(json.dumps(record))
    config, again = TrainConfig(), {"resume": True, "report": quiet}
    for name, value in (("styles", True), ("controls", True), ("infill", 0.5)):
        with pytest.raises(UsageError, match=rf"--{name} {value} differs from (False|0.0), with which this run began"):
            train(str(folk), older, config, PrepareConfig(**{name: value}), given=frozenset([name]), **again)
    assert train(str(folk), older, config, PrepareConfig(), **again) == older / "best"
    with pytest.raises(CheckpointError, match=r"run.json was written by another version: .*unheard_of"):
        train(str(folk), later, config, PrepareConfig(), given=frozenset(["steps"]), **again)


def test_a_loss_that_is_not_finite_stops_the_run(shards: Path, tmp_path: Path) -> None:
    config = TrainConfig(steps=9, batch_size=2, n_positions=64, learning_rate=1e30, grad_clip=1e30, checkpoint_every=1)
    with pytest.raises(MusicGPTError) as caught:
        train(str(shards), tmp_path / "run", config, PrepareConfig(), report=quiet)
    said = str(caught.value)
    assert re.search(r"^the (validation )?loss (of|behind) step \d.* is not finite; training documents .*\[\d", said)
    assert "no checkpoint was written yet" in said
    assert not checkpoints(tmp_path / "run")


def test_a_resumed_run_keeps_its_data_whatever_became_of_the_corpus(folk: Path, tmp_path: Path) -> None:
    corpus, run = tmp_path / "corpus", tmp_path / "run"
    shutil.copytree(folk, corpus)
    command = f"train {corpus} --out {run} {SMALL} --transpositions 1 --vocab-size 1500"
    main(f"{command} --steps 2".split())
    before = (run / "shards" / "train.ids").read_bytes(), (run / "best" / "tokenizer.json").read_bytes()
    for path in sorted(corpus.iterdir())[:20]:
        path.unlink()
    main(f"{command} --steps 4 --resume".split())
    assert before == ((run / "shards" / "train.ids").read_bytes(), (run / "best" / "tokenizer.json").read_bytes())
    with pytest.raises(UsageError, match=r"was begun on .*, not on"):
        train(str(folk), run, TrainConfig(), PrepareConfig(), resume=True, report=quiet)


def test_a_mistake_costs_nothing_of_an_older_run(run: Path, folk: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    names = sorted(path.relative_to(copy) for path in copy.rglob("*"))
    for corpus, config in (
        ("nowhere", TrainConfig()),
        (str(folk), TrainConfig(preset="no")),
        (str(folk), TrainConfig(device="no")),
    ):
        with pytest.raises(MusicGPTError):
            train(corpus, copy, config, PrepareConfig(), force=True, report=quiet)
    assert sorted(path.relative_to(copy) for path in copy.rglob("*")) == names
    other = tmp_path / "run.old"
    other.mkdir()
    (other / "mine.txt").touch()
    main(f"generate {copy} --bars 1 -o {tmp_path / 'a.mid'}".split())
    assert (other / "mine.txt").exists()


def test_a_run_inside_its_corpus_is_refused(folk: Path, tmp_path: Path) -> None:
    shutil.copytree(folk, tmp_path / "corpus")
    with pytest.raises(UsageError, match="is inside the corpus"):
        train(str(tmp_path / "corpus"), tmp_path / "corpus" / "run", TrainConfig(), PrepareConfig(), report=quiet)


def test_a_fine_tuned_run_resumes_without_what_it_began_with(run: Path, folk: Path, tmp_path: Path) -> None:
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    shutil.copytree(run / "best", base)
    command = f"train {folk} --out {tuned} --batch-size 2 --checkpoint-every 2 --transpositions 1"
    main(f"{command} --init-from {base} --steps 2".split())
    assert json.loads((tuned / "run.json").read_text())["train"]["n_positions"] == 128
    shutil.rmtree(base)
    main(f"{command} --steps 4 --resume".split())
    assert len(rows(tuned)) == 4


def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_so(shards: Path, tmp_path: Path) -> None:
    """A limit on the size of files, in the training's own process: too small for the optimizer's state."""
    run = tmp_path / "run"
    command = f"train {shards} --out {run} {SMALL} --optimizer adamw".split()  # whose state is twice the weights
    main([*command, "--steps", "2"])
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))\n"
        "from musicgpt.cli import main; main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--steps", "6", "--resume"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    said = (
        r"^musicgpt: error: cannot write a checkpoint: .* the last good checkpoint is .*/checkpoints/000002: make room"
    )
    assert re.search(said, done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert [path.name for path in checkpoints(run)] == ["000002"]
    assert load_model(checkpoints(run)[0])
    assert list(run.rglob("*.tmp*")) == []
    main([*command, "--steps", "4", "--resume"])
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4]


def test_tensorboard_reads_what_is_written_for_it(shards: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main(f"train {shards} --out {tmp_path / 'run'} {SMALL} --steps 4 --tensorboard".split())
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [round(event.value, 4) for event in events.Scalars("loss")] == [
        round(x, 4) for x in losses(tmp_path / "run")
    ]
    assert [event.step for event in events.Scalars("val_loss")] == [2, 4]


def test_the_newest_checkpoints_are_kept_and_a_torn_one_is_never_taken_for_whole(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = f"train {shards} --out {run} {SMALL} --keep-checkpoints 3 --steps 8".split()
    main(command)
    assert [path.name for path in checkpoints(run)] == ["000008", "000006", "000004"]
    made = losses(run)
    torn, altered, whole = checkpoints(run)
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:-1])
    weights = bytearray((altered / "optimizer.safetensors").read_bytes())
    weights[-1] ^= 1
    (altered / "optimizer.safetensors").write_bytes(weights)
    main([*command, "--resume"])
    said = capsys.readouterr().err
    assert f"{torn} is not whole (model.safetensors is missing, cut short or altered): going back" in said
    assert "resuming" in said
    assert "behind step 4" in said
    assert losses(run) == made
    for path in checkpoints(run):
        (path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole; begin again with --force"):
        train(str(shards), run, TrainConfig(), PrepareConfig(), resume=True, report=quiet)
    assert whole.is_dir()


def test_two_runs_never_write_into_one_directory(shards: Path, tmp_path: Path) -> None:
    command = f"train {shards} --out {tmp_path / 'run'} {SMALL} --steps 5000"
    child = started(command)
    for how in ("--resume", "--force"):
        second = subprocess.run(
            [sys.executable, "-m", "musicgpt", *command.split(), how], capture_output=True, text=True, check=False
        )
        assert second.returncode == 1
        said = rf"musicgpt: error: .*/run is being written by another process \(pid {child.pid}\); wait for it\n"
        assert re.fullmatch(said, second.stderr)
    assert child.poll() is None
    child.kill()  # and nothing is left of its lock
    child.communicate()
    main([*command.split()[:-1], str(len(losses(tmp_path / "run")) + 1), "--resume"])


def test_a_run_older_than_the_choice_of_an_optimizer_goes_on_with_adamw(shards: Path, tmp_path: Path) -> None:
    for name in NAMES:
        main(f"train {shards} --out {tmp_path / name} {SMALL} --steps 4 --optimizer adamw".split())
    run = tmp_path / "parts"
    shutil.rmtree(run / "checkpoints" / "000004")
    record = json.loads((run / "run.json").read_text())
    del record["train"]["optimizer"]
    (run / "run.json").write_text(json.dumps(record))
    command = f"train {shards} --out {run} {SMALL} --steps 4 --resume".split()
    with pytest.raises(SystemExit):
        main([*command, "--optimizer", "muon"])
    main(command)
    assert losses(run) == losses(tmp_path / "whole")
    assert json.loads((run / "run.json").read_text())["train"]["optimizer"] == "adamw"


def test_activations_worked_out_again_change_nothing(shards: Path, tmp_path: Path) -> None:
    for name in ("kept", "again"):
        extra = ["--recompute"] if name == "again" else []
        main([*f"train {shards} --out {tmp_path / name} {SMALL} --steps 3 --dropout 0.2".split(), *extra])
    assert losses(tmp_path / "kept") == losses(tmp_path / "again")


def test_a_checkpoint_that_was_passed_over_is_not_counted_among_those_to_keep(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = f"train {shards} --out {run} {SMALL}".split()
    main([*command, "--steps", "4"])
    torn = checkpoints(run)[0]
    (torn / "config.json").write_text("{}")
    (checkpoints(run)[1] / ".DS_Store").touch()  # which harms nobody
    (run / "checkpoints" / "000002-mine").mkdir()
    main([*command, "--steps", "3", "--resume", "--keep-checkpoints", "1"])
    assert [path.name for path in checkpoints(run)] == ["000003"]
    main([*command, "--steps", "4", "--resume"])
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4]


def test_a_run_goes_on_with_its_own_data_only(folk: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "shards", tmp_path / "run"
    prepare(folk, data, PrepareConfig(transpositions=1), report=quiet)
    command = f"train {data} --out {run} {SMALL} --steps 2".split()
    main(command)
    prepare(folk, data, PrepareConfig(transpositions=2), report=quiet)
    with pytest.raises(ShardsError, match=r"was prepared anew since .* was begun"):
        train(str(data), run, TrainConfig(), PrepareConfig(), resume=True, report=quiet)
    with pytest.raises(UsageError, match=r"--tokenizer does not go with .*shards, which is prepared already"):
        train(
            str(data),
            tmp_path / "other",
            TrainConfig(),
            PrepareConfig(tokenizer="tsd"),
            given=frozenset(["tokenizer"]),
            report=quiet,
        )
    (run / "run.json").unlink()
    for resume in (True, False):
        with pytest.raises(UsageError, match=r"holds a run: its run.json is gone, choose another --out"):
            train(str(data), run, TrainConfig(), PrepareConfig(), resume=resume, report=quiet)


def test_two_signals_at_once_are_one(shards: Path, tmp_path: Path) -> None:
    """As a cluster sends them: its scheduler to all, and torchrun to its own."""
    child = started(f"train {shards} --out {tmp_path / 'run'} {SMALL} --checkpoint-every 5000 --steps 5000")
    for _ in range(3):
        child.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 0, said
    assert len(checkpoints(tmp_path / "run")) == 1
