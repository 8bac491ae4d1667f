"""symusic Scores <-> ids, by the schemes of miditok: thin, total, and honest about what does not fit.

One id stream for all tracks, with programs, drums, velocities and, where the scheme has them, tempos and time
signatures; a byte-pair vocabulary learned on top, or none.

transformers' `AutoTokenizer` cannot read these files: load them with `musicgpt.tokenizer.load_tokenizer`, or
tokenizer.json with miditok (`miditok.REMI(params=…)`).

Sources: REMI, Huang and Yang 2020; TSD, Fradet et al. 2021; MIDI-Like, Oore et al. 2018; Structured, Hadjeres and
Crestel 2021; byte-pair merges on music, Fradet et al. 2023.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from symusic.core import NoteTickList, ScoreTick, TrackTickList

from musicgpt import midi, render, similarity
from musicgpt.contrast import Contrast
from musicgpt.controls import Bins, measured
from musicgpt.errors import InputError, TokenizerError, UsageError
from musicgpt.fidelity import LOSS_KINDS, Fidelity, counted
from musicgpt.files import read_json, write_bytes, write_json
from musicgpt.marks import CONTROL_MARKS, STYLE, SUFFIX, Levels, spelled, style_named
from musicgpt.phrases import read_phrase
from musicgpt.vetting import vetted_config, vetted_merges
from musicgpt.windows import Windows

if "miditok" not in sys.modules:  # without the loaders that it can do without: they bring torch, a second and 200 MB
    sys.modules["miditok.pytorch_data"] = None  # type: ignore[assignment]
    try:
        import miditok
    finally:
        del sys.modules["miditok.pytorch_data"]
else:
    import miditok

if TYPE_CHECKING:
    import tokenizers

SCHEMES = {"remi": "REMI", "tsd": "TSD", "midilike": "MIDILike", "structured": "Structured"}
"""Our name -> miditok's class."""

REFUSED = {
    "cpword": "it sums several vocabularies in one position; a GPT-2 reads one",
    "octuple": "it sums several vocabularies in one position; a GPT-2 reads one",
    "mumidi": "it sums several vocabularies in one position; a GPT-2 reads one",
    "mmm": "it writes one track after the other, so the end of a prompt is not the end of its time",
    "pertok": "it is unstable: it raises on some of its own encodings",
    "beat": "it is unstable: encoding what it decoded gives other ids each time",
}
"""Schemes of miditok 3.1.0 that we do not take, and why (tried on the corpora of the tests)."""

REFUSED_MODELS = {
    "Unigram": "training it is not deterministic",
    "WordPiece": "it drops what its longest word cannot hold",
}

GRID = {(0, 2): 24, (2, 8): 12, (8, 16): 6, (16, 64): 2}
"""Beats from, to: steps a beat. 24 is the least that holds sixteenths, triplets and thirty-seconds, also in 2/2."""

METRES = {2: range(1, 7), 4: range(1, 17), 8: range(1, 19), 16: range(1, 25)}
"""Beats in a bar for each beat unit."""

TEMPOS = (20, 300, 71)
"""Lowest, highest in quarter notes a minute, and how many: one every 4."""

NOTE_TOKENS = ("Pitch_", "PitchDrum_", "NoteOn_", "DrumOn_")
"""Each note has exactly one token that begins so."""

PLAIN_SHARE = 0.2
"""Of the pieces, those that are prepared without any controls."""

UNLEARNED = "this tokenizer has not learned what its controls mean"

CHR_ID_START = 33
"""miditok spells base id i as the character of this code plus i when it learns merges."""


class MidiTokenizer:
    """`Tokenizer` for music. Make one with `new` or `load`; `learn` adds a vocabulary of merges."""

    suffixes: tuple[str, ...] = midi.SUFFIXES
    units: tuple[str, ...] = ("notes", "seconds")
    prints = False
    compares = True
    max_document_ids: int | None = 2**18  # the longest real piece we met, a string quartet by Grieg, has 251,700
    default_vocab_size: int | None = None
    loss_kinds = LOSS_KINDS

    def __init__(self, wrapped: miditok.MusicTokenizer) -> None:
        self.wrapped = wrapped
        self.bins: Bins | None = None
        """What the marks of controls mean; learned, or loaded."""
        self._index()

    @classmethod
    def new(cls, name: str, marks: Sequence[str] = ()) -> MidiTokenizer:
        """remi, tsd, midilike or structured (in any case) -> a tokenizer without merges, with these marks.

        Raises:
            TokenizerError: unknown, or refused with the reason.
        """
        key = name.lower().replace("-", "").replace("_", "")
        if key not in SCHEMES:
            raise TokenizerError(_why_refused(name))
        metred = key != "structured"  # its stream has neither tempos nor time signatures
        lowest, highest, count = TEMPOS
        config = miditok.TokenizerConfig(
            pitch_range=(0, 127),
            drums_pitch_range=(0, 127),
            beat_res=GRID,
            num_velocities=32,
            special_tokens=["PAD", "BOS", "EOS", *marks],
            use_programs=True,
            program_changes=metred,  # a program token where it changes, not before every note
            use_tempos=metred,
            tempo_range=(lowest, highest),
            num_tempos=count,
            delete_equal_successive_tempo_changes=True,
            use_time_signatures=metred,
            time_signature_range={unit: list(beats) for unit, beats in METRES.items()},
        )
        return cls(getattr(miditok, SCHEMES[key])(config))

    @classmethod
    def load(cls, directory: Path) -> MidiTokenizer:
        """Raises: TokenizerError: no tokenizer.json of miditok there, or one that is refused."""
        made = cls._load(directory)
        if made.has_controls:
            made.bins = Bins.load(directory)
        return made

    @classmethod
    def _load(cls, directory: Path) -> MidiTokenizer:
        path = directory / "tokenizer.json"
        try:
            values = read_json(path)
        except InputError as error:
            raise TokenizerError(str(error)) from error
        scheme = str(values.get("tokenization"))
        if scheme not in SCHEMES.values():
            raise TokenizerError(f"{path}: {_why_refused(scheme)}")
        config = values.get("config")
        if not isinstance(config, dict) or not (
            config.get("use_programs") and config.get("one_token_stream_for_programs")
        ):
            raise TokenizerError(f"{path} writes each track on its own; expected one stream with programs")
        try:
            config = vetted_config(config, miditok.TokenizerConfig().to_dict(serialize=True), str(path))
            special = config.get("special_tokens") or []
            missing = [name for name in ("PAD", "BOS", "EOS") if f"{name}_None" not in special]
            if missing:
                raise TokenizerError(f"{path} has no token for {missing[0]}; expected PAD, BOS and EOS")
            if scheme == "MIDILike" and 0 not in config.get("programs", [0]):
                raise TokenizerError(f"{path} has no program 0, which notes are of before any program is named")
            kept = {"tokenization": scheme, "config": config}
            made = cls(_from_json(kept))
            kinds = {token.split("_")[0] for token in made.wrapped.vocab if token not in special}
            if not kinds.isdisjoint(token.split("_")[0] for token in special):
                raise TokenizerError(f"{path} has special tokens that are spelled as tokens of music")
            if values.get("_model") is None:
                return made
            learned = json.loads(values["_model"])
            model = learned["model"]["type"]
            if model in REFUSED_MODELS:
                raise TokenizerError(
                    f"{path} was trained as {model}, which is refused: {REFUSED_MODELS[model]}; expected BPE"
                )
            base = values["_vocab_base"]
            merges = vetted_merges(learned, str(path))
            if (
                base.keys() != made.wrapped.vocab.keys()
                or set(base.values()) != set(range(len(base)))
                or any(merges.token_to_id(chr(id + CHR_ID_START)) != id for id in base.values())
            ):
                raise TokenizerError(f"{path} holds another vocabulary than its config describes")
            return cls(_from_json(kept, base, merges))
        except TokenizerError:
            raise
        except Exception as error:  # miditok raises nearly anything on a field that it does not expect
            raise TokenizerError(f"{path} cannot be loaded by miditok: {type(error).__name__}: {error}") from error

    def _index(self) -> None:
        """What the vocabulary is needed for over and over, by id."""
        base = {id: token for token, id in self.wrapped.vocab.items()}
        if self.wrapped.is_trained:
            spelled: dict[str, int] = self.wrapped.vocab_model
            self.expansions: list[tuple[str, ...]] = [()] * len(spelled)
            for text, id in spelled.items():
                # miditok's own training leaves a mark between words, which stands for no token
                self.expansions[id] = tuple(base[ord(c) - CHR_ID_START] for c in text if ord(c) - CHR_ID_START in base)
        else:
            self.expansions = [(base[id],) for id in range(len(base))]
        self._marks = {name: int(self.wrapped[name]) for name in self.wrapped.special_tokens}
        self._special = set(self._marks.values())
        self._fidelity = Fidelity(self.wrapped, self.name)
        self._notes = np.array([sum(t.startswith(NOTE_TOKENS) for t in tokens) for tokens in self.expansions])
        self._windows = Windows(self.wrapped, self.expansions)

    @property
    def name(self) -> str:
        return type(self.wrapped).__name__.lower()

    @property
    def vocab_size(self) -> int:
        return len(self.expansions)

    @property
    def bos_id(self) -> int:
        return int(self.wrapped["BOS_None"])

    @property
    def eos_id(self) -> int:
        return int(self.wrapped["EOS_None"])

    @property
    def pad_id(self) -> int | None:
        return int(self.wrapped["PAD_None"])

    @property
    def unscored(self) -> frozenset[int]:
        return frozenset(self._special - {self.eos_id})

    @property
    def whole(self) -> frozenset[int]:
        return frozenset({self.mark(SUFFIX)} if self.has([SUFFIX]) else ())

    def has(self, marks: Iterable[str]) -> bool:
        return set(marks) <= set(self.wrapped.special_tokens)

    def mark(self, name: str) -> int:
        """The id of a mark. Raises: TokenizerError: this tokenizer was made without it."""
        if name not in self._marks:
            raise TokenizerError(f"this tokenizer has no mark {name}: it was made without it")
        return self._marks[name]

    @property
    def has_controls(self) -> bool:
        """Whether it was made with the marks of controls."""
        return self._marks.keys() >= set(CONTROL_MARKS)

    @property
    def styles(self) -> dict[str, int]:
        """The ids of the styles it was made with, by their names."""
        return {name.removeprefix(STYLE): id for name, id in self._marks.items() if name.startswith(STYLE)}

    def opening(self, style: str | None = None) -> list[int]:
        """How a sequence begins: BOS, and the style that is asked for. Raises: UsageError: one that there is not."""
        if style is None:
            return [self.bos_id]
        if (id := self.styles.get(style_named(style))) is None:
            known = ", ".join(self.styles)
            raise UsageError(
                f"--style {style}: this model has no such style; it has {known}"
                if known
                else f"--style {style}: this model was trained without styles (prepare --styles)"
            )
        return [self.bos_id, id]

    @property
    def complete(self) -> bool:
        return self.bins is not None or not self.has_controls

    def read(self, path: Path) -> tuple[list[ScoreTick], list[str]]:
        return midi.read_scores(path)

    def write(self, document: ScoreTick, path: Path) -> None:
        midi.write_midi(document, path)

    def prompt(self, text: str) -> tuple[ScoreTick, list[str]]:
        """A music file, a tune in ABC or the name of a phrase -> a score within the vocabulary's range.

        Raises:
            InputError: none of these, or no music in it.
        """
        score, remarks = read_phrase(text)
        score, moved = self.fitted(score)
        return score, remarks + moved

    def fitted(self, document: ScoreTick) -> tuple[ScoreTick, list[str]]:
        """Notes beyond the vocabulary's pitches, which miditok drops, moved into them by octaves; and how many.

        Drums are not moved, as another octave is another drum; those beyond the range are left out.

        Raises:
            InputError: no note is left.
        """
        config = self.wrapped.config
        copy = document.copy()
        moved = dropped = 0
        for track in copy.tracks:
            own_drums = track.is_drum and config.use_pitchdrum_tokens
            lowest, highest = config.pitch_range
            if own_drums:  # and miditok decodes none beyond the other range
                lowest, highest = max(lowest, config.drums_pitch_range[0]), min(highest, config.drums_pitch_range[1])
            notes = track.notes.numpy()
            pitch = notes["pitch"].astype(np.int64)
            octaves = np.ceil(np.maximum(lowest - pitch, 0) / 12) - np.ceil(np.maximum(pitch - highest, 0) / 12)
            fitting = pitch + 12 * octaves.astype(np.int64)
            # drums stay where they are, and so does a note that no octave brings into a range narrower than one
            keeps = (fitting >= lowest) & (fitting <= highest) & ~(track.is_drum & (octaves != 0))
            if keeps.all() and not octaves.any():
                continue
            moved += int((keeps & (octaves != 0)).sum())
            dropped += int((~keeps).sum())
            track.notes = NoteTickList.from_numpy(
                notes["time"][keeps],
                notes["duration"][keeps],
                fitting[keeps].astype(notes["pitch"].dtype),
                notes["velocity"][keeps],
            )
        if not moved and not dropped:
            return document, []
        if copy.note_num() == 0:
            raise InputError(
                f"none of the prompt's {document.note_num()} notes is in the range of this model's vocabulary"
            )
        remarks = [counted(moved, "note", "out of range moved by octaves")] if moved else []
        return copy, [*remarks, *([counted(dropped, "drum stroke", "out of range left out")] if dropped else [])]

    def encode(self, document: ScoreTick) -> list[int]:
        """Raises: InputError: miditok cannot write this piece."""
        return list(self._tokens(document, merged=True).ids)

    def _tokens(self, document: ScoreTick, *, merged: bool) -> miditok.TokSequence:
        try:
            return self.wrapped.encode(self._on_grid(document), encode_ids=merged, no_preprocess_score=True)
        except (ArithmeticError, LookupError, ValueError, MemoryError) as error:  # its faults, on odd input
            raise InputError(f"miditok cannot encode this piece ({type(error).__name__}: {error})") from error

    def marked(self, document: ScoreTick, ids: Sequence[int]) -> list[int]:
        """Behind the id that reaches it, each segment has its marks; `ids` may be the beginning of the document's.

        In a fifth of all pieces there are none, else half of the instruments (one alone: always) are spoken of in a
        segment, and each control of theirs and of all together is there with probability 1/2, so that all stay
        optional. What is there depends on the ids alone.
        """
        if self.bins is None:
            raise TokenizerError(UNLEARNED)
        random = np.random.default_rng(zlib.crc32(np.array(ids, dtype="<u4").tobytes()))
        score = self._on_grid(document)
        segments = measured(score)
        begins = [segment.begin / score.ticks_per_quarter for segment in segments]
        return self.interspersed(ids, begins, self.said([self.bins.levels(segment) for segment in segments], random))

    def altered(self, ids: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return self._contrast(ids, random)

    @cached_property
    def _contrast(self) -> Contrast:
        if self.bins is None:
            raise TokenizerError(UNLEARNED)
        return Contrast(self._marks, self.bos_id, self.vocab_size, self.bins.there)

    def said(self, levels: Iterable[Levels], random: np.random.Generator) -> list[list[int]]:
        """What marks say of each segment, perhaps nothing: see `marked`."""
        plain = random.random() < PLAIN_SHARE
        return [[] if plain else [self.mark(mark) for mark in spelled(_some(each, random))] for each in levels]

    def interspersed(self, ids: Sequence[int], begins: Sequence[float], said: Sequence[list[int]]) -> list[int]:
        """Behind the id that reaches it, in quarter notes, what is said of each segment; nothing of one without ids."""
        places = self._windows.reached(ids, [round(begin * self.wrapped.time_division) for begin in begins])
        made: list[int] = []
        reached = 0
        for i, (place, marks) in enumerate(zip(places, said, strict=False)):
            made += ids[reached:place]
            reached = place
            if place < len(ids) and place not in places[i + 1 : i + 2]:
                made += marks
        return made + list(ids[reached:])

    def levels(self, document: ScoreTick, begin: float = 0, end: float | None = None) -> list[Levels]:
        """What marks would say of each segment, from `begin` to `end` in quarter notes."""
        assert self.bins is not None
        document = self._on_grid(document)
        first, last = (None if at is None else round(at * document.ticks_per_quarter) for at in (begin, end))
        return [self.bins.levels(segment) for segment in measured(document, first or 0, last)]

    def _on_grid(self, score: ScoreTick) -> ScoreTick:
        """A copy with every value one the vocabulary has, in an order that depends on those values alone.

        miditok keeps the order of the file within a moment: two files of the same notes would give different ids,
        and a file another sequence after each pass.
        """
        score = self.wrapped.preprocess_score(score)
        score.tracks = TrackTickList(sorted(score.tracks, key=lambda track: (track.is_drum, track.program)))
        for track in score.tracks:
            notes = track.notes.numpy()
            order = np.lexsort((notes["velocity"], notes["duration"], notes["pitch"], notes["time"]))
            track.notes = NoteTickList.from_numpy(
                notes["time"][order], notes["duration"][order], notes["pitch"][order], notes["velocity"][order]
            )
        if self.name == "structured":
            self._place_by_shifts(score)
        return score

    def _place_by_shifts(self, score: ScoreTick) -> None:
        """Move onsets, in place, to where one time shift a note can reach; else the errors of long ones add up."""
        shifts = np.array(sorted(self.wrapped._tpb_tokens_to_ticks[score.ticks_per_quarter].values()))  # noqa: SLF001
        tracks = [track.notes.numpy() for track in score.tracks]
        onsets = np.unique(np.concatenate([notes["time"] for notes in tracks] or [np.zeros(0, dtype=np.int32)]))
        placed, reached = np.zeros_like(onsets), 0
        for i, onset in enumerate(onsets.tolist()):
            if onset > reached:
                nearest = int(np.abs(shifts - (onset - reached)).argmin())
                reached += int(shifts[nearest])
            placed[i] = reached
        for track, notes in zip(score.tracks, tracks, strict=True):
            time = placed[np.searchsorted(onsets, notes["time"])]
            track.notes = NoteTickList.from_numpy(time, notes["duration"], notes["pitch"], notes["velocity"])

    def decode(self, ids: Sequence[int]) -> ScoreTick:
        tokens = [token for id in ids if id not in self._special for token in self.expansions[id]]
        sequence = miditok.TokSequence(tokens=tokens, ids=[self.wrapped.vocab[token] for token in tokens])
        score: ScoreTick = self.wrapped.decode(sequence)
        for track in score.tracks:  # only ungrammatical ids give such notes; a file could not hold them
            if any(not (1 <= n.velocity <= 127 and n.duration > 0) for n in track.notes):
                track.notes = NoteTickList([n for n in track.notes if 1 <= n.velocity <= 127 and n.duration > 0])
        return score.sort(inplace=True)

    def window(self, ids: Sequence[int] | np.ndarray, first: int) -> tuple[int, list[int]]:
        return self._windows.window(ids, first)

    def losses(self, document: ScoreTick, ids: Sequence[int]) -> dict[str, int]:
        return self._fidelity.losses(document, self._note_count(ids))

    def changes(self, document: ScoreTick, ids: Sequence[int]) -> list[str]:
        return self._fidelity.changes(document, self.decode(ids), self._note_count(ids))

    def _note_count(self, ids: Sequence[int]) -> int:
        return int(self._notes[np.asarray(ids, dtype=np.int64)].sum())

    def variants(self, document: ScoreTick, n: int) -> list[ScoreTick]:
        """The piece, then its transpositions by +1, -1, +2, -2 … semitones, those that stay within 0 to 127."""
        found = [document]
        for i in range(1, n):
            copy = midi.transposed(document, (i + 1) // 2 * (1 if i % 2 else -1))
            if copy is not None:
                found.append(copy)
        return found

    def fingerprint(self, document: ScoreTick) -> str:
        return midi.fingerprint(document)

    def likeness(self, document: ScoreTick) -> list[str]:
        return similarity.likeness(document)

    def measure(self, document: ScoreTick) -> dict[str, float]:
        return {"notes": float(document.note_num()), "seconds": midi.seconds(document)}

    def learn(self, documents: Iterable[ScoreTick], vocab_size: int | None) -> None:
        if not self.complete:
            documents = list(documents)
            self.bins = Bins.learn(measured(self._on_grid(document)) for document in documents)
        if vocab_size is None:
            return
        if self.wrapped.is_trained:
            raise TokenizerError("this tokenizer has learned its vocabulary; merges cannot be added to it")
        if vocab_size <= self.vocab_size:
            raise TokenizerError(
                f"a vocabulary of {vocab_size} ids was asked for; {self.name} has {self.vocab_size} before any merge: "
                f"ask for more, or leave --vocab-size out for no merges"
            )

        from tokenizers import Tokenizer, models, trainers

        characters = {chr(id + CHR_ID_START): id for id in self.wrapped.vocab.values()}
        model = Tokenizer(models.BPE(vocab=characters, merges=[]))  # a bar is a word: no merge crosses a bar line
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=list(characters), show_progress=False)
        words = [self._spelled_bars(document) for document in documents]  # first: the library hears no Ctrl-C
        model.train_from_iterator(words, trainer)
        self.wrapped = _from_json(self.wrapped.to_dict(), self.wrapped.vocab, model)
        self._index()

    def _spelled_bars(self, document: ScoreTick) -> list[str]:
        sequence = self._tokens(document, merged=False)
        return ["".join(chr(id + CHR_ID_START) for id in bar.ids) for bar in sequence.split_per_bars()]

    def as_html(self, document: ScoreTick, prompt: ScoreTick | None) -> str:
        return render.as_html(document, prompt)

    def save(self, directory: Path) -> None:
        text = json.dumps(self.wrapped.to_dict(), indent=1)
        write_bytes(directory / "tokenizer.json", (text + "\n").encode())
        write_json(
            directory / "tokenizer_config.json",
            {
                "kind": "midi",
                "tokenizer_class": "MidiTokenizer",
                "scheme": self.name,
                "vocab_size": self.vocab_size,
                **({"styles": self.styles} if self.styles else {}),
                "note": "load with musicgpt.tokenizer.load_tokenizer; transformers' AutoTokenizer cannot read it",
            },
        )
        if self.bins is not None:
            self.bins.save(directory)


def _some(levels: Levels, random: np.random.Generator) -> Levels:
    """Each with probability 1/2, of half of the instruments: one is asked of alone more often than all are."""
    ranks = dict.fromkeys(rank for rank, _ in levels if rank is not None)
    silent = {rank for rank in ranks if len(ranks) > 1 and random.random() < 0.5}
    return {key: level for key, level in levels.items() if key[0] not in silent and random.random() < 0.5}


def _from_json(
    values: dict[str, Any], base: dict[str, int] | None = None, merges: tokenizers.Tokenizer | None = None
) -> miditok.MusicTokenizer:
    """What `to_dict` of miditok gave, and a vocabulary of merges on the ids of the base tokens -> a tokenizer."""
    if base is not None and merges is not None:
        values = values | {
            "_vocab_base": base,
            "_model": merges.to_str(),  # miditok takes the keys in order, and needs the model before the last
            "_vocab_base_byte_to_token": {chr(id + CHR_ID_START): token for token, id in base.items()},
        }
    with tempfile.TemporaryDirectory(prefix="musicgpt-") as folder:  # miditok reads from files only
        write_json(Path(folder) / "tokenizer.json", values)
        return getattr(miditok, values["tokenization"])(params=Path(folder) / "tokenizer.json")


def _why_refused(name: str) -> str:
    reason = REFUSED.get(name.lower())
    names = ", ".join(SCHEMES)
    if reason:
        return f"the tokenizer {name} is refused: {reason}. Choose one of {names}"
    return f"no tokenizer is called {name!r}; choose one of {names}, or give a directory that holds one"
