"""Sound and picture: the right pitches for as long as the piece lasts, and a drawing that says what it shows."""

from __future__ import annotations

import io
import subprocess
import sys
import wave
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import symusic
from symusic.core import ControlChangeTick, NoteTick, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

from musicgpt import render
from musicgpt.errors import InputError
from musicgpt.midi import read_scores, seconds, write_midi

QUARTER = 480
ORGAN = 16  # sustains as long as the key is down
OCARINA = 79  # one clear pitch: the flute of this soundfont has a vibrato of 1 %, its organs mix in the octave
RATE = render.SAMPLE_RATE


@pytest.fixture
def sound() -> None:
    pytest.importorskip("tinysoundfont", reason="pip install --no-deps tinysoundfont")


def piece(
    *tracks: list[tuple[float, float, int]],
    program: int = 0,
    drums: bool = False,
    tempos: tuple[tuple[float, float], ...] = ((0, 120),),
    metres: tuple[tuple[float, int, int], ...] = (),
) -> ScoreTick:
    """Tracks of (onset, duration, pitch), in quarter notes."""
    score = symusic.Score(QUARTER)
    for at, bpm in tempos:
        score.tempos.append(TempoTick(int(at * QUARTER), bpm))
    for at, numerator, denominator in metres:
        score.time_signatures.append(TimeSignatureTick(int(at * QUARTER), numerator, denominator))
    for notes in tracks:
        track = TrackTick("", program, drums)
        for onset, duration, pitch in notes:
            track.notes.append(NoteTick(int(onset * QUARTER), int(duration * QUARTER), pitch, 100))
        score.tracks.append(track)
    return score


def frequency(sound: np.ndarray) -> float:
    """Hz of the period after which the sound is most like itself."""
    mono = sound.sum(axis=1).astype(np.float64)
    mono -= mono.mean()
    size = 2 * len(mono)
    likeness = np.fft.irfft(np.abs(np.fft.rfft(mono, size)) ** 2, size)[: RATE // 50]
    first = int(np.argmax(likeness < 0))  # past the peak at 0
    near = likeness[first:] > 0.9 * likeness[first:].max()
    start = first + int(np.argmax(near))  # the first of the peaks: the others are whole multiples of the period
    peak = start + int(np.argmax(likeness[start : start + max(2, start // 4)]))
    left, middle, right = likeness[peak - 1 : peak + 2]
    return RATE / (peak + (left - right) / (2 * (left - 2 * middle + right)))


def words(picture: Path) -> list[str]:
    root = ElementTree.fromstring(picture.read_bytes())
    return ["".join(e.itertext()).strip() for e in root.iter("{http://www.w3.org/2000/svg}text")]


# sound


@pytest.mark.usefixtures("sound")
@pytest.mark.parametrize(("pitch", "hertz"), [(45, 110.0), (60, 261.626), (69, 440.0), (81, 880.0)])
def test_pitches_are_in_tune(pitch: int, hertz: float) -> None:
    sound = render.synthesize(piece([(0, 4, pitch)], program=OCARINA))
    assert frequency(sound[RATE // 2 : RATE * 3 // 2]) == pytest.approx(hertz, rel=0.01)


@pytest.mark.usefixtures("sound")
def test_it_lasts_as_long_as_the_piece_and_its_tail(shared: Path, tmp_path: Path) -> None:
    source = shared / "corpora" / "freedoom" / "freedoom1_d_introa.mid"
    render.render(source, tmp_path / "out.wav")
    with wave.open(str(tmp_path / "out.wav")) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (2, 2, RATE)
        samples = np.frombuffer(wav.readframes(wav.getnframes()), dtype="<i2")
        length = wav.getnframes() / RATE
    assert length == pytest.approx(seconds(read_scores(source)[0][0]) + render.TAIL_SECONDS, abs=0.001)
    assert abs(samples.astype(int)).max() == pytest.approx(render.PEAK * 32767, abs=2)


@pytest.mark.usefixtures("sound")
def test_every_note_is_where_it_is_written(tunes: list[ScoreTick]) -> None:
    score = tunes[0]
    sound = abs(render.synthesize(score)).max(axis=1)
    for note in score.to(symusic.TimeUnit.second).tracks[0].notes:
        assert sound[int(note.start * RATE) : int((note.start + 0.1) * RATE)].max() > 0.02


@pytest.mark.usefixtures("sound")
def test_tempo_changes_change_the_length() -> None:
    notes = [(0.0, 8.0, 60)]
    lengths = [
        len(render.synthesize(piece(notes, tempos=tempos))) / RATE - render.TAIL_SECONDS
        for tempos in (((0, 120),), ((0, 60),), ((0, 120), (4, 60)))
    ]
    assert lengths == pytest.approx([4, 8, 6], abs=0.001)


@pytest.mark.usefixtures("sound")
def test_a_program_changes_the_sound_of_notes_but_not_of_drums() -> None:
    notes = [(0.0, 1.0, 60), (1.0, 1.0, 64)]
    piano, organ = (render.synthesize(piece(notes, program=p)) for p in (0, ORGAN))
    assert abs(piano - organ).max() > 0.1
    kit = [(i / 2, 0.25, pitch) for i, pitch in enumerate((36, 38, 42, 49))]
    same, other = (render.synthesize(piece(kit, program=p, drums=True)) for p in (0, 25))
    np.testing.assert_array_equal(same, other)
    assert abs(same - render.synthesize(piece(kit, drums=False))).max() > 0.1


@pytest.mark.usefixtures("sound")
def test_all_of_twenty_tracks_sound() -> None:
    """One after the other, each in its own pitch: MIDI has room for fifteen."""
    sound = render.synthesize(piece(*([(2.0 * i, 1.9, 50 + i)] for i in range(20)), program=OCARINA))
    for i in range(20):
        heard = frequency(sound[int((i + 0.3) * RATE) : int((i + 0.9) * RATE)])
        assert heard == pytest.approx(440 * 2 ** ((50 + i - 69) / 12), rel=0.01)


@pytest.mark.usefixtures("sound")
def test_velocity_and_volume_are_heard() -> None:
    score = piece([(0, 1, 60), (4, 1, 60), (8, 1, 60)], program=ORGAN)
    score.tracks[0].notes[0].velocity = 30
    score.tracks[0].controls.append(ControlChangeTick(8 * QUARTER, 7, 40))
    quiet, loud, turned_down = np.split(abs(render.synthesize(score))[: 6 * RATE], 3)
    assert quiet.max() < loud.max() / 2
    assert turned_down.max() < loud.max() / 2


@pytest.mark.usefixtures("sound")
def test_overlapping_notes_of_one_pitch_end_one_by_one() -> None:
    sound = abs(render.synthesize(piece([(0, 4, 60), (1, 6, 60)], program=ORGAN))).max(axis=1)
    assert sound[3 * RATE : int(3.4 * RATE)].max() > 0.1  # the second still sounds
    assert sound[int(4.5 * RATE) :].max() < 0.01


@pytest.mark.usefixtures("sound")
def test_the_same_sound_twice(tunes: list[ScoreTick]) -> None:
    assert render.wav_bytes(tunes[1]) == render.wav_bytes(tunes[1])


@pytest.mark.usefixtures("sound")
def test_too_long_is_refused() -> None:
    with pytest.raises(InputError, match="lasts 36,000 s; expected at most 3,600 s"):
        render.synthesize(piece([(0, 1, 60), (71_999, 1, 60)]))


@pytest.mark.usefixtures("sound")
def test_silence_is_silent() -> None:
    assert not render.synthesize(symusic.Score(QUARTER)).any()
    trailing = piece([(0, 1, 60)])
    trailing.tracks[0].controls.append(ControlChangeTick(100 * QUARTER, 7, 40))  # long after the sound has ended
    assert len(render.synthesize(trailing)) == int((0.5 + render.TAIL_SECONDS) * RATE)


def test_without_a_synthesizer_the_user_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    with pytest.raises(InputError, match="pip install --no-deps 'tinysoundfont"):
        render.synthesize(piece([(0, 1, 60)]))


# picture


def test_a_song_with_its_prompt(shared: Path, tmp_path: Path) -> None:
    song = read_scores(shared / "corpora" / "pop909" / "208.mid")[0][0].clip(0, 128 * QUARTER)
    render.write_picture(song, tmp_path / "song.svg", boundary=32.0, title="Song $1_2$")
    text = words(tmp_path / "song.svg")
    assert {"prompt", "continuation", "Song $1_2$", "C4", "4/4", "bar"} <= set(text)
    assert {"Acoustic Grand Piano (MELODY)", "Acoustic Grand Piano (PIANO)"} <= set(text)
    assert {str(bar) for bar in range(1, 33)} <= set(text)


def test_drums_have_names_and_a_strip_of_their_own(shared: Path, tmp_path: Path) -> None:
    source = shared / "corpora" / "freedoom" / "freedoom1_d_e1m3.mid"
    render.render(source, tmp_path / "song.svg")
    text = words(tmp_path / "song.svg")
    assert {"Drums", "Bass Drum 1", "Acoustic Snare", "Church Organ", "Choir Aahs (Voice1)", "C3"} <= set(text)
    assert "freedoom1_d_e1m3" in text and "prompt" not in text
    only = render.piano_roll(piece([(0, 1, 36), (1, 1, 22)], drums=True))
    assert [label.get_text() for label in only.axes[0].get_yticklabels()] == ["percussion 22", "Bass Drum 1"]
    assert len(only.axes) == 1


def test_bars_follow_the_metres() -> None:
    metres = ((0, 7, 8), (7, 3, 4), (13, 6, 8))
    roll = render.piano_roll(piece([(0, 16, 60)], metres=metres))
    (axes,) = roll.axes
    assert list(axes.get_xticks()) == [0, 3.5, 7, 10, 13]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1\n7/8", "2", "3\n3/4", "4", "5\n6/8"]
    bars = render._bars(piece([(0, 16, 60)], metres=metres), 16)
    assert bars[0].beats().tolist() == [0.5, 1, 1.5, 2, 2.5, 3]
    assert bars[-1].beats().tolist() == [14.5]


def test_a_metre_that_changes_in_mid_bar_cuts_the_bar() -> None:
    bars = render._bars(piece(metres=((0, 4, 4), (6, 3, 4), (6, 2, 4), (8, 0, 4))), 8)
    assert [(bar.onset, bar.end) for bar in bars] == [(0, 4), (4, 6), (6, 8)]


@pytest.mark.parametrize(("boundary", "prompts", "continuations"), [(-1, 0, 0), (0, 0, 1), (64, 1, 1), (9e9, 1, 0)])
def test_the_boundary_is_labelled_once(tmp_path: Path, boundary: float, prompts: int, continuations: int) -> None:
    """64 quarters are the end of one system and the beginning of the next."""
    render.write_picture(piece([(0, 128, 60)]), tmp_path / "a.svg", boundary=boundary)
    text = words(tmp_path / "a.svg")
    assert (text.count("prompt"), text.count("continuation")) == (prompts, continuations)


def test_a_long_piece_is_shown_in_part_and_says_so(tmp_path: Path) -> None:
    song = piece([(float(i), 1, 60) for i in range(0, 2000, 4)])
    render.write_picture(song, tmp_path / "a.svg", title="Long")
    assert "Long, bars 1–128 of 500" in words(tmp_path / "a.svg")
    render.write_picture(song, tmp_path / "a.svg", boundary=1000.0)
    assert {"bars 187–314 of 500", "prompt", "continuation"} <= set(words(tmp_path / "a.svg"))
    with pytest.raises(InputError, match="more than 20,000 bars"):
        render.piano_roll(piece([(500_000, 1, 60)]))


@pytest.mark.parametrize("suffix", [".png", ".svg", ".SVG"])
def test_pictures_are_the_same_twice(tmp_path: Path, tunes: list[ScoreTick], suffix: str) -> None:
    for name in ("a", "b"):
        render.write_picture(tunes[2], tmp_path / f"{name}{suffix}", boundary=8.0)
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert first.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


def test_a_track_may_have_any_name() -> None:
    score = piece([(0, 1, 60)], [(0, 1, 64)], [(0, 1, 67)])
    for track, name in zip(score.tracks, ("$\\frac$", "\x00旋律\n" * 1000, ""), strict=True):
        track.name = name
    figure = render.piano_roll(score, title="a\n$\\b")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "Acoustic Grand Piano ($\\frac$)"
    assert all(len(label) < 60 for label in labels)
    figure.savefig(io.BytesIO(), format="png")  # where matplotlib would warn of characters it cannot draw


# both


WEIRD = {
    "nothing": piece(),
    "an empty track": piece([]),
    "one note": piece([(0, 1, 60)]),
    "no length": piece([(0, 0, 60), (0, 0, 127), (1, 0, 0)]),
    "drums only": piece([(0, 1, 36), (0.5, 1, 127), (3, 1, 0)], drums=True),
    "every percussion": piece([(i / 4, 0.1, i) for i in range(128)], drums=True),
    "an enormous bar": piece([(0, 900, 60)], metres=((0, 255, 1),)),
}


@pytest.mark.usefixtures("sound")
@pytest.mark.parametrize("name", WEIRD)
def test_weird_pieces(tmp_path: Path, name: str) -> None:
    render.write_picture(WEIRD[name], tmp_path / "a.png", boundary=1.0)
    render.write_wav(WEIRD[name], tmp_path / "a.wav")


@pytest.mark.usefixtures("sound")
def test_difficult_files(shared: Path, tmp_path: Path) -> None:
    """Each is drawn and heard, or refused in one line."""
    drawn, refusals = 0, list[str]()
    for source in sorted((shared / "hard" / "synthetic").glob("*.mid")):
        for out in (tmp_path / "a.svg", tmp_path / "a.wav"):
            if source.stem in ("long_silence_30min", "very_long_100k_notes") and out.suffix == ".wav":
                continue  # fine, but hundreds of megabytes
            try:
                render.render(source, out, boundary=2.0)
                drawn += 1
            except InputError as error:
                refusals.append(str(error))
    assert drawn > 100
    assert not [refusal for refusal in refusals if "\n" in refusal]


def test_other_suffixes_are_refused(tmp_path: Path, tunes: list[ScoreTick]) -> None:
    write_midi(tunes[0], tmp_path / "a.mid")
    with pytest.raises(InputError, match=r"a\.mp3 is neither .* \.wav, \.png or \.svg"):
        render.render(tmp_path / "a.mid", tmp_path / "a.mp3")
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        render.write_picture(tunes[0], tmp_path / "a.pdf")


def test_import_is_cheap_and_pyplot_stays_out() -> None:
    """Nothing heavy at import, and no global state of pyplot after a picture."""
    program = (
        "import sys; from musicgpt import render; import symusic\n"
        "assert not {'matplotlib', 'tinysoundfont', 'pretty_midi', 'torch'} & set(sys.modules)\n"
        "render.piano_roll(symusic.Score(480)); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
