"""The public face: load, generate, save."""

from __future__ import annotations

from pathlib import Path

import pytest
import symusic

import musicgpt
from musicgpt.errors import InputError, UsageError


@pytest.fixture(scope="module")
def model(run: Path) -> musicgpt.LanguageModel:
    return musicgpt.load(run)


def test_a_piece_continues_its_prompt(model: musicgpt.LanguageModel, folk: Path, tmp_path: Path) -> None:
    prompt = model.prompt_ids(folk / "003.mid")[:60]
    piece = model.generate(prompt=prompt, max_new_tokens=80, seed=3)
    assert piece.ids[:60] == prompt
    assert len(piece.new_ids) <= 80
    assert isinstance(piece.document, symusic.core.ScoreTick)
    piece.save(tmp_path / "out.mid")
    assert symusic.Score(tmp_path / "out.mid").note_num() == piece.document.note_num()
    assert model.generate(folk / "003.mid", prompt_tokens=60, max_new_tokens=80, seed=3).ids == piece.ids
    alone = model.generate(prompt=prompt, max_new_tokens=80, seed=3, include_prompt=False)
    assert alone.ids == piece.new_ids


def test_a_path_and_its_ids_are_the_same_prompt(
    model: musicgpt.LanguageModel, tunes: list[symusic.Score], tmp_path: Path
) -> None:
    short = tunes[0].copy()
    short.tracks[0].notes = short.tracks[0].notes[:12]
    path = tmp_path / "short.mid"
    path.write_bytes(short.dumps_midi())
    ids = model.tokenizer.encode(short)
    assert model.generate(path, max_new_tokens=20).ids == model.generate(ids, max_new_tokens=20).ids


def test_seeds_decide_and_samples_are_independent_of_their_number(model: musicgpt.LanguageModel) -> None:
    first = model.generate_many(3, max_new_tokens=40, seed=1)
    assert [piece.ids for piece in model.generate_many(2, max_new_tokens=40, seed=1)] == [p.ids for p in first[:2]]
    assert model.generate(max_new_tokens=40, seed=2).ids != first[0].ids


def test_music_longer_than_the_context_goes_on(model: musicgpt.LanguageModel) -> None:
    piece = model.generate(max_new_tokens=400, temperature=0)
    assert len(piece.new_ids) == 400 or piece.new_ids[-1] == model.tokenizer.eos_id
    hot = model.generate(max_new_tokens=400, temperature=1.5, top_k=None, seed=5)
    assert hot.new_ids


def test_what_cannot_be_asked_is_refused(model: musicgpt.LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"the prompt is 500 ids long and the model's context holds 127.*--prompt-tokens 64"
    ):
        model.generate(prompt=[5] * 500)
    with pytest.raises(InputError, match="there is no file"):
        model.generate(prompt=tmp_path / "missing.mid")
    for wrong in ({"max_new_tokens": 0}, {"seed": -1}, {"prompt_tokens": 0}):
        with pytest.raises(UsageError, match="expected at least"):
            model.generate(**wrong)
    for n in (0, 10**8):
        with pytest.raises(UsageError, match=f"num_samples {n}: expected at least 1, at most 1,024"):
            model.generate_many(n)
    with pytest.raises(UsageError, match="the prompt has the id 1000000; expected 0 to"):
        model.generate(prompt=[10**6])
    with pytest.raises(UsageError, match="top_k is 0"):
        model.generate(top_k=0)
    with pytest.raises(TypeError, match="top_n"):
        model.generate(top_n=3)


def test_public_names_are_the_ones_listed() -> None:
    assert musicgpt.__all__ == sorted(musicgpt.__all__)
    modules = {path.stem for path in Path(musicgpt.__file__).parent.glob("*.py")}
    for name in musicgpt.__all__:
        assert getattr(musicgpt, name)
        assert name not in modules
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = musicgpt.nonsense
