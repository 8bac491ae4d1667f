"""What a user may give as a prompt: shipped phrases, ABC on the command line, every difficult file there is."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mido
import numpy as np
import pytest
import symusic

from musicgpt import midi
from musicgpt.errors import InputError
from musicgpt.fidelity import INAUDIBLE
from musicgpt.midi_tokenizer import SCHEMES, MidiTokenizer
from musicgpt.phrases import PHRASES, read_phrase
from musicgpt.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, MidiTokenizer]:
    return {scheme: MidiTokenizer.new(scheme) for scheme in SCHEMES}


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pitches(score: symusic.Score) -> list[int]:
    return [note.pitch for track in score.tracks for note in track.notes]


def count_said(lines: list[str], pattern: str) -> int:
    """The number at the head of the line that matches; 0 without one."""
    found = [line for line in lines if re.search(pattern, line)]
    assert len(found) <= 1, found
    return int(found[0].split()[0].replace(",", "")) if found else 0


@pytest.mark.parametrize("name", PHRASES)
def test_a_shipped_phrase_fills_its_bars_and_every_vocabulary_keeps_it(
    name: str, tokenizers: dict[str, MidiTokenizer]
) -> None:
    score, remarks = read_phrase(name)
    assert not remarks
    end = max(note.end for track in score.tracks for note in track.notes)
    (metre,) = score.time_signatures
    bars = end / (score.ticks_per_quarter * 4 * metre.numerator / metre.denominator)
    assert bars in (2, 3, 4)
    assert f"{metre.numerator}/{metre.denominator}" in PHRASES[name]
    for scheme, tokenizer in tokenizers.items():
        said = tokenizer.changes(score, tokenizer.encode(score))
        beyond = "left out: the vocabulary has none"  # structured has neither tempo nor metre
        assert all(" velocit" in line or (scheme == "structured" and beyond in line) for line in said), said


def test_the_phrases_are_of_many_kinds() -> None:
    scores = [read_phrase(name)[0] for name in PHRASES]
    assert len(PHRASES) >= 12
    metres = {(s.numerator, s.denominator) for score in scores for s in score.time_signatures}
    assert metres >= {(4, 4), (3, 4), (6, 8), (7, 8)}
    assert any(all(track.is_drum for track in score.tracks) for score in scores)
    assert any(len({(track.program, track.is_drum) for track in score.tracks}) >= 3 for score in scores)
    assert len({track.program for score in scores for track in score.tracks}) >= 10


SCALE = [62, 64, 66, 67]


@pytest.mark.parametrize(
    ("text", "expected", "metre", "supplied"),
    [
        ("X:1\nK:D\nDEFG|", SCALE, (4, 4), "M:4/4 L:1/8 supplied"),
        ("M:6/8 \n L:1/8\nK:D\nd2 e f2 g|", [74, 76, 78, 79], (6, 8), ""),
        (r"M:3/4\nL:1/4\nK:D\nDEF|G3|", SCALE, (3, 4), ""),
        ("K:D DEFG|", SCALE, (4, 4), "M:4/4 L:1/8 supplied"),
        ("M:7/8 L:1/8 K:D DEFG z3|", SCALE, (7, 8), ""),
        ("K:A minor cdef|", [72, 74, 76, 77], (4, 4), "M:4/4 L:1/8 supplied"),
        ("K:Edor GABc|", [67, 69, 71, 73], (4, 4), "M:4/4 L:1/8 supplied"),
        ("CDEF GABc|", [60, 62, 64, 65, 67, 69, 71, 72], (4, 4), "M:4/4 L:1/8 K:C supplied"),
        ("X:5\nT:A tune\nC:Nobody\nM:2/4\nK:D\nDE|FG|\nw: la la", SCALE, (2, 4), ""),
        ('K:D !f!D"^slow"E (FG)|', SCALE, (4, 4), "M:4/4 L:1/8 supplied"),
    ],
)
def test_abc_on_the_command_line(text: str, expected: list[int], metre: tuple[int, int], supplied: str) -> None:
    score, remarks = read_phrase(text)
    assert pitches(score) == expected
    assert [(s.numerator, s.denominator) for s in score.time_signatures] == [metre]
    assert remarks == ([supplied] if supplied else [])


def test_notes_of_a_chord_begin_together() -> None:
    score, _ = read_phrase("[CEG]4 [DFA]4|")
    assert len({note.time for track in score.tracks for note in track.notes}) == 2


def test_of_several_pieces_the_first(folk_books: Path, shared: Path) -> None:
    text = "X:1\nK:D\nDEFG|\n\nX:2\nK:D\nGFED|\n"
    score, remarks = read_phrase(text)
    assert pitches(score) == SCALE
    assert remarks == ["the first of 2 pieces is used"]
    score, remarks = read_phrase(str(folk_books / "airdsAirs" / "book1.abc"))
    assert re.fullmatch(r"the first of \d+ pieces is used", remarks[-1])
    score, remarks = read_phrase(str(shared / "hard" / "synthetic" / "format2_two_patterns.mid"))
    assert score.note_num() == 8
    assert remarks == ["2 patterns of a file of format 2 read as pieces", "the first of 2 pieces is used"]


@pytest.mark.parametrize(
    "text", ["polka", "missing.mid", "hello | world", "", "a" * 5000, "\0", "K:", "X:1\nK:C\n", "|"]
)
def test_what_is_none_of_these_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(InputError) as caught:
        read_phrase(text)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    if text:
        assert "'K:D DEFG ABcd|'" in message and all(name in message for name in PHRASES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DEFG ABcd", r"there is no file 'DEFG ABcd'; .* ABC with a header or a bar line"),
        ("K:D hello world", "the prompt is no ABC: 'hello' is neither notes nor a header"),
        ("DEFG | with words", "the prompt is no ABC: 'with' is neither notes nor a header"),
        ("X:1\nK:C\n", "the prompt is no ABC: there is no note in it"),
        ("| " + "DEFG" * 25_000, "the prompt is no ABC: expected at most 100,000 characters"),
    ],
)
def test_what_a_text_lacks_to_be_abc_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_phrase(text)


def notes_by_mido(path: Path) -> int | None:
    """Notes that begin, counted by another reader; None where it cannot read the file."""
    try:
        tracks = mido.MidiFile(path, clip=True).tracks
    except Exception:  # mido raises many things on bad bytes
        return None
    return sum(m.type == "note_on" and m.velocity > 0 for track in tracks for m in track)


MORE_THAN_MIDO = {
    "arkanoid_modified.mid": "beyond the 0 declared",
    "ntrks_says_1_has_3.mid": "beyond the 1 declared",
    "ntrks_says_65535.mid": "65535 tracks declared",
    "track_len_zero_then_data.mid": "longer than it says",
}
"""Files of which mido reads less than there is, and our remark on them."""


def test_every_difficult_file_keeps_its_notes_or_is_refused_in_a_line(
    shared: Path, tokenizers: dict[str, MidiTokenizer]
) -> None:
    accepted = compared = 0
    refusals: dict[Path, str] = {}
    for i, path in enumerate(p for p in sorted((shared / "hard").rglob("*")) if p.is_file()):
        with at_most(30):
            try:
                score, remarks = read_phrase(str(path))
            except InputError as error:
                refusals[path] = str(error)
                continue
            accepted += 1
            whole = score.note_num()
            if any("pieces is used" in remark for remark in remarks):
                whole = sum(piece.note_num() for piece in midi.read_scores(path)[0])
            known = (
                notes_by_mido(path)
                if path.suffix.lower() in midi.MIDI_SUFFIXES and path.stat().st_size < 200_000
                else None
            )
            if known is not None and known != whole + count_said(remarks, "behind the end of their track"):
                assert known < whole and any(MORE_THAN_MIDO[path.name] in remark for remark in remarks), path
            compared += known is not None
            # all schemes for what is short, one in turn for what is long
            names = list(SCHEMES) if whole < 800 else [list(SCHEMES)[i % 4]]
            for tokenizer in (tokenizers[name] for name in names):
                ids = tokenizer.encode(score)
                kept = sum(
                    token.startswith(("Pitch", "NoteOn", "DrumOn")) for id in ids for token in tokenizer.expansions[id]
                )
                lost = count_said(tokenizer.changes(score, ids), "notes? lost")
                assert kept >= 1 and kept + lost == score.note_num(), (path, tokenizer.name)
    assert accepted > 270 and len(refusals) > 90 and compared > 220
    assert all(str(path) in text and "\n" not in text for path, text in refusals.items())


def test_remarks_are_true(shared: Path, tokenizers: dict[str, MidiTokenizer]) -> None:
    """What `changes` says of 40 real files, counted again: by the vocabulary, and note by note in what comes back."""
    files = random.Random(11).sample(sorted((shared / "corpora").rglob("*.mid")), 40)
    seen: dict[str, int] = {}
    certain = 0
    for i, path in enumerate(files):
        score, _ = read_phrase(str(path))
        tokenizer = list(tokenizers.values())[i % 4]
        ids = tokenizer.encode(score)
        said = tokenizer.changes(score, ids)
        known = {int(velocity) for velocity in tokenizer.wrapped.velocities}
        counts = {
            "velocit": sum(note.velocity not in known for track in score.tracks for note in track.notes),
            "notes? lost": 0,
            "control": sum(len(track.controls) for track in score.tracks),
            "pitch bend": sum(len(track.pitch_bends) for track in score.tracks),
        }
        old, new = voices(score), voices(tokenizer.decode(ids))
        assert {key: len(notes) for key, notes in old.items()} == {key: len(notes) for key, notes in new.items()}
        onsets = [(a, b) for key in old for a, b in zip(sorted(old[key]), sorted(new[key]), strict=True)]
        moved = [abs(a[0] - b[0]) for a, b in onsets]
        counts["onset"] = sum(distance > INAUDIBLE for distance in moved)
        if not any(a[0] == b[0] for key in new for a, b in zip(sorted(new[key]), sorted(new[key])[1:], strict=False)):
            # no two fall together, so the pairs are certain
            counts["duration"] = sum(abs(a[1] - b[1]) > INAUDIBLE for a, b in onsets if a[1] > 0)
            assert counts["velocit"] == sum(a[2] != b[2] for a, b in onsets)
            certain += 1
        for pattern, count in counts.items():
            found = [line for line in said if re.search(pattern, line)]
            assert sum(int(line.split()[0].replace(",", "")) for line in found) == count, (path, pattern, said)
            seen[pattern] = seen.get(pattern, 0) + (count > 0)
        for line in said:
            if match := re.search(r"onsets? moved to the grid \(at most (\d+)/(\d+)", line):
                assert max(moved) <= int(match[1]) / int(match[2]) + 1e-9
    assert certain > 10 and seen["velocit"] > 5 and seen["onset"] > 5 and seen["duration"] > 5 and seen["control"] > 3


def voices(score: symusic.Score) -> dict[tuple[int, int], list[tuple[float, float, int]]]:
    """(program or -1, pitch) -> onset and duration in quarter notes, and velocity, of every note."""
    found: dict[tuple[int, int], list[tuple[float, float, int]]] = {}
    for track in score.tracks:
        for note in track.notes:
            key = (-1 if track.is_drum else track.program, note.pitch)
            per = score.ticks_per_quarter
            found.setdefault(key, []).append((note.time / per, note.duration / per, note.velocity))
    return found


def made(
    *notes: tuple[int, int, int], tempo_bpm: float = 120, metres: tuple[tuple[int, int, int], ...] = ()
) -> symusic.Score:
    """(onset, duration, pitch) in ticks of 480."""
    score = symusic.Score(480)
    score.tempos.append(symusic.Tempo(0, tempo_bpm))
    for metre in metres:
        score.time_signatures.append(symusic.TimeSignature(*metre))
    score.tracks.append(symusic.Track())
    for onset, duration, pitch in notes:
        score.tracks[0].notes.append(symusic.Note(onset, duration, pitch, 63))
    return score


@pytest.mark.parametrize(
    ("scheme", "score", "expected"),
    [
        ("remi", made((0, 480, 60), tempo_bpm=203), ["tempo 203 to 204"]),
        ("remi", made((0, 480, 60), tempo_bpm=400), ["tempo 400 to 300"]),
        ("remi", made((0, 480, 60), metres=((0, 7, 8),)), []),
        ("remi", made((0, 480, 60), metres=((0, 41, 8),)), ["1 metre left out, as the vocabulary has no 41/8"]),
        (
            "remi",
            made((0, 480, 60), (1920, 480, 60), metres=((0, 4, 4), (480, 3, 4))),
            ["1 metre begun at a bar line, not within a bar"],
        ),
        ("remi", made((0, 480 * 70, 60)), ["1 duration shortened to 64 beats"]),
        (
            "structured",
            made((0, 480, 60), (480 * 70, 480, 60)),
            ["1 onset moved to the grid (at most 6 quarter notes)", "1 pause shortened to 64 beats"],
        ),
        (
            "structured",
            made((0, 480, 60), tempo_bpm=90, metres=((0, 3, 4),)),
            ["1 metre left out: the vocabulary has none", "1 tempo left out: the vocabulary has none"],
        ),
        (
            "tsd",
            made((0, 0, 60), (490, 480, 62)),
            [
                "1 onset moved to the grid (at most 1/48 of a quarter note)",
                "1 note without length lengthened to the least there is",
            ],
        ),
    ],
)
def test_changes_are_said(
    scheme: str, score: symusic.Score, expected: list[str], tokenizers: dict[str, MidiTokenizer]
) -> None:
    tokenizer = tokenizers[scheme]
    assert tokenizer.changes(score, tokenizer.encode(score)) == expected


def test_notes_beyond_a_narrow_vocabulary_move_by_octaves(tmp_path: Path) -> None:
    import miditok

    config = miditok.TokenizerConfig(
        pitch_range=(36, 84), special_tokens=["PAD", "BOS", "EOS"], use_programs=True, drums_pitch_range=(35, 60)
    )
    miditok.TSD(config).save(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path)
    midi.write_midi(made((0, 480, 20), (480, 480, 35), (960, 480, 60), (1440, 480, 96)), tmp_path / "a.mid")
    score, remarks = tokenizer.prompt(str(tmp_path / "a.mid"))
    assert pitches(score) == [44, 47, 60, 84]
    assert remarks == ["3 notes out of range moved by octaves"]
    assert tokenizer.losses(score, tokenizer.encode(score))["notes_lost"] == 0
    assert pitches(tokenizer.decode(tokenizer.encode(score))) == pitches(score)

    drums = made((0, 480, 36), (480, 480, 81), (960, 480, 35))  # the last in its own range, and not decoded
    drums.tracks[0].is_drum = True
    fitted, remarks = MidiTokenizer.load(tmp_path).fitted(drums)
    assert pitches(fitted) == [36]
    assert remarks == ["2 drum strokes out of range left out"]
    drums.tracks[0].notes.pop(0)
    with pytest.raises(InputError, match="none of the prompt's 2 notes is in the range"):
        MidiTokenizer.load(tmp_path).fitted(drums)


def test_real_music_fits_the_whole_range(tunes: list[symusic.Score], tokenizers: dict[str, MidiTokenizer]) -> None:
    for score in tunes[:20]:
        fitted, remarks = tokenizers["remi"].fitted(score)
        assert fitted is score and not remarks


def test_changes_of_real_tunes_are_few(tunes: list[symusic.Score], tokenizers: dict[str, MidiTokenizer]) -> None:
    said = [
        line for score in tunes[:40] for line in tokenizers["remi"].changes(score, tokenizers["remi"].encode(score))
    ]
    assert not np.any(["lost" in line for line in said])
