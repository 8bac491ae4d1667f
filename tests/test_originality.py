"""What was copied is found with its bars and its name, in any key and tempo; what was not, is not."""

from __future__ import annotations

import json
import lzma
import random
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save
from symusic.core import NoteTick, NoteTickList, ScoreTick, TimeSignatureTick, TrackTick

import musicgpt
from musicgpt import midi
from musicgpt.cli import main
from musicgpt.compose import MOST_ATTEMPTS
from musicgpt.config import PrepareConfig
from musicgpt.errors import InputError, ShardsError, UsageError
from musicgpt.infill import New
from musicgpt.lines import lines_of
from musicgpt.originality import NAME, Index, compare_file, open_index
from musicgpt.prepare import prepare
from musicgpt.tokenizer import load_tokenizer

SIXTEENTH = 120


def line(pitches: Any, *, drums: bool = False) -> ScoreTick:
    """One voice in sixteenths at 480 ticks a quarter note, in 4/4."""
    score, track = ScoreTick(480), TrackTick("", 0, drums)
    track.notes = NoteTickList([NoteTick(SIXTEENTH * n, SIXTEENTH, int(p), 80) for n, p in enumerate(pitches)])
    score.time_signatures.append(TimeSignatureTick(0, 4, 4))
    score.tracks.append(track)
    return score


def changed(score: ScoreTick, change: Any) -> ScoreTick:
    """`change` gives time, duration and pitch of each note, which it gets with its number."""
    copy = score.copy()
    for track in copy.tracks:
        notes = [(*change(n, note), note.velocity) for n, note in enumerate(track.notes)]
        track.notes = NoteTickList([NoteTick(*note) for note in notes])
    return copy


def planted(source: ScoreTick, host: ScoreTick, first: int, bars: int, at: int) -> ScoreTick:
    """Bars of the source in the place of as many of the host, from its bar `at` on; both are in 4/4."""
    begin, end = ((first + n - 1) * 16 * SIXTEENTH for n in (0, bars))
    by = (at - first) * 16 * SIXTEENTH
    copy = host.copy()
    track, theirs = copy.tracks[0], source.tracks[0]
    kept = [note for note in track.notes if not begin <= note.time - by < end]
    new = [NoteTick(n.time + by, n.duration, n.pitch, n.velocity) for n in theirs.notes if begin <= n.time < end]
    track.notes = NoteTickList([*kept, *new])
    return copy


def walk(seed: int, n: int) -> ScoreTick:
    """A line that goes by chance, in steps and leaps, and stays where a voice does."""
    steps = np.random.default_rng(seed).integers(-5, 6, n)
    return line(60 + np.abs(np.cumsum(steps) % 48 - 24))


@pytest.fixture(scope="module")
def index(tunes: list[ScoreTick]) -> Index:
    """Of 150 tunes; the other thirty are held out."""
    return Index.of((f"aird/{n}.mid", score) for n, score in enumerate(tunes[:150]))


@pytest.fixture(scope="module")
def walks() -> Index:
    return Index.of((f"walk {seed}", walk(seed, 512)) for seed in range(20))


def test_a_training_piece_is_found_whole(index: Index, tunes: list[ScoreTick]) -> None:
    for n in range(0, 150, 10):
        found = index.compare(tunes[n])
        bars = (1, midi.last_bar(tunes[n]))
        longest = found.matches[0]
        assert (longest.piece, longest.bars, longest.piece_bars) == (f"aird/{n}.mid", bars, bars)
        assert (longest.transposition, longest.equal, longest.kind) == (0, 1.0, "exact")
        assert (found.share_copied, found.longest_bars) == (1.0, bars[1])


@pytest.mark.parametrize("semitones", [-12, -5, 1, 7])
@pytest.mark.parametrize("tempo", [0.5, 1, 2, 3])
def test_key_tempo_and_instrument_are_set_aside(
    index: Index, tunes: list[ScoreTick], semitones: int, tempo: float
) -> None:
    for n in (0, 70, 140):
        copy = changed(tunes[n], lambda _, note: (int(note.time * tempo), int(note.duration * tempo), note.pitch))
        moved = midi.transposed(copy, semitones)
        assert moved is not None
        moved.tracks[0].program = 40
        found = index.compare(moved)
        assert found.share_copied == 1
        assert (found.matches[0].piece, found.matches[0].transposition) == (f"aird/{n}.mid", semitones)
        assert found.matches[0].kind == "exact"


def test_near_copies_are_found_and_called_near(index: Index, tunes: list[ScoreTick]) -> None:
    chance = random.Random(1)

    def other_notes(n: int, note: NoteTick) -> tuple[int, int, int]:
        return note.time, note.duration, note.pitch + (chance.choice((-3, -2, -1, 1, 2, 3)) if n % 8 == 3 else 0)

    def dotted(n: int, note: NoteTick) -> tuple[int, int, int]:
        return note.time + (note.duration // 2 if n % 2 else 0), max(1, note.duration // 2), note.pitch

    def fewer(n: int, note: NoteTick) -> tuple[int, int, int]:
        return note.time if n % 16 else 10**6, note.duration, note.pitch

    for change in (other_notes, dotted, fewer):
        for n in range(0, 150, 15):
            found = index.compare(changed(tunes[n], change))
            assert found.share_copied > 0.6
            assert found.matches[0].piece == f"aird/{n}.mid"
            assert found.matches[0].kind == "near"
            assert 0.8 < found.matches[0].equal <= 1


@pytest.mark.parametrize("bars", [2, 4, 8, 16])
def test_a_planted_passage_is_found_with_its_bars_on_both_sides(walks: Index, bars: int) -> None:
    for seed in range(20):
        piece = planted(walk(seed, 512), walk(100 + seed, 512), 1 + seed % 12, bars, 9)
        match, *others = walks.compare(piece).matches
        assert not others
        assert match.piece == f"walk {seed}"
        assert match.notes >= 16 * bars
        # a neighbour may fit by chance
        assert abs(match.bars[0] - 9) <= 1
        assert abs(match.bars[1] - (8 + bars)) <= 1
        assert match.piece_bars[0] - match.bars[0] == 1 + seed % 12 - 9


def test_a_line_names_the_bars_of_the_longest_on_both_sides(walks: Index) -> None:
    found = walks.compare(planted(walk(3, 512), walk(103, 512), 4, 8, 9))
    (match,) = found.matches
    here, there = (f"{first}-{last}" for first, last in (match.bars, match.piece_bars))
    assert here != there
    assert found.in_line().endswith(f"the longest in bars {here}, as in bars {there} of walk 3")


def test_a_copy_beside_other_voices_is_found(walks: Index) -> None:
    piece = walk(7, 512)
    for program, seed in ((19, 200), (73, 201)):
        piece.tracks.append(walk(seed, 512).tracks[0])
        piece.tracks[-1].program = program
    found = walks.compare(piece)
    assert [(match.piece, match.bars) for match in found.matches] == [("walk 7", (1, 32))]
    assert found.share_copied == pytest.approx(1 / 3, abs=0.01)


def test_what_was_not_copied_is_not_found(walks: Index) -> None:
    for seed in range(100, 140):
        found = walks.compare(walk(seed, 512))
        assert (found.share_copied, found.longest_bars, found.matches) == (0, 0, [])


@pytest.mark.parametrize(
    "pitches",
    [[60] * 256, [60, 67, 64, 67] * 64, list(range(30, 100)) * 3, [60 + n % 2 for n in range(256)]],
    ids=["one note", "Alberti bass", "chromatic scale", "trill"],
)
def test_what_is_in_all_music_is_no_copy(tunes: list[ScoreTick], pitches: list[int]) -> None:
    index = Index.of([("plain", line(pitches)), *((str(n), score) for n, score in enumerate(tunes))])
    assert index.compare(line(pitches)).matches == []


def test_drums_are_left_out(walks: Index) -> None:
    drums = line([36, 42, 38, 42] * 64, drums=True)
    assert len(lines_of(drums).pitch) == 0
    found = walks.compare(drums)
    assert found.share_copied is None
    assert "drums" in found.in_line()
    with pytest.raises(InputError, match="not drums"):
        Index.of([("drums", drums)])
    both = Index.of([("drums", drums), ("walk", walk(1, 512))])
    both.measure([("beats/1", drums), ("steps/1", walk(100, 512))])
    assert both.normal == {"steps": 0, "": 0}
    assert both.compare(walk(1, 512)).matches[0].piece == "walk"
    assert walks.compare(ScoreTick(480)).matches == []


def test_an_index_is_the_same_when_read_back(index: Index, tunes: list[ScoreTick], tmp_path: Path) -> None:
    index.measure([("aird/150.mid", tunes[150]), ("Other_Tunes/151.mid", tunes[151])])
    index.write(tmp_path / NAME)
    again = Index.read(tmp_path / NAME)
    assert again.normal == index.normal
    assert again.normal.keys() == {"", "aird", "other-tunes"}
    assert again.compare(tunes[150], style="Other tunes").normal_share == index.normal["other-tunes"]
    for score in (*tunes[:150:30], *tunes[150::5]):
        assert again.compare(score) == index.compare(score)
    for name, rows in vars(index.lines).items():
        assert np.array_equal(getattr(again.lines, name), rows)


def test_a_damaged_or_hostile_index_is_refused(walks: Index, tmp_path: Path) -> None:
    path = tmp_path / NAME
    walks.write(path)
    whole = path.read_bytes()
    rows = load(lzma.decompress(whole))
    about = {"about": json.dumps({"names": walks.names, "normal": {}})}

    def packed(metadata: dict[str, str] = about, **other: np.ndarray) -> bytes:
        return lzma.compress(save({**rows, **other}, metadata))

    path.write_bytes(packed())
    assert Index.read(path).names == walks.names
    huge = np.full_like(rows["lengths"], 2**31 - 1)
    for data in (
        b"",
        b"music",
        whole[:-9],
        whole[:200] + bytes(100) + whole[300:],
        lzma.compress(b"music"),
        lzma.compress(bytes(2**20)),
        packed({}),
        packed({"about": "[]"}),
        packed({"about": json.dumps({"names": ["one"], "normal": {}})}),
        packed(lengths=huge),
        packed(lengths=-huge),
        packed(piece=rows["piece"] - 1),
        packed(gap=rows["gap"][:-1]),
        packed(pitch=rows["pitch"].astype(np.float32)),
        packed(pitch=rows["pitch"][None]),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match="is no index of training pieces"):
            Index.read(path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tunes: list[ScoreTick]) -> Path:
    """Forty tunes in two folders, with transpositions and exercises."""
    folder = tmp_path_factory.mktemp("originality")
    for n, score in enumerate(tunes[:40]):
        path = folder / "corpus" / ("odd" if n % 2 else "even") / f"{n:02d}.mid"
        path.parent.mkdir(parents=True, exist_ok=True)
        midi.write_midi(score, path)
    config = PrepareConfig(transpositions=2, infill=1.0, infill_ids=256)
    shards = prepare(folder / "corpus", folder / "shards", config, report=lambda text: None)
    assert shards.manifest["splits"]["train"]["exercises"]
    return folder / "shards"


def test_shards_become_an_index_of_their_training_files(
    shards: Path, tunes: list[ScoreTick], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(f"originality --against {shards} -o {tmp_path / NAME}".split())
    index = Index.read(tmp_path / NAME)
    assert len(index.names) == len(set(index.names)) > 25
    assert index.normal.keys() > {""}
    for name in index.names[::9]:
        found = index.compare(tunes[int(name[-6:-4])])
        assert (found.matches[0].piece, found.matches[0].transposition) == (name, 0)
    piece = tmp_path / "piece.mid"
    midi.write_midi(tunes[int(index.names[0][-6:-4])], piece)
    capsys.readouterr()
    for where in (tmp_path, tmp_path / NAME, shards):  # a folder that holds one, as a checkpoint may
        main(["originality", str(piece), "--against", str(where), "--json"])
        found = json.loads(capsys.readouterr().out)
        assert found.keys() == {"share_copied", "longest_bars", "matches", "normal_share"}
        assert found["matches"][0]["piece"] == index.names[0]
        assert found["normal_share"] == index.normal[""]
    main(["originality", str(piece), "--against", str(tmp_path)])
    first, heads, row, *_ = capsys.readouterr().out.splitlines()
    assert "100.0% of the notes" in first
    assert heads.split()[0] == "bars"
    assert row.endswith(index.names[0])


def test_shards_without_a_ledger_number_their_pieces(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    (tmp_path / "shards" / "ledger.jsonl").unlink()
    index = Index.of_shards(musicgpt.shards.Shards(tmp_path / "shards"), load_tokenizer(shards))
    assert index.names[0] == "train 1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("originality", "nothing to do"),
        ("originality {piece} --against {folder}", "expected one of these"),
        ("originality {piece} --against {piece}", "is no index of training pieces"),
        ("originality {folder}/none.mid --against {index}", "there is no file"),
        ("originality --against {index} -o {index}", "there already"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: str, said: str, tmp_path: Path, walks: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    walks.write(tmp_path / "index")
    midi.write_midi(walk(1, 512), tmp_path / "piece.mid")
    names = {"folder": tmp_path / "empty", "piece": tmp_path / "piece.mid", "index": tmp_path / "index"}
    with pytest.raises(SystemExit) as stopped:
        main(arguments.format(**names).split())
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_run_stands_for_its_shards_and_boxed_for_what_ships(run: Path) -> None:
    assert open_index(run).names == open_index(run / "shards").names
    assert open_index(Path("boxed")).names == open_index(None).names


def test_text_has_no_index(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time. " * 100)
    config = PrepareConfig(tokenizer="characters")
    shards = prepare(tmp_path / "text.txt", tmp_path / "shards", config, report=lambda text: None)
    with pytest.raises(ShardsError, match="expected music"):
        Index.of_shards(shards, load_tokenizer(tmp_path / "shards"))


def test_of_what_we_made_the_new_bars_count(run: Path, tunes: list[ScoreTick], tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.mid"
    midi.write_midi(tunes[0], prompt)
    index = Index.of([("prompt", tunes[0])])
    model = musicgpt.load(run)
    options = {"prompt_bars": 6, "bars": 8, "seed": 3}
    pieces = model.generate_many(4, prompt, **options)
    most = max(range(4), key=lambda i: pieces[i].score.note_num())  # enough for a match, whatever the model came to be
    piece = pieces[most]
    first, last = index.compare(piece.score).matches[0].bars
    assert first == 1 and 6 <= last <= 8  # bar 7 may happen to be the tune's
    piece.save(tmp_path / "out.mid")
    assert compare_file(tmp_path / "out.mid", index) == piece.originality(index)
    assert all(match.bars[0] > 6 for match in piece.originality(index).matches)
    alone = model.generate_many(4, prompt, include_prompt=False, **options)[most]
    assert Index.of([("new", alone.score)]).compare(piece.score, 7).share_copied == 1


def test_of_what_was_filled_in_the_new_notes_count(run: Path, tunes: list[ScoreTick], tmp_path: Path) -> None:
    """The right hand stays, and is known; a bass is written to it, alone or into bars 3 to 6."""
    host = tunes[0].copy()
    host.tracks[0].program = 0
    midi.write_midi(host, tmp_path / "host.mid")
    index = Index.of([("host", host)])
    assert index.compare(host, 3, 6).share_copied == 1
    for bars in ("3-6", None):
        (filled,) = musicgpt.load(run).infill(tmp_path / "host.mid", bars=bars, tracks=["bass"])
        filled.save(tmp_path / "out.mid")
        found = filled.originality(index)
        assert found.matches == []
        assert compare_file(tmp_path / "out.mid", index) == found
        new = Index.of([("new", filled.score)])
        assert filled.originality(new).share_copied in (0, 1)  # a match, where there are notes enough for one
    (filled,) = musicgpt.load(run).infill(tmp_path / "host.mid", bars="3-6")
    copy = replace(filled, notes=tuple(made_of(host, 3, 6)))
    assert copy.originality(index).share_copied == 1


def made_of(score: ScoreTick, first: int, last: int) -> list[New]:
    """The notes of these bars as if they had been filled in."""
    lines, quarter = midi.BarLines(score), score.ticks_per_quarter
    begin, end = lines.begin(first), lines.begin(last + 1)
    return [
        New((note.time - begin) / quarter, note.duration / quarter, note.pitch, note.velocity, 0)
        for note in score.tracks[0].notes
        if begin <= note.time < end
    ]


def test_of_several_pieces_the_first_is_compared_and_that_is_said(
    walks: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    walks.write(tmp_path / NAME)
    tune = "X:{}\nL:1/8\nK:C\nCDEF GABc|cBAG FEDC|\n"
    (tmp_path / "two.abc").write_text(tune.format(1) + "\n" + tune.format(2))
    main(["originality", str(tmp_path / "two.abc"), "--against", str(tmp_path)])
    said = capsys.readouterr()
    assert "the first of 2 pieces" in said.err
    assert "0.0% of the notes" in said.out


def test_copies_are_made_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = musicgpt.load(run)
    asked: dict[str, Any] = {"bars": 8, "temperature": 1.5}
    pieces = [model.generate(seed=seed, **asked) for seed in range(20)]
    # how many bars of each are found in itself: of one note a bar, say, not every bar is a passage
    found = [piece.originality(Index.of([("itself", piece.score)])).longest_bars for piece in pieces]
    begin = next(i for i in range(21 - MOST_ATTEMPTS) if found[i] > 2 and 0 not in found[i : i + MOST_ATTEMPTS])
    takes, most = pieces[begin : begin + MOST_ATTEMPTS], found[begin] - 1
    first = Index.of([("first", takes[0].score)])
    asked["seed"] = begin
    remarks: list[str] = []
    piece = model.generate(max_copied_bars=most, against=first, report=remarks.append, **asked)
    assert piece.originality(first).longest_bars <= most
    assert piece.new_ids == takes[piece.provenance["seed"] - begin].new_ids
    assert "made 2 times" in remarks[-1]
    every = Index.of((str(n), take.score) for n, take in enumerate(takes))
    kept = model.generate(max_copied_bars=0, against=every, report=remarks.append, **asked)
    assert f"made {MOST_ATTEMPTS} times" in remarks[-1]
    assert kept.originality(every).longest_bars == min(take.originality(every).longest_bars for take in takes)
    with pytest.raises(UsageError, match="no index"):
        model.generate(max_copied_bars=4, **asked)
    fails = partial(model.generate_many, 1, max_new_tokens=2)  # too few ids for a note
    attempts = [lambda: [takes[0]], fails, lambda: [takes[1]]]
    assert model._least_copied(attempts, most, first, remarks.append) == [takes[1]]
    with pytest.raises(InputError, match="no note"):
        model._least_copied([fails], 4, first, remarks.append)

    checkpoint = tmp_path / "checkpoint"  # one that holds an index is compared with it every time
    shutil.copytree(run / "best", checkpoint)
    first.write(checkpoint / NAME)
    out = tmp_path / "out.mid"
    again = f"generate {checkpoint} --bars 8 --temperature 1.5 --seed {begin} -o {out}"
    main(again.split())
    assert re.search(r"in bars \d-8, as in bars \d-8 of first$", capsys.readouterr().err, re.MULTILINE)
    main(f"{again} --max-copied-bars {most} --force".split())
    assert "made 2 times" in capsys.readouterr().err
    main(f"generate {checkpoint} --replay {out} -o {tmp_path / 'again.mid'}".split())
    assert out.read_bytes() == (tmp_path / "again.mid").read_bytes()
