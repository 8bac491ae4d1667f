"""What a vocabulary does not keep of a piece: counted for the ledger, and in words for who gave it as a prompt."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from symusic.core import ScoreTick

if TYPE_CHECKING:
    import miditok

LOSS_KINDS: tuple[str, ...] = ("notes_lost", "durations_clipped", "pauses_clipped", "metres_replaced", "tempos_clipped")
"""The keys of `Fidelity.losses`."""

INAUDIBLE = 1 / 200
"""Quarter notes: a smaller shift is none (2.5 ms at 120 a minute). abc2midi begins every note 1/480 late."""


class Fidelity:
    """Compares scores with what one tokenizer of miditok makes of them."""

    def __init__(self, wrapped: miditok.MusicTokenizer, scheme: str) -> None:
        self._wrapped = wrapped
        self._scheme = scheme

    def losses(self, document: ScoreTick, kept_notes: int) -> dict[str, int]:
        """Counts of notes lost, durations and pauses shortened, metres replaced or moved to a bar line, tempos bent."""
        beats = _Beats(document, by_metre=self._wrapped.config.use_time_signatures)
        notes = [track.notes.numpy() for track in document.tracks if len(track.notes)]
        longest = self._wrapped.durations[-1][0]  # beats
        tempos = list(document.tempos) if self._wrapped.config.use_tempos else []
        lowest, highest = min(self._wrapped.tempos), max(self._wrapped.tempos)
        clipped = pauses = 0
        if self._scheme != "midilike":  # which writes the end of a note, not its duration
            clipped = sum(int((part["duration"] > longest * beats.ticks_at(part["time"])).sum()) for part in notes)
        if self._scheme == "structured":  # the others write a long pause as several tokens
            onsets = np.unique(np.concatenate([np.zeros(1, dtype=np.int64), *(part["time"] for part in notes)]))
            pauses = int((np.diff(onsets) > longest * document.ticks_per_quarter).sum())
        return {
            "notes_lost": document.note_num() - kept_notes,
            "durations_clipped": clipped,
            "pauses_clipped": pauses,
            "metres_replaced": beats.misfits(set(self._wrapped.time_signatures)),
            "tempos_clipped": sum(not lowest - 2 <= tempo.qpm <= highest + 2 for tempo in tempos),
        }

    def changes(self, document: ScoreTick, again: ScoreTick, kept_notes: int) -> list[str]:
        """What is not kept as it is, in a line for each kind; `again` is the score that the tokens decode to."""
        losses = self.losses(document, kept_notes)
        lines = [counted(losses["notes_lost"], "note", "lost")] if losses["notes_lost"] else []
        lines += self._note_changes(document, again) + self._velocity_changes(document)
        longest = self._wrapped.durations[-1][0]
        if losses["pauses_clipped"]:
            lines.append(counted(losses["pauses_clipped"], "pause", f"shortened to {longest} beats"))
        if self._wrapped.config.use_time_signatures:
            known = set(self._wrapped.time_signatures)
            foreign = [s for s in document.time_signatures if (s.numerator, s.denominator) not in known]
            names = ", ".join(dict.fromkeys(f"{s.numerator}/{s.denominator}" for s in foreign))
            if foreign:
                lines.append(f"{counted(len(foreign), 'metre', 'left out')}, as the vocabulary has no {names}")
            if losses["metres_replaced"] > len(foreign):
                within = losses["metres_replaced"] - len(foreign)
                lines.append(f"{counted(within, 'metre', 'begun')} at a bar line, not within a bar")
        lines += self._tempo_changes(document, again)
        tracks = document.tracks
        config = self._wrapped.config
        metres = [s for s in document.time_signatures if (s.numerator, s.denominator) != (4, 4)]
        beyond = {  # 4/4 and 120 a minute are what is read where nothing is written
            "metre": 0 if config.use_time_signatures else len(metres),
            "tempo": 0 if config.use_tempos else sum(abs(tempo.qpm - 120) > 0.05 for tempo in document.tempos),
            "control": 0 if config.use_control_changes else sum(len(track.controls) for track in tracks),
            "pitch bend": 0 if config.use_pitch_bends else sum(len(track.pitch_bends) for track in tracks),
            "syllable": sum(len(track.lyrics) for track in tracks),
        }
        return lines + [
            f"{counted(count, name, 'left out')}: the vocabulary has none" for name, count in beyond.items() if count
        ]

    def _note_changes(self, document: ScoreTick, again: ScoreTick) -> list[str]:
        """Onsets and durations that are others, in quarter notes; empty where a note has no partner."""
        before, after = _by_voice(document), _by_voice(again)
        pairs = [_paired(before[voice], after[voice]) for voice in before if voice in after]
        pairs = [(a, b) for a, b in pairs if len(a) == len(b)]
        if not pairs:
            return []
        old, new = (np.concatenate(part) for part in zip(*pairs, strict=True))
        if len(old) < document.note_num():
            return []  # what is lost is said, and which is which cannot be
        lines: list[str] = []
        moved = np.abs(new[:, 0] - old[:, 0])
        if (moved > INAUDIBLE).any():
            lines.append(
                counted(int((moved > INAUDIBLE).sum()), "onset", f"moved to the grid ({_at_most(moved.max())})")
            )
        longest = self._wrapped.durations[-1][0]
        by_metre = self._wrapped.config.use_time_signatures
        beats = _Beats(document, by_metre=by_metre).ticks_at(old[:, 0] * document.ticks_per_quarter)
        change = new[:, 1] - old[:, 1]
        clipped = (old[:, 1] * document.ticks_per_quarter > longest * beats) & (change < -INAUDIBLE)
        if self._scheme == "midilike":
            clipped[:] = False
        without = old[:, 1] <= 0
        rounded = (np.abs(change) > INAUDIBLE) & ~clipped & ~without
        if clipped.any():
            lines.append(counted(int(clipped.sum()), "duration", f"shortened to {longest} beats"))
        if without.any():
            lines.append(counted(int(without.sum()), "note", "without length lengthened to the least there is"))
        if rounded.any():
            most = _at_most(np.abs(change[rounded]).max())
            lines.append(counted(int(rounded.sum()), "duration", f"rounded ({most})"))
        return lines

    def _velocity_changes(self, document: ScoreTick) -> list[str]:
        if not self._wrapped.config.use_velocities:
            return ["velocities left out: the vocabulary has none"]
        given = np.concatenate([track.notes.numpy()["velocity"].astype(np.int64) for track in document.tracks])
        rounding = np.abs(given[:, None] - np.asarray(self._wrapped.velocities, dtype=np.int64)).min(axis=1)
        if not rounding.any():
            return []
        return [counted(int((rounding > 0).sum()), "velocity", f"rounded (by at most {rounding.max()} of 127)")]

    def _tempo_changes(self, document: ScoreTick, again: ScoreTick) -> list[str]:
        if not self._wrapped.config.use_tempos or not len(document.tempos):
            return []
        # of several at one moment the last holds
        given = {tempo.time / document.ticks_per_quarter: tempo.qpm for tempo in document.tempos}
        kept = {tempo.time / again.ticks_per_quarter: tempo.qpm for tempo in again.tempos}
        starts = np.array(sorted(kept) or [0.0])
        values = np.array([kept.get(start, 120.0) for start in starts.tolist()])
        finest = 0.5 / min(steps for steps in self._wrapped.config.beat_res.values())
        times = np.array(sorted(given))
        was = np.array([given[time] for time in times.tolist()])
        index = np.searchsorted(starts, times + finest, side="right") - 1
        now = values[np.clip(index, 0, None)]
        off = np.abs(now - was) > 0.05
        if not off.any():
            return []
        if off.sum() == 1:
            return [f"tempo {was[off][0]:,.6g} to {now[off][0]:.6g}"]
        return [f"{off.sum()} tempos rounded (by at most {np.abs(now - was).max():,.3g} a minute)"]


class _Beats:
    """The beat of a score at any tick: that of the metre, or a quarter note where the scheme writes no metres."""

    def __init__(self, score: ScoreTick, *, by_metre: bool) -> None:
        self.per_quarter = score.ticks_per_quarter
        self.by_metre = by_metre
        self.signatures = sorted((s.time, s.numerator, s.denominator) for s in score.time_signatures)

    def ticks_at(self, times: np.ndarray) -> np.ndarray:
        """(N,) ticks -> (N,) length of the beat there, in ticks."""
        if not self.by_metre or not self.signatures:
            return np.full(len(times), float(self.per_quarter))
        starts = np.array([time for time, _, _ in self.signatures])
        lengths = np.array([4 * self.per_quarter / unit for _, _, unit in self.signatures])
        return lengths[np.clip(np.searchsorted(starts, times, side="right") - 1, 0, None)]

    def misfits(self, known: set[tuple[int, int]]) -> int:
        """Time signatures that are not `known`, or that begin within a bar."""
        count, start, bar = 0, 0, 4.0 * self.per_quarter
        for time, beats, unit in self.signatures:
            fits = (beats, unit) in known
            count += not fits or abs((time - start) / bar - round((time - start) / bar)) * bar > 1
            if fits:
                start, bar = time, 4.0 * self.per_quarter * beats / unit
        return count


def _by_voice(score: ScoreTick) -> dict[tuple[int, int], np.ndarray]:
    """(program or -1 for drums, pitch) -> (N, 3) onsets and durations in quarter notes, and velocities."""
    columns = []
    for track in score.tracks:
        notes = track.notes.numpy()
        program = np.full(len(notes["time"]), -1 if track.is_drum else track.program)
        columns.append(
            np.stack([program, notes["pitch"], notes["time"], notes["duration"], notes["velocity"]], axis=1).astype(
                float
            )
        )
    table = np.concatenate([np.zeros((0, 5)), *columns])
    table[:, 2:4] /= score.ticks_per_quarter
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    borders = np.flatnonzero(np.any(np.diff(table[:, :2], axis=0) != 0, axis=1)) + 1
    return {(int(part[0, 0]), int(part[0, 1])): part[:, 2:] for part in np.split(table, borders) if len(part)}


def _paired(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The notes of one voice and pitch in two scores, (N, 3) each -> both in an order that pairs them."""
    after = after[np.lexsort((after[:, 2], after[:, 1], after[:, 0]))]
    if len(before) == len(after):
        before = before[np.argsort(before[:, 0], kind="stable")]
        # onsets that fall together on the grid are told apart by what else they have
        before = before[np.lexsort((before[:, 2], before[:, 1], after[:, 0]))]
    return before, after


def counted(count: int, noun: str, rest: str) -> str:
    """3, "onset", "moved" -> "3 onsets moved"."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {noun if count == 1 else plural} {rest}"


def _at_most(quarters: float) -> str:
    """A distance -> "at most 1/48 quarter note"; never less than it is."""
    if quarters <= 0.5:
        return f"at most 1/{math.floor(1 / quarters + 1e-6)} of a quarter note"
    return f"at most {math.ceil(quarters * 10 - 1e-6) / 10:g} quarter notes"
