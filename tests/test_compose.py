"""The public face: load, generate, stream, save, replay."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mido
import pytest
import symusic
import torch
from replay import read_back

import musicgpt
from musicgpt import midi
from musicgpt.cli import main
from musicgpt.errors import InputError, UsageError
from musicgpt.provenance import provenance_text, read_provenance
from musicgpt.state import Note


@pytest.fixture(scope="module")
def model(run: Path) -> musicgpt.LanguageModel:
    return musicgpt.load(run)


def bars_of(score: symusic.Score) -> float:
    """The length of a score in bars of its own (only) metre."""
    metre = score.time_signatures[0]
    return score.end() / score.ticks_per_quarter / (4 * metre.numerator / metre.denominator)


def test_a_piece_continues_its_prompt(model: musicgpt.LanguageModel, folk: Path, tmp_path: Path) -> None:
    piece = model.generate(folk / "003.mid", prompt_bars=4, bars=3, seed=3)
    given = model.prompt_ids(folk / "003.mid", prompt_bars=4)
    assert piece.ids[: len(given)] == given
    piece.save(tmp_path / "out.mid")
    written = symusic.Score(tmp_path / "out.mid")
    assert written.note_num() == piece.document.note_num()
    prompt = model.tokenizer.decode(given)
    line = round(piece.boundary * written.ticks_per_quarter)
    old = [(n.time, n.pitch, n.duration) for t in written.tracks for n in t.notes if n.time < line]
    assert sorted(old) == sorted((n.time, n.pitch, n.duration) for t in prompt.tracks for n in t.notes)
    assert {s.numerator for s in written.time_signatures} == {prompt.time_signatures[-1].numerator}
    assert len(written.tempos) == 1
    assert {t.program for t in written.tracks} == {t.program for t in prompt.tracks}
    assert piece.boundary % (prompt.time_signatures[-1].numerator * 4 / prompt.time_signatures[-1].denominator) == 0


def test_without_the_prompt_exactly_the_new_music_is_left(
    model: musicgpt.LanguageModel, folk: Path, tmp_path: Path
) -> None:
    options = {"prompt_bars": 3, "bars": 4, "seed": 5}
    whole = model.generate(folk / "003.mid", **options)
    alone = model.generate(folk / "003.mid", include_prompt=False, **options)
    assert alone.new_ids == whole.new_ids
    line = round(whole.boundary * whole.score.ticks_per_quarter)
    new = [
        (n.time - line, n.pitch, n.duration, n.velocity) for t in whole.score.tracks for n in t.notes if n.time >= line
    ]
    assert sorted(new) == sorted((n.time, n.pitch, n.duration, n.velocity) for t in alone.score.tracks for n in t.notes)
    assert alone.score.tempos[0].time == 0
    assert alone.score.tempos[0].qpm == whole.score.tempos[0].qpm
    assert alone.score.time_signatures[0].numerator == whole.score.time_signatures[0].numerator
    alone.save(tmp_path / "alone.mid")
    file = mido.MidiFile(tmp_path / "alone.mid")
    metre = alone.score.time_signatures[0]
    bar = 4 * file.ticks_per_beat * metre.numerator // metre.denominator
    assert {sum(message.time for message in track) for track in file.tracks} == {4 * bar}
    read = read_back(tmp_path / "alone.mid")
    assert read["symusic"] == read["mido"] == read["pretty_midi"]


def test_a_path_its_ids_and_its_score_are_the_same_prompt(
    model: musicgpt.LanguageModel, tunes: list[symusic.Score], tmp_path: Path
) -> None:
    short = tunes[0].copy()
    short.tracks[0].notes = short.tracks[0].notes[:12]
    path = tmp_path / "short.mid"
    path.write_bytes(short.dumps_midi())
    ids = model.tokenizer.encode(short)
    made = [model.generate(prompt, bars=1).ids for prompt in (path, str(path), ids, short)]
    assert made[1:] == made[:1] * 3


def test_seeds_decide_and_samples_are_independent_of_their_number(model: musicgpt.LanguageModel) -> None:
    first = model.generate_many(3, max_new_tokens=60, seed=1)
    assert [piece.ids for piece in model.generate_many(2, max_new_tokens=60, seed=1)] == [p.ids for p in first[:2]]
    assert model.generate(max_new_tokens=60, seed=2).ids != first[0].ids


@pytest.mark.parametrize("samples", [1, 3])
def test_music_many_times_the_context_has_its_length(
    model: musicgpt.LanguageModel, samples: int, tmp_path: Path
) -> None:
    """The file has every bar; where its last note is, is the model's choice, and differs from CPU to CPU."""
    assert model.model.config.n_positions == 128
    for piece in model.generate_many(samples, bars=60, time_signature="4/4", temperature=1.3, top_k=None, seed=5):
        assert len(piece.ids) > 500
        assert piece.end == 60 * 4
        assert 30 < bars_of(piece.score) <= 60
        piece.save(tmp_path / "long.mid")
        file = mido.MidiFile(tmp_path / "long.mid")
        assert {sum(m.time for m in track) for track in file.tracks} == {60 * 4 * file.ticks_per_beat}


def test_a_prompt_longer_than_the_context_goes_on(model: musicgpt.LanguageModel, tunes: list[symusic.Score]) -> None:
    longest = max(tunes, key=lambda tune: tune.note_num())
    prompt = model.tokenizer.encode(longest)
    assert len(prompt) > 300
    piece = model.generate(longest, bars=2, seed=1)
    assert piece.ids[: len(prompt)] == prompt
    assert piece.new_ids


def test_max_new_tokens_is_kept_and_every_note_is_complete(model: musicgpt.LanguageModel) -> None:
    for n in (20, 33, 61, 100):
        piece = model.generate(max_new_tokens=n, seed=n)
        assert 0 < len(piece.new_ids) <= n
        names = [token for id in piece.ids for token in model.tokenizer.expansions[id] if token != "EOS_None"]
        assert names[-1].startswith("Duration")
        assert sum(name.startswith("Pitch") for name in names) == piece.score.note_num() > 0


def test_a_stream_yields_the_notes_of_the_piece(model: musicgpt.LanguageModel, folk: Path, tmp_path: Path) -> None:
    options = {"prompt_bars": 2, "bars": 6, "seed": 9, "temperature": 1.2}
    stream = model.stream(folk / "003.mid", **options)
    notes = list(stream)
    piece = stream.piece()
    assert piece.ids == model.generate(folk / "003.mid", **options).ids
    score = model.generate(folk / "003.mid", include_prompt=False, **options).score
    seconds = score.to(symusic.TimeUnit.second)

    def rows(of: symusic.Score, unit: float) -> list[tuple[float, ...]]:
        return sorted(
            (n.time / unit, n.duration / unit, n.pitch, n.velocity, 128 if t.is_drum else t.program)
            for t in of.tracks
            for n in t.notes
        )

    by_beats = sorted((n.onset_beats, n.duration_beats, n.pitch, n.velocity, n.program) for n in notes)
    assert by_beats == rows(score, score.ticks_per_quarter)
    by_seconds = sorted((n.onset_seconds, n.duration_seconds, n.pitch, n.velocity, n.program) for n in notes)
    for ours, theirs in zip(by_seconds, rows(seconds, 1), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert {note.track for note in notes} == set(range(len(piece.score.tracks)))


def test_a_stream_that_is_left_early_is_closed(model: musicgpt.LanguageModel) -> None:
    stream = model.stream(bars=50, seed=2)
    seen = [note for note, _ in zip(stream, range(5), strict=False)]
    assert all(isinstance(note, Note) for note in seen)
    assert 5 <= stream.piece().score.note_num() < 20


def test_the_same_command_writes_the_same_bytes_and_a_file_replays_itself(
    run: Path, folk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In processes of their own: nothing may depend on what a process has done before."""
    ask = (
        f"{sys.executable} -m musicgpt generate {run} --prompt {folk / '003.mid'} --prompt-bars 2 --bars 3 --seed 11 "
        f"--num-samples 2 --best-of 2 --scale 'D major' --max-polyphony 2 -o"
    )
    for name in ("a.mid", "b.mid"):
        subprocess.run(f"{ask} {tmp_path / name}", shell=True, check=True, capture_output=True)
    first = (tmp_path / "a-2.mid").read_bytes()
    assert first == (tmp_path / "b-2.mid").read_bytes() != (tmp_path / "a-1.mid").read_bytes()
    main(f"generate {run} --replay {tmp_path / 'a-2.mid'} -o {tmp_path / 'again.mid'}".split())
    assert (tmp_path / "again.mid").read_bytes() == first
    assert str(tmp_path).encode() not in first
    made = read_provenance(tmp_path / "a-2.mid")
    assert made is not None
    assert (made["seed"], made["sample"], made["num_samples"]) == (11, 2, 2)
    assert made["settings"]["scale"] == "D major"
    capsys.readouterr()
    main(["inspect", str(tmp_path / "a-2.mid")])
    shown = capsys.readouterr().out
    assert "seed 11" in shown
    assert "scale D major" in shown
    main(["inspect", str(tmp_path / "a-2.mid"), "--json"])
    assert json.loads(capsys.readouterr().out)["provenance"] == made


def test_weights_in_int8_are_asked_for_and_written_down(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(f"generate {run} --weights int8 --bars 2 -o {tmp_path / 'a.mid'}".split())
    assert musicgpt.load(run, weights="int8").weights == "int8"
    with pytest.raises(SystemExit):
        main(f"generate {run} --replay {tmp_path / 'a.mid'} -o {tmp_path / 'b.mid'}".split())
    assert "was made with --weights int8; these are float32" in capsys.readouterr().err
    main(f"generate {run} --weights int8 --replay {tmp_path / 'a.mid'} -o {tmp_path / 'b.mid'}".split())
    assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()
    with pytest.raises(UsageError, match="weights 'int4': expected one of float32, bfloat16, int8"):
        musicgpt.load(run, weights="int4")


def test_a_file_of_another_model_is_not_replayed(
    model: musicgpt.LanguageModel, run: Path, folk: Path, tmp_path: Path
) -> None:
    piece = model.generate(bars=1)
    piece.save(tmp_path / "a.mid")
    other = musicgpt.load(run)
    with torch.no_grad():
        other.model.ln_f.bias[0] += 1e-6
    with pytest.raises(InputError, match=r"was made by the checkpoint [0-9a-f]{12}…; this one is [0-9a-f]{12}…"):
        other.replay(tmp_path / "a.mid")
    with pytest.raises(InputError, match="does not say how it was made"):
        model.replay(folk / "003.mid")
    broken = {**piece.provenance, "settings": {"nonsense": 1}}
    midi.write_midi(piece.score, tmp_path / "b.mid", text=provenance_text(broken))
    with pytest.raises(InputError, match="in a way that this version cannot read"):
        model.replay(tmp_path / "b.mid")


def test_the_best_of_several_is_the_likeliest(model: musicgpt.LanguageModel) -> None:
    pieces = model.generate_many(6, bars=2, seed=4)
    best = model.generate(bars=2, seed=4, best_of=6)
    assert best.ids in [piece.ids for piece in pieces]

    def score(piece: musicgpt.Piece) -> float:
        from musicgpt.generate import log_likelihood

        bos = [model.tokenizer.bos_id]
        return log_likelihood(model.model, bos + piece.new_ids, 1)

    assert score(best) == max(score(piece) for piece in pieces)


def test_notes_go_to_the_terminal_as_they_come(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"generate {run} --prompt jig --bars 2 --stream -o {tmp_path / 'out.mid'}".split())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    main(f"generate {run} --prompt jig --bars 2 --no-include-prompt -o {tmp_path / 'new.mid'}".split())
    assert len(lines) == symusic.Score(tmp_path / "new.mid").note_num()
    assert set(lines[0]) == set(Note.__dataclass_fields__)
    assert (tmp_path / "out.mid").exists()


def test_what_cannot_be_asked_is_refused(model: musicgpt.LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        model.generate(prompt=tmp_path / "missing.mid")
    for wrong in ({"max_new_tokens": 0}, {"seed": -1}, {"prompt_tokens": 0}, {"bars": 0}, {"best_of": 0}):
        with pytest.raises(UsageError, match="expected at least"):
            model.generate(**wrong)
    for n in (0, 10**8):
        with pytest.raises(UsageError, match=f"num_samples {n}: expected at least 1, at most 1,024"):
            model.generate_many(n)
    with pytest.raises(UsageError, match="the prompt has the id 1000000; expected 0 to"):
        model.generate(prompt=[10**6])
    with pytest.raises(
        InputError, match=r"the prompt is [\d,]+ ids long; expected at most 100,000: .*--prompt-bars 16"
    ):
        model.generate(prompt=model.prompt_ids("jig") * 2000)
    with pytest.raises(UsageError, match="top_k is 0"):
        model.generate(top_k=0)
    for make in (model.generate, model.stream):
        with pytest.raises(TypeError, match=r"there is no option top_n; expected one of bars, .*best_of .*, top_k, "):
            make(top_n=3)


def test_public_names_are_the_ones_listed() -> None:
    assert musicgpt.__all__ == sorted(musicgpt.__all__)
    modules = {path.stem for path in Path(musicgpt.__file__).parent.glob("*.py")}
    for name in musicgpt.__all__:
        assert getattr(musicgpt, name)
        assert name not in modules
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = musicgpt.nonsense
