"""Styles: the folders of a corpus as marks behind BOS, from `prepare` through windows to what a model is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from replay import replay
from symusic.core import ScoreTick
from test_infill import a_song

from musicgpt import midi
from musicgpt.batches import Batches
from musicgpt.checkpoint import save_model
from musicgpt.cli import main
from musicgpt.compose import LanguageModel, load
from musicgpt.config import PrepareConfig
from musicgpt.corpus import style_of, styles_of
from musicgpt.engine import TorchEngine
from musicgpt.errors import TokenizerError, UsageError
from musicgpt.files import read_json
from musicgpt.marks import FILL, LONGEST_STYLE, STYLE, SUFFIX, TRACKS, style_named
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.model import GPT, GPTConfig, KVCache
from musicgpt.prepare import prepare
from musicgpt.shards import PARTS, Shards
from musicgpt.tokenizer import load_tokenizer

STYLES = ["marches", "slow-airs"]
CONFIG = PrepareConfig(styles=True, transpositions=2, infill=0.5, infill_ids=192, workers=1)


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tunes: list[ScoreTick]) -> Path:
    """120 tunes in two folders, one of them with a folder in it, and at the top."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "Slow_Airs" / "Marches").mkdir(parents=True)
    (folder / "Marches").mkdir()
    (folder / "words").mkdir()
    (folder / "words" / "readme.txt").write_text("no style")
    places = (folder / "Marches", folder / "Slow_Airs", folder / "Slow_Airs" / "Marches")
    for i, score in enumerate(tunes[:120]):
        midi.write_midi(score, (folder if i >= 110 else places[i % 3]) / f"{i:03d}.mid")
    return folder


@pytest.fixture(scope="module")
def shards(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return prepare(corpus, tmp_path_factory.mktemp("styled") / "shards", CONFIG, report=quiet)


def tokenizer_of(shards: Shards) -> MidiTokenizer:
    tokenizer = load_tokenizer(shards.directory)
    assert isinstance(tokenizer, MidiTokenizer)
    return tokenizer


def documents(shards: Shards, split: str) -> list[list[list[int]]]:
    """Of each document its sequences: the piece in its keys."""
    part = shards.split(split)
    return [
        [part.sequence(n).tolist() for n in range(*part.documents[i : i + 2].tolist())] for i in range(part.n_documents)
    ]


# the corpus


def test_folders_of_the_first_level_are_styles(corpus: Path) -> None:
    assert styles_of(corpus) == STYLES
    names = ["Slow_Airs/Marches/1.mid", "Marches/1.mid", "1.mid", "\udcff x!/1.mid", "Hû/1.mid", f"{'a' * 90}/1.mid"]
    assert [style_of(name) for name in names] == ["slow-airs", "marches", "", "--x-", "hû", "a" * LONGEST_STYLE]
    assert style_named("String Quartets") == "string-quartets"


def test_folders_that_cannot_be_styles_are_refused(tmp_path: Path) -> None:
    cases = [
        (["1.mid", "words/a.txt"], "has no folders with music in them"),
        (
            ["slow airs/1.mid", "Slow_Airs/1.mid"],
            "the folders Slow_Airs and slow airs would both be the style slow-airs",
        ),
        (
            [f"{n}/1.mid" for n in range(65)],
            "has 65 folders with music in them; expected one for each style, at most 64",
        ),
    ]
    for i, (names, words) in enumerate(cases):
        for name in names:
            path = tmp_path / str(i) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        with pytest.raises(UsageError, match=words):
            prepare(tmp_path / str(i), tmp_path / "out", CONFIG, report=quiet)
    assert not (tmp_path / "out").exists()


# shards


def test_most_training_documents_say_the_style_of_their_folder(corpus: Path, shards: Shards, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(shards)
    assert sorted(tokenizer.styles) == STYLES
    bos, fill, marks = tokenizer.bos_id, tokenizer.mark(SUFFIX), set(tokenizer.styles.values())
    # the same without styles, and of each piece where it comes from
    config = PrepareConfig(transpositions=2, tokenizer=str(shards.directory))
    plain = prepare(corpus, tmp_path / "plain", config, report=quiet)
    style = {}
    for path in corpus.rglob("*.mid"):
        ids = tokenizer.encode(midi.read_scores(path)[0][0])
        style[tuple(ids)] = tokenizer.styles.get(style_of(path.relative_to(corpus).as_posix()))
    pieces, exercises = [], []
    for sequences in documents(shards, "train"):
        (exercises if fill in sequences[0][1:3] else pieces).append(sequences)
    assert len(exercises) > 20
    said, silent = dict.fromkeys(marks, 0), dict.fromkeys(marks, 0)
    for sequences, expected in zip(pieces, documents(plain, "train"), strict=True):
        of_folder = style[tuple(expected[0][1:-1])]
        begin = sequences[0][1:2] if sequences[0][1] in marks else []
        assert begin in ([of_folder], [])
        assert sequences == [[bos, *begin, *ids[1:]] for ids in expected]
        if of_folder is not None:
            (said if begin else silent)[of_folder] += 1
    assert 0.65 < sum(said.values()) / (sum(said.values()) + sum(silent.values())) < 0.9
    assert min(said.values()) > 20 < sum(silent.values())
    assert {name: said[id] + silent[id] for name, id in tokenizer.styles.items()} == shards.manifest["styles"]
    for split in ("val", "test"):
        assert documents(shards, split) == documents(plain, split)
    # exercises in filling in belong to the piece before them
    styled = 0
    for sequences in exercises:
        begins = {tuple(ids[: ids.index(fill)]) for ids in sequences}
        assert begins in ({(bos,)}, *({(bos, id)} for id in marks))
        assert max(map(len, sequences)) <= 192
        assert all(marks.isdisjoint(ids[2:]) for ids in sequences)
        styled += begins != {(bos,)}
    assert 0.6 < styled / len(exercises) < 0.95


def test_styles_do_not_depend_on_the_workers(
    corpus: Path, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgpt.prepare.FILES_WORTH_A_PROCESS", 8)
    prepare(corpus, tmp_path / "two", PrepareConfig(**{**vars(CONFIG), "workers": 2}), report=quiet)
    for name in [f"{split}.{part}" for split in ("train", "val", "test") for part in PARTS] + ["tokenizer.json"]:
        assert (tmp_path / "two" / name).read_bytes() == (shards.directory / name).read_bytes()
    said: list[str] = []
    prepare(corpus, shards.directory, CONFIG, report=said.append)
    assert said == [f"{shards.directory} was prepared before and nothing has changed"]


def test_batches_of_styles(shards: Shards) -> None:
    tokenizer = tokenizer_of(shards)
    marks, fill = set(tokenizer.styles.values()), tokenizer.mark(SUFFIX)
    shard = shards.split("train")
    made = Batches(
        shard,
        window=tokenizer.window,
        batch_size=4,
        n_positions=96,
        seed=0,
        eos_id=tokenizer.eos_id,
        unscored=tokenizer.unscored,
        whole=tokenizer.whole,
    )
    inside = 0
    for step in range(40):
        ids, targets = made[step]
        assert marks.isdisjoint(targets.flatten().tolist())
        for row in ids.tolist():
            inside += row[0] in marks
            for i, id in enumerate(row):
                # at the head of a document, or of what is left of one; exercises are seen from their beginning on
                assert id not in marks or i == 0 or row[i - 1] == tokenizer.bos_id
                assert id != fill or tokenizer.bos_id in row[max(0, i - 2) : i]
    assert inside > 20


def test_a_tokenizer_without_the_style_of_a_folder_is_refused(
    corpus: Path, shards: Shards, tmp_path: Path, tunes: list[ScoreTick]
) -> None:
    (tmp_path / "other" / "reels").mkdir(parents=True)
    midi.write_midi(tunes[0], tmp_path / "other" / "reels" / "1.mid")
    (tmp_path / "none").mkdir()
    MidiTokenizer.new("remi").save(tmp_path / "none")
    for root, tokenizer, words in [
        (tmp_path / "other", str(shards.directory), r"has no style reels; it has marches, slow-airs"),
        (corpus, str(tmp_path / "none"), r"has no style marches; it has none"),
        (corpus, "bytes", r"the tokenizer bytes has no marks"),
        (corpus, "grid", r"the tokenizer grid has no marks"),
    ]:
        with pytest.raises(TokenizerError, match=words):
            prepare(root, tmp_path / "out", PrepareConfig(styles=True, tokenizer=tokenizer), report=quiet)


# windows


@pytest.fixture(scope="module", params=["remi", "remi+bpe", "tsd", "midilike+bpe", "structured"])
def tokenizer(request: pytest.FixtureRequest, tunes: list[ScoreTick]) -> MidiTokenizer:
    made = MidiTokenizer.new(request.param.removesuffix("+bpe"), [STYLE + style for style in STYLES])
    if request.param.endswith("+bpe"):
        made.learn([*tunes[:30], a_song()], made.vocab_size + 300)
    return made


def test_a_window_says_the_style_if_its_document_does(tokenizer: MidiTokenizer, tunes: list[ScoreTick]) -> None:
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    a, b = tokenizer.encode(tunes[0]), tokenizer.encode(a_song())
    style, other = tokenizer.styles.values()
    for opening in ([bos, style], [bos]):
        # between others, which have another style or none
        plain, styled = (
            [bos, *b, eos, bos, *a, eos, bos, *a, eos],
            [bos, other, *b, eos, *opening, *a, eos, bos, *a, eos],
        )
        begin = len(b) + 3
        for first in range(begin + 1, len(plain)):
            start, header = tokenizer.window(plain, first)
            inside = start < begin + len(a)
            moved = len(opening)
            expected = [*opening[1:], *header] if inside else header
            assert tokenizer.window(styled, first + moved) == (start + moved, expected)
    assert tokenizer.window([bos, style, *a], 1) in ((1, []), (2, [style]))


# asking


class Recorded(TorchEngine):
    """Keeps what it is given to read from the beginning on."""

    def __init__(self, model: GPT) -> None:
        super().__init__(model)
        self.read: list[list[int]] = []

    def prefill(self, ids: Sequence[int], cache: KVCache) -> Any:
        self.read.append(list(ids))
        return super().prefill(ids, cache)


def a_model(tokenizer: MidiTokenizer, n_positions: int = 192) -> tuple[LanguageModel, Recorded]:
    """Randomly initialised, the worst case."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=n_positions, n_embd=32, n_layer=1, n_head=2))
    engine = Recorded(model)
    return LanguageModel(model, tokenizer, engine), engine


def test_what_the_model_sees_begins_with_the_style_and_the_music_is_as_lawful(
    tokenizer: MidiTokenizer, tunes: list[ScoreTick]
) -> None:
    model, engine = a_model(tokenizer, 128)
    slides = 0
    for style in (None, *STYLES):
        opening = tokenizer.opening(style)
        for prompt in (None, tunes[3]):
            engine.read.clear()
            options = {
                "bars": 120,
                "top_k": None,
                "max_notes_per_beat": 1,
                "max_polyphony": 2,
                "time_signature": "4/4",
                "seed": 5,
            }
            piece = model.generate(prompt, prompt_bars=3, style=style, **options)
            seen, *later = engine.read
            assert seen[: len(opening)] == opening
            assert seen[len(opening) :] == (piece.prompt_ids + piece.new_ids)[: len(seen) - len(opening)]
            slides += len(later)
            for ids in later:
                assert set(ids) & tokenizer.unscored == set(opening[1:])
                assert ids[: len(opening) - 1] == opening[1:]
            assert tokenizer.unscored.isdisjoint(piece.prompt_ids + piece.new_ids)
            tokens = [t for id in piece.ids if id != tokenizer.eos_id for t in tokenizer.expansions[id]]
            replay(tokenizer.name, tokens, strict=prompt is None)
            assert piece.end is not None
            assert piece.end - piece.boundary == 480
            assert piece.provenance["settings"].get("style") == style
    assert slides > 2  # the context slid


def test_the_likelihood_is_of_what_was_chosen_behind_the_style(tokenizer: MidiTokenizer) -> None:
    model, _ = a_model(tokenizer, 512)
    stream = model.stream(style="marches", bars=2, max_polyphony=2)
    for _ in stream.steps():
        pass
    made = stream.piece().new_ids
    ids = torch.tensor([[*tokenizer.opening("marches"), *made]])
    with torch.inference_mode():
        table = model.model(ids)[0].log_softmax(dim=-1)
    mean = float(table[1:-1].gather(1, ids[0, 2:, None]).mean())
    assert stream.likelihood(0) == pytest.approx(mean, abs=1e-4)


def test_a_checkpoint_keeps_its_styles_and_makes_its_pieces_again(tokenizer: MidiTokenizer, tmp_path: Path) -> None:
    model, _ = a_model(tokenizer)
    save_model(tmp_path / "model", model.model, tokenizer)
    again = load(tmp_path / "model")
    assert again.midi_tokenizer.styles == tokenizer.styles
    piece = again.generate(style=" Slow Airs ", bars=3, max_polyphony=3, seed=1)
    piece.save(tmp_path / "a.mid")
    load(tmp_path / "model").replay(tmp_path / "a.mid").save(tmp_path / "b.mid")
    assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()
    assert piece.ids == again.generate(style="slow-airs", bars=3, max_polyphony=3, seed=1).ids
    assert piece.ids != again.generate(style="marches", bars=3, max_polyphony=3, seed=1).ids
    with pytest.raises(UsageError, match="--style polkas: this model has no such style; it has marches, slow-airs"):
        again.generate(style="polkas", bars=1)
    plain, _ = a_model(MidiTokenizer.new(tokenizer.name))
    with pytest.raises(UsageError, match="--style polkas: this model was trained without styles"):
        plain.infill(a_song(), "3", style="polkas")


@pytest.mark.parametrize("trained", [True, False])
def test_holes_are_filled_in_a_style(trained: bool) -> None:
    tokenizer = MidiTokenizer.new(
        "remi", [*((*FILL, *TRACKS) if trained else ()), *(STYLE + style for style in STYLES)]
    )
    song = a_song()
    for style in (None, *STYLES):
        model, engine = a_model(tokenizer, 256)
        opening = tokenizer.opening(style)
        (take,) = model.infill(song, "3-10", style=style, max_notes_per_beat=2)
        assert take.notes
        assert take.provenance["settings"].get("style") == style
        assert engine.read[0][: len(opening)] == opening
        assert len(engine.read) > 1
        for ids in engine.read:
            assert ids[0] == tokenizer.bos_id or [tokenizer.bos_id, *ids][: len(opening)] == opening
            assert set(ids) & set(tokenizer.styles.values()) == set(opening[1:])
            if trained:
                assert ids[: len(opening) + 1] == [*opening, tokenizer.mark(SUFFIX)]


# the commands


def test_from_a_folder_to_a_piece_of_a_style(
    corpus: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out.mid"
    main(f"train {shards.directory} --out {run} --preset music-tiny --n-positions 192 --steps 2 --batch-size 2".split())
    main(f"train {shards.directory} --out {run} --preset music-tiny --n-positions 192 --steps 3 --resume".split())
    for arguments in (
        f"generate {run} --style marches --bars 2 -o {out}",
        f"generate {run} --replay {out} --force -o {out}",
        f"infill {run} --piece {corpus / '119.mid'} --bars 2 --style slow-airs -o {tmp_path / 'in.mid'}",
        f"evaluate {run} {corpus} --json",
    ):
        main(arguments.split())
    capsys.readouterr()
    for path, found in ((run / "best", "tokenizer"), (shards.directory, "tokenizer")):
        main(f"inspect {path} --json".split())
        assert sorted(json.loads(capsys.readouterr().out)[found]["styles"]) == STYLES
    main(f"inspect {shards.directory}".split())
    assert "marches" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(f"generate {run} --style polkas -o {tmp_path / 'none.mid'}".split())
    assert "has no such style; it has marches, slow-airs" in capsys.readouterr().err
    # fine-tuning on other folders needs their styles; without styles any folder will do
    (tmp_path / "other").mkdir()
    (corpus / "Marches").rename(corpus / "Polkas")
    try:
        with pytest.raises(SystemExit):
            main(f"train {corpus} --out {tmp_path / 'tuned'} --init-from {run} --styles --steps 1".split())
        assert "has no style polkas; it has marches, slow-airs" in capsys.readouterr().err
    finally:
        (corpus / "Polkas").rename(corpus / "Marches")
    main(f"train {corpus} --out {tmp_path / 'tuned'} --init-from {run} --styles --transpositions 1 --steps 1".split())
    assert read_json(tmp_path / "tuned" / "shards" / "manifest.json")["styles"] == shards.manifest["styles"]


def test_marks_of_the_vocabulary_that_are_not_written_are_told(corpus: Path, shards: Shards, tmp_path: Path) -> None:
    told: list[str] = []
    for styles in (True, False):
        config = PrepareConfig(tokenizer=str(shards.directory), styles=styles, transpositions=1, workers=1)
        prepare(corpus, tmp_path / str(styles), config, report=told.append)
    assert [line for line in told if "not written" in line] == [
        "the vocabulary has marks that are not written without --styles: a model forgets what it does not see"
    ]
