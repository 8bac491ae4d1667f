"""Laws of the grid: scores and ids both ways, on chorales and on anything else."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import symusic
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from musicgpt.cli import main
from musicgpt.compose import LanguageModel
from musicgpt.errors import InputError, TokenizerError, UsageError
from musicgpt.grid_tokenizer import HIGHEST, IDS_PER_BAR, LOWEST, SILENCE, VOICES, GridTokenizer
from musicgpt.midi import read_scores
from musicgpt.model import GPT, GPTConfig
from musicgpt.tokenizer import load_tokenizer, new_tokenizer

TOKENIZER = GridTokenizer()

grids = arrays.arrays(
    np.int64,
    st.tuples(st.integers(0, 40), st.just(len(VOICES))),
    elements=st.one_of(st.just(SILENCE), st.integers(LOWEST, HIGHEST)),
)


@pytest.fixture(scope="module")
def chorales(shared: Path) -> list[np.ndarray]:
    file = shared / "jsb" / "Jsb16thSeparated.train-valid.json"
    return [np.array(chorale) for split in json.loads(file.read_text()).values() for chorale in split]


def test_a_chorale_comes_back_from_its_ids_its_score_and_its_file(chorales: list[np.ndarray], tmp_path: Path) -> None:
    for grid in chorales[::10]:
        ids = TOKENIZER.ids(grid)
        assert (TOKENIZER.grid(ids) == grid).all()
        score = TOKENIZER.decode(ids)
        assert not any(TOKENIZER.losses(score, ids).values())
        TOKENIZER.write(score, tmp_path / "chorale.mid")
        (again,), remarks = TOKENIZER.read(tmp_path / "chorale.mid")
        assert not remarks
        assert [track.name for track in again.tracks] == list(VOICES)
        sounding = len(grid) - int((grid[::-1] >= 0).any(axis=1).argmax())  # silence at the end is nothing in a file
        assert TOKENIZER.encode(again) == ids[: sounding * len(VOICES)]


@given(grid=grids)
def test_held_pitches_are_one_note(grid: np.ndarray) -> None:
    notes = sum(
        int((voice[0] >= 0) + ((voice[1:] >= 0) & (voice[1:] != voice[:-1])).sum()) for voice in grid.T if len(voice)
    )
    assert TOKENIZER.decode(TOKENIZER.ids(grid)).note_num() == notes


@given(grid=grids)
def test_encoding_settles_after_one_pass_and_emits_no_special_ids(grid: np.ndarray) -> None:
    def once(ids: list[int]) -> list[int]:
        return TOKENIZER.encode(TOKENIZER.decode(ids))

    ids = TOKENIZER.ids(grid)
    assert not {TOKENIZER.bos_id, TOKENIZER.eos_id} & set(ids)
    assert once(once(ids)) == once(ids)
    if (grid >= 0).any(axis=0).all():  # a voice that never sounds is none in a score
        assert once(ids) == ids[: len(once(ids))]
        assert not any(ids[len(once(ids)) :])


@settings(max_examples=60)
@given(ids=st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=200))
def test_any_ids_decode_to_a_score_that_can_be_written(ids: list[int]) -> None:
    score = TOKENIZER.decode(ids)
    assert symusic.Score.from_midi(score.dumps_midi()).note_num() == score.note_num()
    assert len(TOKENIZER.encode(score)) <= len(ids)


def test_any_music_encodes_and_what_is_lost_is_counted(corpora: list[Path]) -> None:
    for path in corpora:
        (score, *_), _ = read_scores(path)
        ids = TOKENIZER.encode(score)
        assert len(ids) % len(VOICES) == 0
        again = TOKENIZER.decode(ids)
        assert TOKENIZER.encode(again) == TOKENIZER.encode(TOKENIZER.decode(TOKENIZER.encode(again)))
        lost = TOKENIZER.losses(score, ids)
        drums = sum(track.note_num() for track in score.tracks if track.is_drum)
        assert drums <= lost["notes_lost"] <= score.note_num()
        assert len(TOKENIZER.changes(score, ids)) == sum(map(bool, lost.values()))


def test_pitches_out_of_range_keep_their_names() -> None:
    grid = np.array([[127, 82, 35, 0], [HIGHEST, LOWEST, SILENCE, 60]])
    moved = TOKENIZER.grid(TOKENIZER.ids(grid))
    assert moved.tolist() == [[79, 70, 47, 36], [HIGHEST, LOWEST, SILENCE, 60]]


def test_variants_are_all_transpositions_within_the_range(chorales: list[np.ndarray]) -> None:
    for grid in chorales[::40]:
        score = TOKENIZER.decode(TOKENIZER.ids(grid))
        shifts = [
            shift
            for shift in range(-127, 128)
            if all(LOWEST <= pitch + shift <= HIGHEST for pitch in grid[grid >= 0].tolist())
        ]
        assert list(TOKENIZER.shifts(grid)) == shifts
        found = [TOKENIZER.grid(TOKENIZER.encode(variant)) for variant in TOKENIZER.variants(score, 99)]
        assert (found[0] == TOKENIZER.grid(TOKENIZER.encode(score))).all()
        assert sorted(int(variant.max()) for variant in found) == [grid.max() + shift for shift in shifts]


def test_a_window_begins_with_the_id_before_a_bar_line(chorales: list[np.ndarray]) -> None:
    ids = [TOKENIZER.bos_id, *TOKENIZER.ids(chorales[0]), TOKENIZER.eos_id]
    for first in range(0, len(ids), 7):
        start, header = TOKENIZER.window(ids, first)
        assert header == []
        assert first <= start < len(ids)
        assert start % IDS_PER_BAR == 0 or len(ids) - first < IDS_PER_BAR


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    new_tokenizer("grid").save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), GridTokenizer)
    layout = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(layout | {"lowest": 21}))
    with pytest.raises(TokenizerError, match="another grid"):
        load_tokenizer(tmp_path)


def test_a_file_that_says_it_lasts_for_years_is_refused() -> None:
    score = symusic.Score(1)
    score.tracks.append(symusic.Track(notes=symusic.core.NoteTickList([symusic.Note(0, 2**30, 60, 80)])))
    with pytest.raises(InputError, match="sixteenths long"):
        TOKENIZER.encode(score)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    config = GPTConfig(vocab_size=TOKENIZER.vocab_size, n_positions=256, n_embd=32, n_layer=1, n_head=2)
    return LanguageModel(GPT(config), TOKENIZER)


@pytest.mark.parametrize("bars", [1, 9])
def test_a_model_of_it_gives_exactly_so_many_bars_behind_a_prompt(
    bars: int, model: LanguageModel, chorales: list[np.ndarray], tmp_path: Path
) -> None:
    prompt = TOKENIZER.decode(TOKENIZER.ids(chorales[0][:32]))
    piece = model.generate(prompt, bars=bars, seed=random.Random(bars).randrange(9))
    assert len(TOKENIZER.grid(piece.ids)) == 32 + 16 * bars
    assert (TOKENIZER.grid(piece.ids)[:32] == chorales[0][:32]).all()
    piece.save(tmp_path / "out.mid")
    assert model.replay(tmp_path / "out.mid").ids == piece.ids


def test_what_a_grid_cannot_do_is_said(model: LanguageModel) -> None:
    for options in ({"seconds": 3.0}, {"scale": "D minor"}, {"bars": 0}):
        with pytest.raises(UsageError):
            model.generate(**options)
    with pytest.raises(UsageError, match="whole piece"):
        next(iter(model.stream(bars=1)))


def test_the_commands_take_it(corpora: list[Path], tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for path in corpora:
        if "js_fakes" in path.parts:
            (files / path.name).symlink_to(path)
    train = f"train {files} --out {tmp_path / 'run'} --tokenizer grid --preset nano --n-positions 128 --steps 2"
    main([*train.split(), "--batch-size", "2", "--checkpoint-every", "1", "--transpositions", "2", "--workers", "1"])
    main(f"generate {tmp_path / 'run'} --bars 2 -o {tmp_path / 'out.mid'}".split())
    (score,), _ = read_scores(tmp_path / "out.mid")
    assert score.end() <= 8 * score.ticks_per_quarter
