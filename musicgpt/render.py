"""symusic Score -> what one hears and sees: stereo sound, and a piano roll to put into a paper.

Sound comes from TinySoundFont and the General MIDI soundfont inside the pretty_midi package; no system library has a
part in it. Volume, pan and expression of a track are obeyed, its pedal and pitch bends are not. The same score gives
the same bytes on every call, in each of the three formats.
"""

from __future__ import annotations

import base64
import html
import io
import math
import wave
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import symusic
from symusic.core import ScoreTick

from musicgpt.errors import InputError
from musicgpt.files import write_bytes
from musicgpt.midi import BarLines, read_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLE_RATE = 44_100
TAIL_SECONDS = 2.0
"""What sounds on after the last note has ended: the release of a piano or a cymbal."""
MAX_SECONDS = 3600.0
"""An hour of stereo samples is 1.3 GB; a piece that takes longer is refused."""
MAX_VOICES = 512
PEAK = 0.89
"""The loudest sample of every piece that sounds: 1 dB below clipping."""
PCM_MAX = 32_767
CONTROLS = {7: 100, 10: 64, 11: 127}
"""The controllers that are obeyed (volume, pan, expression), each with what General MIDI starts from."""

MAX_BARS = 20_000
QUARTERS_PER_SYSTEM = 64
MAX_SYSTEMS = 8
MAX_LEGEND = 16
MAX_NAME, MAX_TITLE = 28, 90
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00")
"""Okabe and Ito's palette, safe for the colour-blind; its yellow is darkened to show on white."""
HATCHES = ("", "//////", "......")
"""Where the colours come round again."""
DRUM_COLOUR, PROMPT_COLOUR, LINE_COLOUR, BEAT_COLOUR = "#333333", "#EEEEEE", "#A0A0A0", "#D6D6D6"
FAINTEST = 0.35
"""Opacity of a note of velocity 0; the loudest note of the piece has 1."""
FONT = "DejaVu Sans"
STYLE: Any = {
    "font.family": FONT,  # comes with matplotlib: the same picture on every machine
    "font.size": 8,
    "axes.linewidth": 0.6,
    "hatch.linewidth": 0.4,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.columnspacing": 1.4,
    "legend.handlelength": 1.2,
    "legend.labelspacing": 0.3,
    "savefig.dpi": 200,
    "text.parse_math": False,  # a track may be named $
    "svg.fonttype": "none",  # words stay words: to be searched, and edited for a paper
    "svg.hashsalt": "musicgpt",
}
# inches
QUARTER, MIN_WIDTH, MAX_WIDTH = 0.16, 3.6, 9.6
SEMITONE, MIN_ROLL, MAX_ROLL, DRUM_ROW, MAX_STRIP = 0.05, 1.0, 3.0, 0.13, 2.6
LEFT, LEFT_OF_DRUMS, RIGHT, LINE, GAP, BETWEEN = 0.45, 1.35, 0.15, 0.17, 0.06, 0.62


def synthesize(score: ScoreTick, *, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Score -> (samples, 2) float32, the loudest at PEAK; lasts to the end of the last note and TAIL_SECONDS more.

    Raises:
        InputError: the piece lasts longer than MAX_SECONDS, or tinysoundfont is not installed.
    """
    try:
        from tinysoundfont import Synth
    except ImportError as error:
        raise InputError(
            "sound needs tinysoundfont, which is not installed: pip install --no-deps 'tinysoundfont>=0.3.7,<0.4'"
        ) from error
    in_seconds: Any = score.to(symusic.TimeUnit.second)
    # by the notes: a piece may go on in controllers that nobody hears
    length = max((note.end for track in in_seconds.tracks for note in track.notes), default=0.0)
    if not length <= MAX_SECONDS:
        raise InputError(f"the piece lasts {length:,.0f} s; expected at most {MAX_SECONDS:,.0f} s: cut it first")
    sound = np.zeros((math.ceil((length + TAIL_SECONDS) * sample_rate), 2), dtype=np.float32)
    synth: Any = Synth(samplerate=sample_rate)
    font = synth.sfload(_soundfont(), max_voices=MAX_VOICES)
    ends, controls, begins = range(3)  # what comes first of all that falls on one sample
    events: list[tuple[int, int, int, int, int]] = []
    for channel, track in enumerate(in_seconds.tracks):  # TinySoundFont has more than MIDI's 16: a track, a channel
        # drums always by the standard kit: General MIDI gives the programs of the drum channel no meaning
        synth.program_select(channel, font, 0, 0 if track.is_drum else min(max(track.program, 0), 127), track.is_drum)
        for number, value in CONTROLS.items():
            synth.control_change(channel, number, value)
        for control in track.controls:
            if control.number in CONTROLS:
                events.append((round(control.time * sample_rate), controls, channel, control.number, control.value))
        for note in track.notes:
            if note.velocity > 0:  # 0 would be an end
                begin, end = round(note.start * sample_rate), round(note.end * sample_rate)
                events.append((begin, begins, channel, note.pitch, note.velocity))
                events.append((max(end, begin + 1), ends, channel, note.pitch, 0))  # else it ends before it begins
    done = 0
    for sample, kind, channel, number, value in sorted(events):
        if sample >= len(sound):
            break
        if sample > done:
            synth.generate_simple(sample - done, sound[done:sample].data.cast("B"))
            done = sample
        if kind == ends:
            synth.noteoff(channel, number)
        elif kind == begins:
            synth.noteon(channel, number, value)
        else:
            synth.control_change(channel, number, value)
    synth.generate_simple(len(sound) - done, sound[done:].data.cast("B"))
    peak = max(float(sound.max()), -float(sound.min()))
    if peak > 0:
        sound *= PEAK / peak
    return sound


def _soundfont() -> bytes:
    spec = find_spec("pretty_midi")
    assert spec is not None
    assert spec.origin is not None, "pretty_midi is a package with files"
    return next(Path(spec.origin).parent.glob("*.sf2")).read_bytes()


def wav_bytes(score: ScoreTick) -> bytes:
    """Score -> a .wav file: 16-bit PCM, stereo. Raises: InputError: as `synthesize`."""
    sound = synthesize(score)
    sound *= PCM_MAX  # in place: these are the largest arrays here
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(2)
        wav.setsampwidth(2)
        wav.setframerate(SAMPLE_RATE)
        wav.writeframes(np.rint(sound, out=sound).astype("<i2").data)
    return file.getvalue()


def write_wav(score: ScoreTick, path: Path) -> None:
    """Raises: InputError: as `synthesize`, or the file cannot be written."""
    write_bytes(path, wav_bytes(score))


@dataclass(frozen=True)
class Bar:
    """One bar: onset and end in quarter notes, metre as (numerator, denominator)."""

    number: int
    onset: float
    end: float
    metre: tuple[int, int]

    def beats(self) -> np.ndarray:
        """Where its beats begin, without the first; three eighths make one in 6/8, 9/8 and 12/8."""
        numerator, denominator = self.metre
        compound = denominator >= 8 and numerator > 3 and numerator % 3 == 0
        return np.arange(self.onset, self.end, 4 / denominator * (3 if compound else 1))[1:]


@dataclass(frozen=True)
class Part:
    """One colour and one line of the legend; notes are (n, 4): onset and duration in quarters, pitch, velocity."""

    name: str
    colour: str
    hatch: str
    notes: np.ndarray


def piano_roll(score: ScoreTick, *, boundary: float | None = None, title: str | None = None) -> Figure:
    """Score -> a picture of its notes in systems of up to 16 bars of 4/4, drums in a strip of their own.

    Opacity is velocity. `boundary`, in quarter notes from the beginning, is where a prompt ends and its continuation
    begins. A piece of more than MAX_SYSTEMS systems is shown in part (around the boundary if there is one), which the
    title says.

    Raises:
        InputError: the piece has more than MAX_BARS bars.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    parts, drums = _parts(score)
    everything = np.concatenate([part.notes for part in [*parts, drums]])
    bars = _bars(score, float((everything[:, 0] + everything[:, 1]).max(initial=0.0)))
    systems = _systems(bars, boundary)
    shown = systems[0][0].number, systems[-1][-1].number
    if shown != (1, len(bars)):
        title = f"{title + ', ' if title else ''}bars {shown[0]}–{shown[1]} of {len(bars)}"
    kit = [int(pitch) for pitch in np.unique(drums.notes[:, 2])]
    pitches = np.concatenate([part.notes[:, 2] for part in parts]) if parts else np.zeros(0)
    low, high = (int(pitches.min()) - 2, int(pitches.max()) + 2) if len(pitches) else (59, 73)
    low, high = low - max(0, 14 - high + low) // 2, high + (max(0, 14 - high + low) + 1) // 2  # an octave at least
    roll = 0.0 if kit and not parts else min(max((high - low) * SEMITONE, MIN_ROLL), MAX_ROLL)
    strip = min(len(kit) * DRUM_ROW, MAX_STRIP)

    longest = max(system[-1].end - system[0].onset for system in systems)
    width = min(max(longest * QUARTER, MIN_WIDTH), MAX_WIDTH)
    left = LEFT_OF_DRUMS if kit else LEFT
    entries = [*parts, drums] if kit else parts
    if len(entries) > MAX_LEGEND:
        rest = len(entries) - MAX_LEGEND + 1
        entries = [*entries[: MAX_LEGEND - 1], Part(f"and {rest} more", "none", "", drums.notes)]
    name_inches = 0.068 * max((len(part.name) for part in entries), default=1) + 0.4
    columns = min(max(1, int(width / name_inches)), max(1, len(entries)))
    head = LINE * (1.5 * bool(title) + math.ceil(len(entries) / columns)) + (0.12 if boundary is None else 0.3)
    each = roll + (GAP if roll and kit else 0) + strip
    size = left + width + RIGHT, head + len(systems) * each + (len(systems) - 1) * BETWEEN + 0.38

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        x, y = left / size[0], 1 - 0.08 / size[1]
        if title:
            figure.text(x, y, _plain(title, MAX_TITLE), va="top", size=10, weight="bold")
            y -= 1.5 * LINE / size[1]
        if entries:
            handles = [Patch(facecolor=p.colour, hatch=p.hatch * 2, edgecolor="white", linewidth=0) for p in entries]
            names = [part.name for part in entries]
            figure.legend(handles, names, ncols=columns, loc="upper left", bbox_to_anchor=(x, y))
        top = size[1] - head
        for number, system in enumerate(systems):
            span = system[0].onset, system[-1].end
            axes: list[Axes] = []
            for height, below in ((roll, top - roll), (strip, top - each)):
                if height:
                    across = width * (span[1] - span[0]) / longest
                    box = (left / size[0], below / size[1], across / size[0], height / size[1])
                    axes.append(figure.add_axes(box))
            for ax in axes:
                _grid(ax, system, None if number == 0 else systems[number - 1][-1].metre, boundary, width / longest)
                ax.tick_params(labelbottom=ax is axes[-1])
            axes[-1].annotate("bar", (0, 0), (-12, -4), "axes fraction", "offset points", ha="right", va="top")
            if roll:
                _pitch_axis(axes[0], low, high)
                for part in parts:
                    _notes(axes[0], span, part, part.notes[:, 2], everything[:, 3].max())
            if kit:
                _drum_axis(axes[-1], kit)
                _notes(axes[-1], span, drums, np.searchsorted(kit, drums.notes[:, 2]), everything[:, 3].max())
            if boundary is not None:
                _boundary_labels(axes[0], span, boundary, last=number == len(systems) - 1)
            top -= each + BETWEEN
    return figure


def _parts(score: ScoreTick) -> tuple[list[Part], Part]:
    """The tracks with notes, and all drums as one."""
    import pretty_midi

    tracks, drums = [], [np.zeros((0, 4))]
    for track in score.tracks:
        columns = track.notes.numpy()
        notes = np.stack([columns[key].astype(float) for key in ("time", "duration", "pitch", "velocity")], axis=1)
        notes[:, :2] /= score.ticks_per_quarter
        if track.is_drum:
            drums.append(notes)
        elif len(notes):
            instrument = pretty_midi.program_to_instrument_name(min(max(track.program, 0), 127))
            tracks.append((instrument, _plain(track.name, MAX_NAME), notes))
    shared = Counter(instrument for instrument, *_ in tracks)
    # files name their tracks as they like, most say "MIDI out #2": the name only helps to tell two pianos apart
    names = [f"{ins} ({own})" if own and own != ins and shared[ins] > 1 else ins for ins, own, _ in tracks]
    total, seen = Counter(names), Counter[str]()
    parts = []
    for i, (name, (*_, notes)) in enumerate(zip(names, tracks, strict=True)):
        seen[name] += 1
        again, colour = divmod(i, len(COLOURS))
        numbered = f"{name} #{seen[name]}" if total[name] > 1 else name
        parts.append(Part(numbered, COLOURS[colour], HATCHES[again % len(HATCHES)], notes))
    return parts, Part("Drums", DRUM_COLOUR, "", np.concatenate(drums))


def _plain(text: str, length: int) -> str:
    """One line of characters that the font has; matplotlib warns of every other."""
    from matplotlib.font_manager import findfont, get_font

    has = get_font(findfont(FONT)).get_char_index
    line = " ".join("".join(c if has(ord(c)) or c.isspace() else "?" for c in text[: 4 * length]).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def _bars(score: ScoreTick, end: float) -> list[Bar]:
    """The bars up to `end` (quarters), one at least."""
    lines = BarLines(score)
    count = lines.bar_at(round(end * score.ticks_per_quarter) - 1)
    if count > MAX_BARS:
        raise InputError(f"the piece has more than {MAX_BARS:,} bars: cut it before it is drawn")
    onsets = [lines.begin(number) / score.ticks_per_quarter for number in range(1, count + 2)]
    return [Bar(number, *span, lines.metre(number)) for number, span in enumerate(pairwise(onsets), 1)]


def _systems(bars: list[Bar], boundary: float | None) -> list[list[Bar]]:
    """The bars to show, in systems of about equal length."""
    limit = MAX_SYSTEMS * QUARTERS_PER_SYSTEM
    begin = min(max(0.0, (boundary or 0.0) - limit / 2), max(0.0, bars[-1].end - limit))
    bars = [bar for bar in bars if bar.end > begin]
    bars = [bar for bar in bars if bar.end <= bars[0].onset + limit] or bars[:1]
    count = math.ceil((bars[-1].end - bars[0].onset) / QUARTERS_PER_SYSTEM)
    each = math.ceil(len(bars) / count)
    if each > 4:
        each = math.ceil(each / 4) * 4  # phrases are of four bars more often than not
    return [bars[i : i + each] for i in range(0, len(bars), each)]


def _grid(
    ax: Axes, system: list[Bar], metre: tuple[int, int] | None, boundary: float | None, quarter_inches: float
) -> None:
    """Bar and beat lines, bar numbers, the prompt's shade, metres that differ from the one before (`metre`)."""
    onset, end = system[0].onset, system[-1].end
    ax.set_xlim(onset, end)
    if boundary is not None:
        ax.axvspan(onset, min(max(boundary, onset), end), color=PROMPT_COLOUR, linewidth=0, zorder=0)
        if onset <= boundary <= end:
            ax.axvline(boundary, color="black", linewidth=1.2, linestyle=(0, (4, 2)), zorder=4)
    whole = ax.get_xaxis_transform()
    beats = np.concatenate([bar.beats() for bar in system])
    if len(beats) * 0.03 < (end - onset) * quarter_inches:  # closer lines would be a grey wall
        ax.vlines(beats, 0, 1, transform=whole, colors=BEAT_COLOUR, linewidths=0.4, zorder=1)
    ax.vlines([bar.onset for bar in system], 0, 1, transform=whole, colors=LINE_COLOUR, linewidths=0.7, zorder=1.5)
    step = 1
    while step < len(system) and (end - onset) * quarter_inches / len(system) * step < 0.25:
        step *= 2
    labels = []
    for i, bar in enumerate(system):
        changed = bar.metre != (metre if i == 0 else system[i - 1].metre)
        number = str(bar.number) if i % step == 0 else ""
        labels.append(f"{number}\n{bar.metre[0]}/{bar.metre[1]}" if changed else number)
    ax.set_xticks([bar.onset for bar in system], labels)
    ax.tick_params(axis="x", length=0, pad=2)
    ax.set_axisbelow(True)


def _pitch_axis(ax: Axes, low: int, high: int) -> None:
    ax.set_ylim(low, high)
    octaves = [pitch for pitch in range(low, high + 1) if pitch % 12 == 0]
    names = {0: "C", 4: "E", 7: "G"} if len(octaves) < 2 else {0: "C"}
    ticks = [pitch for pitch in range(low, high + 1) if pitch % 12 in names]
    ax.set_yticks(ticks, [f"{names[pitch % 12]}{pitch // 12 - 1}" for pitch in ticks])
    ax.hlines(octaves, 0, 1, transform=ax.get_yaxis_transform(), colors=LINE_COLOUR, linewidths=0.4, zorder=1)
    ax.tick_params(axis="y", length=2, pad=2)


def _drum_axis(ax: Axes, kit: list[int]) -> None:
    import pretty_midi

    ax.set_ylim(-0.5, len(kit) - 0.5)
    step = math.ceil(len(kit) * DRUM_ROW / MAX_STRIP)  # more kinds than lines of text have room
    rows = range(0, len(kit), step)
    ax.set_yticks(rows, [pretty_midi.note_number_to_drum_name(kit[i]) or f"percussion {kit[i]}" for i in rows])
    ax.tick_params(axis="y", length=0, pad=3, labelsize=6.5)


def _notes(ax: Axes, span: tuple[float, float], part: Part, rows: np.ndarray, loudest: float) -> None:
    """The notes of a part that sound within the span, as rectangles; those of drums have no length worth showing."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgb

    onset, duration = part.notes[:, 0], np.maximum(part.notes[:, 1], 1 / 16)
    if part.colour == DRUM_COLOUR:
        duration = np.full_like(onset, 0.2)
    chosen = (onset < span[1]) & (onset + duration > span[0])
    left, right, row = onset[chosen], (onset + duration)[chosen], rows[chosen]
    bottom, top = row - 0.4, row + 0.4
    corners = list(np.stack([left, bottom, left, top, right, top, right, bottom], axis=1).reshape(-1, 4, 2))
    opacity = FAINTEST + (1 - FAINTEST) * part.notes[chosen, 3] / max(loudest, 1.0)
    faces = np.column_stack([np.tile(to_rgb(part.colour), (len(row), 1)), opacity])
    edge = "white" if part.hatch else part.colour
    ax.add_collection(
        PolyCollection(corners, facecolors=faces, edgecolors=edge, linewidths=0.3, hatch=part.hatch or None, zorder=3)
    )


def _boundary_labels(ax: Axes, span: tuple[float, float], boundary: float, *, last: bool) -> None:
    above: Any = {"transform": ax.get_xaxis_transform(), "va": "bottom", "size": 8, "style": "italic"}
    if span[0] < boundary and (boundary <= span[1] or last):
        ax.text(min(boundary, span[1]), 1.015, "prompt ", ha="right", **above)
    if span[0] <= boundary < span[1]:
        ax.text(boundary, 1.015, " continuation", ha="left", **above)


def write_picture(score: ScoreTick, path: Path, *, boundary: float | None = None, title: str | None = None) -> None:
    """Score -> .png or .svg, by the suffix; the options are those of `piano_roll`.

    Raises:
        InputError: another suffix, too many bars, or the file cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise InputError(f"{path} is no picture by its name; expected .png or .svg")
    write_bytes(path, picture_bytes(piano_roll(score, boundary=boundary, title=title), kind))


def picture_bytes(figure: Figure, kind: str, style: Any = STYLE) -> bytes:
    """A figure, drawn in a style -> a png or svg file; the same bytes each time: no date, no random names."""
    import matplotlib

    picture = io.BytesIO()
    with matplotlib.rc_context(style):
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(picture, format=kind, metadata=metadata)
    return picture.getvalue()


def as_html(score: ScoreTick, prompt: ScoreTick | None = None) -> str:
    """The piano roll, a prompt and its continuation told apart, and a player where sound can be made."""
    boundary = prompt.end() / prompt.ticks_per_quarter if prompt is not None else None
    picture = picture_bytes(piano_roll(score, boundary=boundary), "svg").decode()
    picture = picture[picture.index("<svg") :]
    try:
        sound = base64.b64encode(wav_bytes(score)).decode()
    except InputError as error:
        return f"{picture}<p>{html.escape(str(error))}</p>"
    return f'{picture}<br><audio controls src="data:audio/wav;base64,{sound}"></audio>'


def render(source: Path, out: Path, *, boundary: float | None = None) -> None:
    """A file of music -> .wav, .png or .svg of its first piece, by the suffix of `out`.

    Raises:
        InputError: another suffix, or what `read_scores`, `write_wav` and `write_picture` raise.
    """
    suffix = out.suffix.lower()
    if suffix not in (".wav", ".png", ".svg"):
        raise InputError(f"{out} is neither sound nor picture by its name; expected .wav, .png or .svg")
    pieces, _ = read_scores(source)
    if suffix == ".wav":
        write_wav(pieces[0], out)
    else:
        write_picture(pieces[0], out, boundary=boundary, title=source.stem)
