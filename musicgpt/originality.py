"""What a piece shares with the pieces a model was trained on: passages, with bars on both sides and a name.

In: a Score, and an `Index` of the training pieces. Out: `Originality`: what is shared, beside what is normal among
pieces that nobody copied. Transposition and tempo are set aside, velocities and programs too; drums are left out.

A piece is taken apart into lines: of all notes of one program the top and the bottom line. A line is the same in
every key as intervals from one note to the next. The index is those lines and nothing else.

1. Seeds: runs of RUN intervals that are in the piece and in the index. Those that are common there say nothing.
2. Passages: what lies around seeds in two lines, note against note at one transposition. An equal interval is worth
   its surprise in bits, -log2 of its share among those that follow the same interval in the index; a note of another
   pitch costs OTHER bits. A passage is the stretch of the highest sum.
3. Matches: passages in two pieces at one transposition and tempo that go on from or go with each other: in another
   line, or behind a note that was left out. What comes again within a match (a scale, an Alberti bass, an octave above)
   counts once; an equal rhythm counts too. A match of ENOUGH bits is shared, be it long and plain or short and odd.

How much of what was copied this finds, and what it finds where nobody copied: docs/originality.txt.

Sources: seeds that are extended as far as a score rises, Altschul, Gish, Miller, Myers and Lipman 1990, "Basic local
alignment search tool"; scores that are logarithms of odds, Karlin and Altschul 1990, "Methods for assessing the
statistical significance of molecular sequence features by using general scoring schemes".
"""

from __future__ import annotations

import json
import lzma
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from symusic.core import ScoreTick, TrackTickList

from musicgpt import midi
from musicgpt.config import BOXED, Progress, Report, no_progress, resolve_boxed
from musicgpt.corpus import style_of
from musicgpt.errors import InputError, ShardsError
from musicgpt.files import read_bytes, write_bytes
from musicgpt.lines import PACES, RUN, STEPS, WIDEST, Lines, lines_of
from musicgpt.marks import style_named
from musicgpt.phrases import read_phrase
from musicgpt.provenance import read_provenance
from musicgpt.shards import Shards, is_shards

if TYPE_CHECKING:
    from musicgpt.tokenizer import Tokenizer

NAME = "originality.safetensors.xz"
"""What the index is called beside a model's weights, of whose training pieces it is."""

COMMON = 300
"""A run that is there more often is no seed."""

MOST_HITS = 2**21
"""Pairs of places with the same seed, the rarest seeds first: music that goes on and on has more."""

MOST_PASSAGES = 500
"""Passages in one training piece, at one transposition, that are looked at, the best first."""

SEEDED = 20.0
"""Bits that the seeds of a passage have together."""

AROUND = 128
"""Notes before the first seed of a passage and behind its last that may belong to it."""

LEAST = 20.0
"""Bits of a passage that may be part of a match."""

ENOUGH = 60.0
"""Bits of a match."""

MOST = 6.0
"""Bits of one interval, at most."""

OTHER = 6.0
"""Bits that a note of another pitch costs."""

OTHER_PACE = 2.0
"""Bits that another rhythm costs; but all rhythms of a match together cost nothing."""

PAUSE = 8 * STEPS
"""The longest time between two passages of one match."""

SLOTS = 16
"""Bits of a hash that tells which runs of the index to look at."""

MAX_INDEX = 2**28
"""Bytes of an index when it is unpacked; that of four million notes has 25 MB."""

PARTS = {"pitch": "int8", "gap": "uint16", "bar": "int16", "lengths": "int32", "piece": "int32"}
"""Arrays of an index, in a safetensors file, compressed."""

NORMAL_PIECES = 400
"""Of about so many held-out pieces the normal share is taken, from the whole split at equal distances."""

NORMAL_BARS = 64
"""Of each the first so many: as much as a model makes."""


@dataclass(frozen=True)
class Match:
    """A passage that is in two pieces."""

    bars: tuple[int, int]
    """The first and the last, counted from 1."""
    piece: str
    """The name of the training piece."""
    piece_bars: tuple[int, int]
    transposition: int
    """Semitones from the training piece."""
    notes: int
    """Of the lines, those that are equal."""
    equal: float
    """Which share of the notes of the passage they are."""
    kind: str
    """exact, or near: notes or rhythm altered."""


@dataclass(frozen=True)
class Originality:
    """What a piece shares with the pieces of an index."""

    share_copied: float | None
    """Which share of the notes of its lines lie in passages that are shared; None where it has none, as drums."""
    longest_bars: int
    """Of the longest of them, begun ones included."""
    matches: list[Match]
    """Those with the most notes first; none that lies within the bars of one before it."""
    normal_share: float | None
    """The same figure for held-out pieces, on average; None where it was not measured."""

    def in_line(self) -> str:
        if self.share_copied is None:
            return "there are no notes but drums, which are not compared with training pieces"
        normal = "" if self.normal_share is None else f" (normal: {self.normal_share:.1%})"
        text = f"{self.share_copied:.1%} of the notes are in passages shared with training pieces{normal}"
        if not self.matches:
            return text
        longest = max(self.matches, key=lambda match: match.bars[1] - match.bars[0])
        here, there = (f"{first}-{last}" for first, last in (longest.bars, longest.piece_bars))
        return f"{text}, the longest in bars {here}, as in bars {there} of {longest.piece}"

    def in_words(self) -> str:
        rows = [("bars", "notes", "equal", "kind", "semitones", "its bars", "training piece")]
        for match in self.matches:
            here, there = (f"{first}-{last}" for first, last in (match.bars, match.piece_bars))
            what = (str(match.notes), f"{match.equal:.0%}", match.kind, f"{match.transposition:+d}")
            rows.append((here, *what, there, match.piece))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ("  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join([self.in_line(), *(table if self.matches else ())])


@dataclass(frozen=True)
class Passage:
    """Notes of a piece, and those `shift` later in the index, which are `by` semitones lower."""

    begin: int
    end: int
    shift: int
    by: int
    bits: float

    def overlap(self, other: Passage) -> int:
        """How many notes of the piece are in both."""
        return max(0, min(self.end, other.end) - max(self.begin, other.begin))


class Index:
    """The lines of training pieces, ready to be searched."""

    def __init__(self, names: list[str], lines: Lines, piece: np.ndarray, normal: dict[str, float]) -> None:
        self.names, self.lines = names, lines
        self.piece = piece
        """(lines,): which piece each line is of."""
        self.normal = normal
        """Folder of the first level, as a style -> the normal share in it; "" for all together."""
        self._slot = _slot(lines.run)
        self._bits = _surprise(lines.interval, 2 * WIDEST + 1)
        self._pace_bits = _surprise(lines.pace, PACES)

    @classmethod
    def of(cls, pieces: Iterable[tuple[str, ScoreTick]]) -> Index:
        """Raises: InputError: no piece has a note that is not a drum's."""
        names: list[str] = []
        parts, piece, n_lines = [], [], 0
        for name, score in pieces:
            part = lines_of(score)
            n = len(part.begins) - 1
            parts.append((part.pitch, part.gap, part.bar, part.line + np.int32(n_lines)))
            piece += [len(names)] * n
            names.append(name)
            n_lines += n
        if not piece:
            raise InputError("there is no music to compare with: expected pieces with notes that are not drums")
        lines = Lines(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        return cls(names, lines, np.array(piece, dtype=np.int32), {})

    @classmethod
    def of_shards(cls, shards: Shards, tokenizer: Tokenizer[Any], progress: Progress = no_progress) -> Index:
        """The training pieces without their transpositions; what is normal is measured on the test split, or val.

        Raises:
            ShardsError: they are no music.
            InputError: there is none to compare with.
        """
        if tokenizer.prints:
            raise ShardsError(f"{shards.directory} holds text; expected music")
        originals = _originals(shards, "train", tokenizer)
        index = cls.of(progress(originals, shards.split("train").n_documents, "indexing"))
        split = next((split for split in ("test", "val") if shards.split(split).n_documents), None)
        if split is not None:
            n = shards.split(split).n_documents
            step = -(-n // NORMAL_PIECES)
            held_out = islice(_originals(shards, split, tokenizer), 0, None, step)
            index.measure(progress(held_out, -(-n // step), "comparing"))
        return index

    def measure(self, held_out: Iterable[tuple[str, ScoreTick]]) -> None:
        """Take what is normal from pieces that are not in the index."""
        shares: dict[str, list[float]] = defaultdict(list)
        for name, score in held_out:
            if (share := self.compare(score, 1, NORMAL_BARS).share_copied) is not None:
                shares[style_of(name)].append(share)
        total = [share for own in shares.values() for share in own]
        means = {style: float(np.mean(own)) for style, own in shares.items()}
        self.normal = means | ({"": float(np.mean(total))} if total else {})

    @classmethod
    def read(cls, path: Path) -> Index:
        """Raises: InputError: no such file, or no index of this version."""
        try:
            unpacker = lzma.LZMADecompressor(memlimit=MAX_INDEX)
            data = unpacker.decompress(read_bytes(path, MAX_INDEX), MAX_INDEX)
            if not unpacker.eof:
                raise ValueError("it is cut short, or too large")
            about, parts = _metadata(data), load(data)
            for name, dtype in PARTS.items():
                if parts[name].dtype != dtype or parts[name].ndim != 1:
                    raise ValueError(f"{name} is not a row of {dtype}")
            pitch, gap, bar, lengths, piece = (parts[name] for name in PARTS)
            names, normal = [str(name) for name in about["names"]], about["normal"]
            fits = len(pitch) == len(gap) == len(bar) == lengths.sum() and len(piece) == len(lengths) > 0
            if not fits or lengths.min() < 1 or not 0 <= piece.min() <= piece.max() < len(names):
                raise ValueError("its parts do not fit each other")
            lines = Lines(
                np.cumsum(pitch, dtype=np.uint8).astype(np.int16),
                gap.astype(np.int32),
                np.cumsum(bar, dtype=np.uint16).astype(np.int32),
                np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            )
            return cls(names, lines, piece, {str(folder): float(share) for folder, share in normal.items()})
        except (
            lzma.LZMAError,
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise InputError(
                f"{path} is no index of training pieces ({error}): "
                "make one with musicgpt originality --against SHARDS -o FILE"
            ) from error

    def write(self, path: Path) -> None:
        """Raises: InputError: it cannot be written."""
        parts: dict[str, np.ndarray] = {
            # differences, which are the same wherever music comes again; they wrap around, and so do their sums
            "pitch": np.diff(self.lines.pitch, prepend=0),
            "gap": self.lines.gap,
            "bar": np.diff(self.lines.bar, prepend=0),
            "lengths": np.diff(self.lines.begins),
            "piece": self.piece,
        }
        about = {"names": self.names, "normal": self.normal}
        rows = {name: parts[name].astype(dtype) for name, dtype in PARTS.items()}
        write_bytes(path, lzma.compress(save(rows, {"about": json.dumps(about)})))

    def compare(
        self, score: ScoreTick, first: int = 1, last: int | None = None, style: str | None = None
    ) -> Originality:
        """What a piece, or those of its bars, shares with the pieces; `style`: of which to say what is normal."""
        lines = lines_of(score, first, last)
        copied = np.zeros(len(lines.pitch), dtype=bool)
        found: list[Match] = []
        for group in self._together(lines):
            bits, match = self._match(lines, group)
            if bits >= ENOUGH:
                found.append(match)
                for passage in group:
                    copied[passage.begin : passage.end] = True
        matches: list[Match] = []
        for match in sorted(found, key=lambda match: -match.notes):
            if not any(one.bars[0] <= match.bars[0] and match.bars[1] <= one.bars[1] for one in matches):
                matches.append(match)
        return Originality(
            share_copied=float(copied.mean()) if len(copied) else None,
            longest_bars=max((match.bars[1] - match.bars[0] + 1 for match in matches), default=0),
            matches=matches,
            normal_share=self.normal.get(style_named(style or ""), self.normal.get("")),
        )

    def _hits(self, lines: Lines) -> tuple[np.ndarray, np.ndarray]:
        """(hits,) twice: notes of the piece and of the index with which the same run ends."""
        runs, which, count = np.unique(lines.run, return_inverse=True, return_counts=True)
        there = np.zeros(1 << SLOTS, dtype=bool)
        there[_slot(runs[runs >= 0])] = True
        notes = np.flatnonzero(there[self._slot])
        at = np.minimum(np.searchsorted(runs, self.lines.run[notes]), len(runs) - 1)
        same = (runs[at] == self.lines.run[notes]) & (runs[at] >= 0)
        often = np.bincount(at[same], minlength=len(runs))
        rare_first = np.argsort(often, kind="stable")
        seed = often <= COMMON
        seed[rare_first] &= np.cumsum((often * count)[rare_first]) <= MOST_HITS
        same &= seed[at]
        notes, at = notes[same], at[same]
        order, firsts, times = np.argsort(which, kind="stable"), np.cumsum(count) - count, count[at]
        nth = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        return order[np.repeat(firsts[at], times) + nth], np.repeat(notes, times)

    def _passages(self, lines: Lines) -> Iterator[Passage]:
        if not len(lines.pitch):
            return
        ours, theirs = self._hits(lines)
        keys = np.stack(
            [theirs - ours, lines.pitch[ours] - self.lines.pitch[theirs], lines.line[ours], self.lines.line[theirs]]
        )
        order = np.lexsort((ours, *keys[::-1]))
        ours, keys = ours[order], keys[:, order]
        new = np.any(np.diff(keys, prepend=keys[:, :1] - 1) != 0, axis=0)
        starts = np.flatnonzero(new)
        if not len(starts):
            return
        bits = self._bits[lines.interval[np.maximum(np.arange(len(lines.pitch)) - 1, 0)], lines.interval]
        total = np.cumsum(bits)
        # what a seed adds to those before it
        gain = total[ours] - total[np.maximum(ours - RUN, np.where(new, 0, np.roll(ours, 1)))]
        enough = np.add.reduceat(gain, starts) >= SEEDED
        firsts, lasts = (ours[ends[enough]] for ends in (starts, np.append(starts[1:], len(ours)) - 1))
        for first, last, (shift, by, line, other) in zip(
            firsts, lasts, keys[:, starts[enough]].T.tolist(), strict=True
        ):
            begin = int(max(lines.begins[line], self.lines.begins[other] - shift, first - AROUND))
            end = int(min(lines.begins[line + 1], self.lines.begins[other + 1] - shift, last + AROUND))
            equal = lines.pitch[begin:end] - self.lines.pitch[begin + shift : end + shift] == by
            after_equal = np.concatenate([[False], equal[:-1]])
            for low, high, sum_of in _stretches(np.where(equal, bits[begin:end] * after_equal, -OTHER)):
                yield Passage(begin + low, begin + high, shift, by, sum_of)

    def _together(self, lines: Lines) -> list[list[Passage]]:
        """Passages in groups, each of one training piece at one transposition and tempo, without a long pause.

        Those that have not half of the bits are left out: rhythm alone makes no match.
        """
        apart: dict[tuple[int, int], list[Passage]] = defaultdict(list)
        for passage in self._passages(lines):
            piece = int(self.piece[self.lines.line[passage.begin + passage.shift]])
            apart[piece, passage.by].append(passage)
        groups: list[list[Passage]] = []
        for passages in apart.values():
            if sum(passage.bits for passage in passages) < ENOUGH / 2:
                continue
            those = [(self._span(lines, passage), passage) for passage in passages]
            growing: list[tuple[Span, list[Passage]]] = []
            for span, passage in sorted(_best_of(those), key=lambda pair: pair[0]):
                for i, (before, group) in enumerate(growing):
                    if not before.leads_to(span):
                        continue
                    # one note of ours is compared with one of theirs
                    begin = max([passage.begin, *(one.end for one in group if one.overlap(passage))])
                    if begin < passage.end:
                        group.append(replace(passage, begin=begin))
                        growing[i] = (max(before, span, key=lambda one: one.end), group)
                        break
                else:
                    growing.append((span, [passage]))
            groups += [group for _, group in growing if sum(one.bits for one in group) >= ENOUGH / 2]
        return groups

    def _span(self, lines: Lines, passage: Passage) -> Span:
        ends = passage.begin, passage.end - 1
        here, there = ([of.time(i + by) for i in ends] for of, by in ((lines, 0), (self.lines, passage.shift)))
        return Span(*here, *there)

    def _match(self, lines: Lines, group: list[Passage]) -> tuple[float, Match]:
        """What passages are together, and how many bits they have."""
        ours = np.concatenate([np.arange(passage.begin, passage.end) for passage in group])
        theirs = ours + np.concatenate([np.full(passage.end - passage.begin, passage.shift) for passage in group])
        first = np.zeros(len(ours), dtype=bool)
        first[np.cumsum([0, *(passage.end - passage.begin for passage in group[:-1])])] = True
        equal = lines.pitch[ours] - self.lines.pitch[theirs] == group[0].by
        gap, its_gap = lines.gap[ours], self.lines.gap[theirs]
        sound = ~first & (gap > 0) & (its_gap > 0)
        ratio = float(np.median(its_gap[sound] / gap[sound])) if sound.any() else 1.0
        in_time = first | (np.abs(gap * ratio - its_gap) <= np.maximum(1, 0.1 * its_gap))
        intervals = np.flatnonzero(equal & ~first & np.roll(equal, 1))
        _, new = np.unique(lines.run[ours[intervals]], return_index=True)  # what comes again counts once
        intervals = intervals[new]
        at, before = ours[intervals], ours[intervals] - 1
        pace = np.where(in_time[intervals], self._pace_bits[lines.pace[before], lines.pace[at]], -OTHER_PACE)
        bits = self._bits[lines.interval[before], lines.interval[at]].sum() + max(0.0, pace.sum())
        bits -= OTHER * (~equal).sum()
        bar, its_bar = lines.bar[ours], self.lines.bar[theirs]
        whole = len(group) == len({int(lines.line[passage.begin]) for passage in group})
        return float(bits), Match(
            bars=(int(bar.min()), int(bar.max())),
            piece=self.names[self.piece[self.lines.line[theirs[0]]]],
            piece_bars=(int(its_bar.min()), int(its_bar.max())),
            transposition=group[0].by,
            notes=int(equal.sum()),
            equal=float(equal.mean()),
            kind="exact" if whole and equal.all() and in_time.all() else "near",
        )


class Span(NamedTuple):
    """From when to when a passage is, in steps, here and in the training piece."""

    begin: int
    end: int
    its_begin: int
    its_end: int

    def leads_to(self, other: Span) -> bool:
        """Whether the other one, which does not begin before it, is where it would be if the same music went on."""
        if other.begin > self.end + PAUSE:
            return False
        ratio = (self.its_end - self.its_begin) / max(1, self.end - self.begin)
        most = STEPS * max(1.0, ratio)
        begin, end = (self.its_begin + ratio * (time - self.begin) for time in (other.begin, other.end))
        return abs(begin - other.its_begin) <= most and abs(end - other.its_end) <= most


def open_index(where: Path | None, progress: Progress = no_progress) -> Index:
    """An index, shards or a run to make one of, or a checkpoint that carries one; None, or `boxed`: that which ships.

    Raises:
        InputError: none of these.
        ShardsError: shards that cannot be used.
    """
    where = BOXED if where is None else resolve_boxed(where)
    shards = next(filter(is_shards, (where, where / "shards")), None)
    if shards is not None:
        from musicgpt.tokenizer import load_tokenizer  # it brings miditok, which an index that is made does without

        return Index.of_shards(Shards(shards), load_tokenizer(shards), progress)
    path = where / NAME if where.is_dir() else where
    if not path.is_file():
        raise InputError(
            f"{where} is no index, holds no {NAME} and no shards: expected one of these, which musicgpt prepare makes "
            f"of training pieces"
        )
    return Index.read(path)


def compare_file(path: str | Path, index: Index, report: Report = lambda text: None) -> Originality:
    """A file of music, a phrase or ABC -> what it shares; `report` gets a line for what had to be changed in it.

    Of a file that we made the new bars alone count, of one that was filled in those instruments that were filled; and
    its style says what is normal.

    Raises:
        InputError: it cannot be read.
    """
    score, remarks = read_phrase(str(path))
    for remark in remarks:
        report(remark)
    made = read_provenance(Path(path)) or {}
    first, last, style = 1, None, None
    with suppress(KeyError, TypeError, ValueError):
        style = str(made["settings"]["style"])
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        first, last = map(int, made["infill"]["bars"])
        programs = set(made["infill"]["programs"])
        score.tracks = TrackTickList([track for track in score.tracks if midi.rank_of(track) in programs])
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        first = midi.BarLines(score).bar_at(round(made["boundary_quarters"] * score.ticks_per_quarter))
    return index.compare(score, first, last, style)


def _originals(shards: Shards, split: str, tokenizer: Tokenizer[Any]) -> Iterator[tuple[str, ScoreTick]]:
    """The documents of a split by name, each in its own key, without exercises in filling in."""
    shard = shards.split(split)
    names = iter(_names(shards.directory / "ledger.jsonl", split))
    for n, first in enumerate(shard.documents[:-1].tolist()):
        ids = shard.sequence(first).tolist()
        if tokenizer.whole.isdisjoint(ids[:3]):
            yield next(names, f"{split} {n + 1}"), tokenizer.decode(ids)


def _names(ledger: Path, split: str) -> Iterator[str]:
    """What the documents of a split are called, in order: as their file, with a number where that has several."""
    broken = (OSError, ValueError, KeyError, TypeError, AttributeError)
    with suppress(*broken), open(ledger, encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            splits = line.get("splits", [])
            for n, own in enumerate(splits, 1):
                if split in own:
                    yield line["path"] if len(splits) == 1 else f"{line['path']} ({n})"


def _best_of(passages: list[tuple[Span, Passage]]) -> list[tuple[Span, Passage]]:
    """Without those that a better one has most notes of, at about the same place: music that repeats itself."""
    best: list[tuple[Span, Passage]] = []
    ends = np.zeros((2, MOST_PASSAGES), dtype=np.int64)  # of those that are in `best`
    for span, passage in sorted(passages, key=lambda pair: -pair[1].bits)[:MOST_PASSAGES]:
        n = len(best)
        both = np.minimum(ends[1, :n], passage.end) - np.maximum(ends[0, :n], passage.begin)
        same = np.flatnonzero(2 * both > passage.end - passage.begin).tolist()
        if not any(best[i][0].leads_to(span) for i in same):
            ends[:, n] = passage.begin, passage.end
            best.append((span, passage))
    return best


def _stretches(worth: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Where it adds up to the most, and to how much; and then on either side of that, as long as it is LEAST."""
    left = [(0, len(worth))]
    while left:
        low, high = left.pop()
        total = np.concatenate([[0.0], np.cumsum(worth[low:high])])
        rise = total - np.minimum.accumulate(total)
        stop = int(rise.argmax())
        if rise[stop] >= LEAST:
            start = int(total[: stop + 1].argmin())  # the first: with a note that is equal behind one that is not
            yield low + start, low + stop, float(rise[stop])
            left += [(low, low + start), (low + stop, high)]


def _slot(run: np.ndarray) -> np.ndarray:
    """A hash of SLOTS bits."""
    factor = np.uint32(0x9E3779B1)  # 2**32 over the golden ratio: multiplying by it spreads what is close
    return ((run.astype(np.uint32) * factor) >> np.uint32(32 - SLOTS)).astype(np.uint16)


def _surprise(values: np.ndarray, kinds: int) -> np.ndarray:
    """(kinds, kinds) bits of each value behind each other, by how often it is there, at most MOST."""
    counts = np.bincount(values[:-1] * kinds + values[1:], minlength=kinds * kinds).reshape(kinds, kinds) + 0.5
    bits: np.ndarray = np.log2(counts.sum(axis=1, keepdims=True) / counts)
    return bits.clip(max=MOST)


def _metadata(data: bytes) -> dict[str, Any]:
    """What stands beside the arrays in a safetensors file, which the library reads from files only."""
    length = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["about"])
    return {"names": list(about["names"]), "normal": dict(about["normal"])}
