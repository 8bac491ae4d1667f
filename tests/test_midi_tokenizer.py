"""The laws of the protocol, for every scheme, with a learned vocabulary and without, on real files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import miditok
import numpy as np
import pytest
import symusic
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgpt import midi
from musicgpt.errors import TokenizerError
from musicgpt.midi_tokenizer import SCHEMES, MidiTokenizer
from musicgpt.tokenizer import load_tokenizer, new_tokenizer

VARIETY = [(scheme, learned) for scheme in SCHEMES for learned in (False, True)]
KEPT: dict[tuple[str, bool], MidiTokenizer] = {}


def tokenizer_of(scheme: str, learned: bool, tunes: list[symusic.Score]) -> MidiTokenizer:
    key = (scheme, learned)
    if key not in KEPT:
        KEPT[key] = MidiTokenizer.new(scheme)
        if learned:
            KEPT[key].learn(tunes[:80], KEPT[key].vocab_size + 500)
    return KEPT[key]


@pytest.fixture(params=VARIETY, ids=lambda v: v[0] + ("+bpe" if v[1] else ""))
def tokenizer(request: pytest.FixtureRequest, tunes: list[symusic.Score]) -> MidiTokenizer:
    return tokenizer_of(*request.param, tunes)


def notes_of(score: symusic.Score) -> list[tuple[int, bool, int]]:
    return sorted(
        (-1 if track.is_drum else track.program, track.is_drum, note.pitch)
        for track in score.tracks
        for note in track.notes
    )


def scores_of(corpora: list[Path]) -> list[symusic.Score]:
    scores = [midi.read_scores(path)[0][0] for path in corpora]
    return [score for score in scores if score.note_num() < 4000]


def test_music_becomes_ids_without_torch_and_miditok_stays_whole() -> None:
    check = (
        "import sys; from musicgpt.tokenizer import new_tokenizer; tokenizer = new_tokenizer('remi')\n"
        "tokenizer.encode(tokenizer.prompt('pop')[0]); assert 'torch' not in sys.modules\n"
        "from miditok.pytorch_data import DatasetMIDI"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_no_note_of_real_music_is_lost(tokenizer: MidiTokenizer, corpora: list[Path]) -> None:
    for score in scores_of(corpora):
        ids = tokenizer.encode(score)
        assert tokenizer.losses(score, ids)["notes_lost"] == 0
        assert notes_of(tokenizer.decode(ids)) == notes_of(score)


def test_encoding_settles_after_one_pass_and_emits_no_special_ids(
    tokenizer: MidiTokenizer, corpora: list[Path]
) -> None:
    def once(ids: list[int]) -> list[int]:
        return tokenizer.encode(tokenizer.decode(ids))

    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    settled = 0
    scores = scores_of(corpora)
    for score in scores:
        ids = tokenizer.encode(score)
        assert not special & set(ids)
        assert 0 <= min(ids) <= max(ids) < tokenizer.vocab_size
        assert once(once(ids)) == once(ids)
        settled += once(ids) == ids
    if tokenizer.name in ("remi", "tsd"):
        assert settled == len(scores)  # and already at once, where durations are written as such


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), length=st.integers(0, 300))
@pytest.mark.parametrize("variety", VARIETY, ids=lambda v: v[0] + ("+bpe" if v[1] else ""))
def test_any_ids_decode_to_a_score_that_can_be_written(
    variety: tuple[str, bool], seed: int, length: int, tunes: list[symusic.Score]
) -> None:
    tokenizer = tokenizer_of(*variety, tunes)
    ids = random.Random(seed).choices(range(tokenizer.vocab_size), k=length)
    score = tokenizer.decode(ids)
    again = symusic.Score.from_midi(score.dumps_midi())
    assert again.note_num() == score.note_num()
    tokenizer.encode(score)


def test_saved_and_loaded_it_gives_the_same_ids(
    tokenizer: MidiTokenizer, tunes: list[symusic.Score], tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.expansions == tokenizer.expansions
    assert (again.bos_id, again.eos_id, again.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    for score in tunes[80:100]:
        assert again.encode(score) == tokenizer.encode(score)


def test_miditok_itself_reads_what_is_saved(
    tokenizer: MidiTokenizer, tunes: list[symusic.Score], tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    theirs = getattr(miditok, SCHEMES[tokenizer.name])(params=tmp_path / "tokenizer.json")
    ids = tokenizer.encode(tunes[90])
    assert theirs.decode(ids).note_num() == tunes[90].note_num()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_learning_is_deterministic_shortens_and_leaves_no_empty_id(scheme: str, tunes: list[symusic.Score]) -> None:
    plain, first, second = (MidiTokenizer.new(scheme) for _ in range(3))
    size = plain.vocab_size + 300
    first.learn(iter(tunes[:60]), size)
    second.learn(iter(tunes[:60]), size)
    assert first.wrapped.to_dict() == second.wrapped.to_dict()
    assert first.vocab_size == size
    assert all(first.expansions)
    assert first.expansions[first.bos_id] == ("BOS_None",)
    for score in tunes[60:80]:
        spelled = [token for id in first.encode(score) for token in first.expansions[id]]
        assert spelled == [plain.expansions[id][0] for id in plain.encode(score)]
        assert len(first.encode(score)) < 0.8 * len(plain.encode(score))


def test_a_vocabulary_too_small_or_learned_twice_is_refused(tunes: list[symusic.Score]) -> None:
    tokenizer = MidiTokenizer.new("tsd")
    with pytest.raises(TokenizerError, match=r"a vocabulary of 100 ids was asked for; tsd has \d+ before any merge"):
        tokenizer.learn(tunes, 100)
    tokenizer.learn(tunes[:10], tokenizer.vocab_size + 20)
    with pytest.raises(TokenizerError, match="has learned its vocabulary"):
        tokenizer.learn(tunes, 5000)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("CPWord", "several vocabularies"),
        ("Octuple", "several vocabularies"),
        ("MuMIDI", "several vocabularies"),
        ("MMM", "one track after the other"),
        ("PerTok", "unstable"),
        ("BEAT", "unstable"),
        ("nonsense", "no tokenizer is called 'nonsense'"),
    ],
)
def test_other_schemes_are_refused_in_one_line_with_the_reason(name: str, why: str, tmp_path: Path) -> None:
    for make in (lambda: new_tokenizer(name), lambda: load_tokenizer(tmp_path)):
        (tmp_path / "tokenizer_config.json").write_text('{"kind": "midi"}')
        (tmp_path / "tokenizer.json").write_text(json.dumps({"tokenization": name, "config": {}}))
        with pytest.raises(TokenizerError, match=why) as caught:
            make()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("model", "why"), [("Unigram", "not deterministic"), ("WordPiece", "drops")])
def test_other_trainers_are_refused(model: str, why: str, tmp_path: Path, folk: Path) -> None:
    theirs = miditok.TSD(miditok.TokenizerConfig(use_programs=True))
    theirs.train(vocab_size=900, model=model, files_paths=sorted(folk.glob("*.mid"))[:20])
    theirs.save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"kind": "midi"}')
    with pytest.raises(TokenizerError, match=f"trained as {model}, which is refused: .*{why}"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_writes_tracks_apart_is_refused(tmp_path: Path) -> None:
    miditok.REMI(miditok.TokenizerConfig()).save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"kind": "midi"}')
    with pytest.raises(TokenizerError, match="each track on its own; expected one stream"):
        load_tokenizer(tmp_path)


def test_the_metres_of_the_corpora_are_covered(shared: Path) -> None:
    known = set(MidiTokenizer.new("remi").wrapped.time_signatures)
    counts = Counter(
        (signature.numerator, signature.denominator) in known
        for path in (shared / "corpora").rglob("*.mid")
        for signature in symusic.Score(path).time_signatures
    )
    assert counts[True] / counts.total() > 0.995


@pytest.mark.parametrize("scheme", ["remi", "tsd", "midilike"])
def test_metres_and_tempos_are_kept(scheme: str, shared: Path) -> None:
    path = shared / "hard" / "synthetic" / "timesig_5_8_7_8_11_16.mid"
    (score,), _ = midi.read_scores(path)
    tokenizer = MidiTokenizer.new(scheme)
    again = tokenizer.decode(tokenizer.encode(score))
    assert [(s.numerator, s.denominator) for s in again.time_signatures] == [(5, 8), (7, 8), (11, 16)]
    assert all(abs(a.qpm - b.qpm) <= 2 for a, b in zip(score.tempos, again.tempos, strict=False))


def test_the_whole_range_of_drums_and_pitches_is_kept(shared: Path) -> None:
    groove = random.Random(3).sample(sorted((shared / "corpora" / "groove").rglob("*.mid")), 40)
    tokenizer = MidiTokenizer.new("remi")
    outside = 0
    for path in [*groove, shared / "hard" / "synthetic" / "pitch_0_and_127.mid"]:
        (score,), _ = midi.read_scores(path)
        outside += sum(note.pitch < 27 for track in score.tracks for note in track.notes)
        assert notes_of(tokenizer.decode(tokenizer.encode(score))) == notes_of(score)
    assert outside > 100  # what miditok's own default range drops


def score_with(
    duration: int = 480, onset: int = 0, metre: tuple[int, int] = (4, 4), metre_at: int = 0
) -> symusic.Score:
    score = symusic.Score(480)
    score.time_signatures.append(symusic.TimeSignature(metre_at, *metre))
    track = symusic.Track()
    track.notes.append(symusic.Note(0, 480, 60, 64))
    track.notes.append(symusic.Note(onset, duration, 64, 64))
    score.tracks.append(track)
    return score


@pytest.mark.parametrize(
    ("scheme", "score", "kind"),
    [
        ("remi", score_with(duration=480 * 65), "durations_clipped"),
        ("tsd", score_with(duration=240 * 65, metre=(6, 8)), "durations_clipped"),
        ("structured", score_with(onset=480 * 65), "pauses_clipped"),
        ("remi", score_with(metre=(41, 8)), "metres_replaced"),
        ("tsd", score_with(metre=(3, 4), metre_at=480), "metres_replaced"),
        ("structured", score_with(metre=(3, 4)), "metres_replaced"),
    ],
)
def test_what_does_not_fit_is_counted(scheme: str, score: symusic.Score, kind: str) -> None:
    tokenizer = MidiTokenizer.new(scheme)
    losses = tokenizer.losses(score, tokenizer.encode(score))
    assert {key for key, count in losses.items() if count} == {kind}
    assert losses[kind] == 1
    assert set(losses) == set(tokenizer.loss_kinds)


def test_long_durations_and_pauses_of_the_other_schemes_are_kept() -> None:
    long_note, long_pause = score_with(duration=480 * 100), score_with(onset=480 * 200)
    for scheme, score in (("midilike", long_note), ("tsd", long_pause), ("midilike", long_pause), ("remi", long_pause)):
        tokenizer = MidiTokenizer.new(scheme)
        again = tokenizer.decode(tokenizer.encode(score))
        assert not any(tokenizer.losses(score, tokenizer.encode(score)).values())
        assert again.end() / again.ticks_per_quarter == score.end() / 480


@pytest.mark.parametrize("scheme", SCHEMES)
def test_onsets_move_by_no_more_than_the_grid(scheme: str, corpora: list[Path]) -> None:
    """Half a step of the grid; for Structured half a step of its coarsest, however long the piece."""
    tokenizer = MidiTokenizer.new(scheme)
    for score in scores_of(corpora):
        if len({s.denominator for s in score.time_signatures} | {4}) > 1 or len(score.time_signatures) > 1:
            continue  # where a metre begins within a bar, the grid moves with it
        again = tokenizer.decode(tokenizer.encode(score))
        before, after = (
            np.sort([n.time / s.ticks_per_quarter for track in s.tracks for n in track.notes]) for s in (score, again)
        )
        assert np.abs(before - after).max() <= (0.26 if scheme == "structured" else 0.5 / 24 + 0.022)


def test_tempos_beyond_the_range_are_counted() -> None:
    score = score_with()
    for i, tempo_bpm in enumerate((5, 120, 400)):
        score.tempos.append(symusic.Tempo(i * 480, tempo_bpm))
    tokenizer = MidiTokenizer.new("remi")
    assert tokenizer.losses(score, tokenizer.encode(score))["tempos_clipped"] == 2


def test_variants_are_transpositions_around_the_original(tunes: list[symusic.Score]) -> None:
    tokenizer = MidiTokenizer.new("remi")
    variants = tokenizer.variants(tunes[0], 5)
    first = [int(variant.tracks[0].notes[0].pitch) for variant in variants]
    assert np.array_equal(np.array(first) - first[0], [0, 1, -1, 2, -2])
    drums = symusic.Score(480)
    drums.tracks.append(symusic.Track(is_drum=True))
    drums.tracks[0].notes.append(symusic.Note(0, 100, 36, 90))
    assert len(tokenizer.variants(drums, 12)) == 1


def test_ids_do_not_depend_on_the_order_of_the_tracks(shared: Path) -> None:
    path = sorted((shared / "corpora" / "openttd_openmsx").glob("*.mid"))[0]
    (score,), _ = midi.read_scores(path)
    turned = score.copy()
    turned.tracks = list(reversed(list(score.tracks)))
    tokenizer = MidiTokenizer.new("remi")
    assert tokenizer.encode(turned) == tokenizer.encode(score)
