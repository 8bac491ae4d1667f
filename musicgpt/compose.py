"""A model with its tokenizer: prompt in, finished piece out. The public face is `musicgpt.load`.

Music is sampled under the grammar: it begins on the bar line behind the prompt, has the length that was asked for to
the bar or the beat, and is well formed. Text is sampled as it comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from inspect import signature
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from symusic.core import ScoreTick

from musicgpt import __version__, checkpoint, midi
from musicgpt.config import BOXED, Report
from musicgpt.constraints import Constraints, program_name
from musicgpt.cpu_engine import CpuEngine
from musicgpt.drafts import Drafts
from musicgpt.editing import Original
from musicgpt.engine import TorchEngine
from musicgpt.errors import InputError, UsageError
from musicgpt.fill import Filled, Filler, Wanted
from musicgpt.generate import generate, log_likelihood
from musicgpt.grammar import MAX_INSTRUMENTS, Grammar
from musicgpt.grid_tokenizer import IDS_PER_BAR, GridTokenizer
from musicgpt.infill import Frames
from musicgpt.int8 import is_int8
from musicgpt.marks import DRUMS, Levels
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.model import GPT
from musicgpt.originality import NAME, Index, Originality
from musicgpt.phrases import read_phrase
from musicgpt.provenance import provenance_text, read_provenance
from musicgpt.request import Answer, Row, check_asked, read_options
from musicgpt.tasks import TASKS, first_sentences
from musicgpt.tokenizer import Tokenizer
from musicgpt.vocabulary import Vocabulary

MAX_SAMPLES = 1024
"""Each sample has a cache of its own."""

MAX_PROMPT_IDS = 100_000
"""They are written into the result, and mido reads at most a million characters of text."""

PATIENCE_SECONDS = 2.0
"""A request waits so long for the faster engine: to load what was compiled before takes less, to compile more."""

MAX_NEW_TOKENS = 512
"""Where no length is asked for."""

MOST_ATTEMPTS = 5
"""A request that forbids longer copies is made so often before it gives the least copied."""

WRITTEN_ANEW = "the file cannot be edited, {}: it is written anew, with a channel for each track"

Prompt = str | Path | Sequence[int] | Any
"""A file, a phrase that ships, ABC or text written out; ids; or a document (a Score, for music)."""


@dataclass(frozen=True)
class Piece(Answer):
    """One result: the ids of the prompt and those behind it, and both, or the new part alone, as a document."""

    prompt_ids: list[int]
    new_ids: list[int]
    include_prompt: bool
    tokenizer: Tokenizer[Any]
    boundary: float = 0.0
    """Quarter notes from the beginning of the prompt to the bar line at which the new music begins."""
    end: float | None = None
    """Quarter notes to the closing bar line, where a length was asked for."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What made it: settings, seed, hashes, prompt; written into a MIDI file."""
    guessed: tuple[int, int] = (0, 0)
    """How many ids were guessed ahead, to save passes of the model, and how many of them came true."""
    asked: list[Levels] = field(default_factory=list)
    controls: list[Levels] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.new_ids if self.include_prompt else self.new_ids

    @property
    def document(self) -> Any:
        """A `symusic.Score` from a model of music, a str from a model of text."""
        if self.include_prompt or not isinstance(self.tokenizer, MidiTokenizer):  # those begin where they begin
            return self.tokenizer.decode(self.ids)
        score = self.tokenizer.decode(self.prompt_ids + self.new_ids)
        return midi.from_tick(score, round(self.boundary * score.ticks_per_quarter))

    @property
    def score(self) -> Any:
        """The `symusic.Score` of a piece of music."""
        return self.document

    def originality(self, index: Index) -> Originality:
        """What its new bars share with the pieces of an index."""
        score = self.score
        begin = round(self.boundary * score.ticks_per_quarter) if self.include_prompt else 0
        style = self.provenance.get("settings", {}).get("style")
        return index.compare(score, midi.BarLines(score).bar_at(begin), style=style)

    def _repr_html_(self) -> str:
        boundary = self.boundary if self.include_prompt and self.prompt_ids else None
        prompt = self.tokenizer.decode(self.prompt_ids) if boundary is not None else None
        return self.tokenizer.as_html(self.document, prompt)

    def save(self, path: str | Path) -> None:
        """Raises: InputError: the file cannot be written."""
        if self.tokenizer.prints:
            self.tokenizer.write(self.document, Path(path))
            return
        score = self.document
        end = None if self.end is None else self.end - (0 if self.include_prompt else self.boundary)
        tick = None if end is None else round(end * score.ticks_per_quarter)
        midi.write_midi(score, Path(path), end=tick, text=provenance_text(self.provenance))


class LanguageModel:
    """What `musicgpt.load` gives: a GPT-2 and the tokenizer it was trained with.

    >>> model = musicgpt.load("runs/mine")                             # doctest: +SKIP
    >>> piece = model.generate(prompt="phrase.mid", bars=8, seed=7)    # doctest: +SKIP
    >>> piece.save("out.mid")                                          # doctest: +SKIP
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer[Any],
        engine: TorchEngine | None = None,
        directory: Path | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.engine = engine or TorchEngine(model)
        self.directory = directory
        """The checkpoint, where it is one."""

    @cached_property
    def index(self) -> Index | None:
        """The pieces it was trained on, where its checkpoint carries them. Raises: InputError: it cannot be read."""
        path = None if self.directory is None else self.directory / NAME
        return Index.read(path) if path is not None and path.is_file() else None

    @property
    def midi_tokenizer(self) -> MidiTokenizer:
        """Raises: UsageError: a model of text has none."""
        if not isinstance(self.tokenizer, MidiTokenizer):
            raise UsageError(
                "this model is of text, or of voices on a grid; expected one of remi, tsd, midilike or structured"
            )
        return self.tokenizer

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the grammar knows of the ids. Raises: UsageError: a model of text has no such thing."""
        return Vocabulary(self.midi_tokenizer)

    @property
    def weights(self) -> str:
        """Which of WEIGHT_KINDS its matrices are."""
        return "int8" if is_int8(self.model) else str(self.model.wpe.weight.dtype).removeprefix("torch.")

    @cached_property
    def hashes(self) -> dict[str, str]:
        return {
            "checkpoint": checkpoint.model_sha256(self.model),
            "tokenizer": checkpoint.tokenizer_sha256(self.tokenizer),
        }

    def generate(self, prompt: Prompt = None, **options: Any) -> Piece:
        """One piece; the options are those of `generate_many`."""
        return self.generate_many(1, prompt, **options)[0]

    def generate_many(
        self,
        num_samples: int,
        prompt: Prompt = None,
        *,
        best_of: int = 1,
        keep: str | None = None,
        max_copied_bars: int | None = None,
        against: Index | None = None,
        seed: int = 0,
        report: Report = lambda text: None,
        **options: Any,
    ) -> list[Piece]:
        """Continue a prompt (None begins a piece) in `num_samples` ways, as one batch.

        `bars`, `seconds`: so much new music, exactly that many bars, or within a beat of so many seconds;
        `max_new_tokens`: at most so many ids, cut back to the last complete note (512 where nothing is asked for).
        `prompt_bars`, `prompt_tokens`: use the first of the prompt only. `include_prompt`: whether it is in the result.
        `seed`: another number, another result. `best_of`: make so many for each, and keep the one the model finds most
        likely. `keep`: "best" gives one piece, that which is nearest to the controls asked for. `max_copied_bars`:
        where a passage in more bars is shared with a training piece, make it again with the next seed, and of
        MOST_ATTEMPTS keep the least copied; the training pieces are those of an index `against` which it is compared,
        or of the checkpoint. The fields of `Constraints` say what the music keeps to, those of `SamplingConfig` how
        ids are chosen. `report` gets a line for each thing in the prompt that had to be changed.

        Raises:
            InputError: the prompt cannot be read, or no note fits what was asked.
            UsageError: a number outside its range, or something this tokenizer cannot express.
            TypeError: an option there is not.
        """
        if not 1 <= best_of <= MAX_SAMPLES:
            raise UsageError(f"best_of {best_of}: expected at least 1, at most {MAX_SAMPLES:,}")
        if keep and best_of > 1:
            raise UsageError("keep and best_of, which keeps the likeliest: expected one of them")
        if max_copied_bars is not None:
            asked: dict[str, Any] = {"best_of": best_of, "keep": keep, **options}
            attempts = (
                partial(self.generate_many, num_samples, prompt, seed=seed + n if n else seed, report=say, **asked)
                for n, say in enumerate([report] + [lambda text: None] * (MOST_ATTEMPTS - 1))
            )
            return self._least_copied(attempts, max_copied_bars, against, report)
        stream = Stream(self, prompt, num_samples=num_samples * best_of, seed=seed, report=report, **options)
        stream.settings["best_of"] = best_of
        check_asked(stream.constraints, stream.sampling, keep)
        if keep is not None:
            stream.settings["keep"] = keep
        for _ in stream.steps():
            pass
        rows = range(num_samples)
        if keep is not None:
            found = []
            for row in rows:
                with suppress(InputError):  # nothing that could be kept
                    found.append(stream.piece(row))
            return [min(found, key=lambda piece: piece.distance) if found else stream.piece()]
        if best_of > 1:
            scores = [stream.likelihood(row) for row in range(num_samples * best_of)]
            rows_of = [range(i * best_of, (i + 1) * best_of) for i in rows]
            return [stream.piece(max(of, key=scores.__getitem__), i) for i, of in enumerate(rows_of)]
        return [stream.piece(row, row) for row in rows]

    def _least_copied(
        self, attempts: Iterable[Callable[[], list[Piece]]], most_bars: int, against: Index | None, report: Report
    ) -> list[Piece]:
        """Attempts until every piece is original enough -> each piece from the attempt in which it was most so.

        One that fails, behind one that did not, is passed over.
        """
        index = against or (None if self.tokenizer.prints else self.index)
        if not isinstance(most_bars, int) or most_bars < 0:
            raise UsageError(f"max_copied_bars {most_bars!r}: expected at least 0")
        if index is None:
            raise UsageError(
                "max_copied_bars: this checkpoint holds no index of its training pieces: say against which"
            )
        kept: list[tuple[int, Piece]] = []
        made = 0
        for attempt in attempts:
            try:
                pieces = attempt()
            except InputError:
                if not kept:
                    raise
                continue
            made += 1
            found = [(piece.originality(index).longest_bars, piece) for piece in pieces]
            kept = [min(pair, key=itemgetter(0)) for pair in zip(kept or found, found, strict=True)]
            if max(bars for bars, _ in kept) <= most_bars:
                break
        if made > 1:
            longest = max(bars for bars, _ in kept)
            report(f"made {made} times for passages that training pieces have; the longest is now in {longest} bars")
        return [piece for _, piece in kept]

    def stream(self, prompt: Prompt = None, **options: Any) -> Stream:
        """One piece as it is made: iterate over its notes, or a text's characters; `.piece()` closes it, at any time.

        >>> stream = model.stream("phrase.mid", bars=8)             # doctest: +SKIP
        >>> for note in stream:                                     # doctest: +SKIP
        ...     print(note.onset_beats, note.pitch)
        >>> stream.piece().save("out.mid")                          # doctest: +SKIP
        """
        return Stream(self, prompt, num_samples=1, **options)

    def infill(
        self,
        piece: str | Path | ScoreTick,
        bars: str | None = None,
        tracks: Sequence[str] = (),
        *,
        num_samples: int = 1,
        keep: str | None = None,
        seed: int = 0,
        report: Report = lambda text: None,
        **options: Any,
    ) -> list[Filled]:
        """Fill bars of a piece ("5-8", counted from 1; None: all) in `num_samples` ways, the best first.

        `tracks`: numbers from 0, of those that have notes, or instruments, which may be new; none: all tracks. A track
        may have settings, as "1:pitch-range=C2-C4". What is not filled stays as it is, note for note. `keep`: "best"
        gives one take, that which is nearest to the controls asked for. The fields of `Constraints` and
        `SamplingConfig` are options as in `generate_many`, but for tempo, time signature, instruments and bars_left;
        new bars are those of the hole, counted from 1. A piece is a file, a phrase, ABC, or a Score.

        Raises:
            InputError: the piece cannot be read, or these bars cannot be written; nothing fits what was asked.
            UsageError: bars or tracks there are not, or something this tokenizer cannot express.
            TypeError: an option there is not.
        """
        constraints, sampling = read_options(options, ("bars", "tracks", "num_samples", "keep", "seed", "report"))
        for name, value, least, most in (("num_samples", num_samples, 1, MAX_SAMPLES), ("seed", seed, 0, 2**63)):
            if not isinstance(value, int) or not least <= value <= most:
                raise UsageError(f"{name} {value!r}: expected at least {least}, at most {most:,}")
        if not isinstance(piece, str | Path | ScoreTick):
            raise UsageError(f"the piece is a {type(piece).__name__}; expected a path, a phrase, or a Score in ticks")
        tracks = [tracks] if isinstance(tracks, str) else list(tracks)
        original = None
        if isinstance(piece, ScoreTick):
            score = piece
        else:
            score, remarks = read_phrase(str(piece))
            for remark in remarks:
                report(remark)
            original = _original(Path(piece), score, report)
        wanted = Wanted.read(score, None if bars is None else str(bars), tracks, constraints)
        check_asked(wanted.constraints, sampling, keep)
        there = {midi.rank_of(track) for track in score.tracks if track.notes}
        room = MAX_INSTRUMENTS - sum(not track.is_drum for track in score.tracks)
        if original is None and room < 0:
            report(f"more than {MAX_INSTRUMENTS} tracks beside the drums share channels: some may sound as others")
        if original is not None:
            room = len(original.free_channels)
        for program in set(wanted.programs) - there:
            room -= program != DRUMS
            if room < 0 and program != DRUMS:
                raise UsageError(
                    f"--track {program_name(program)}: no room for a new track; a MIDI file has {MAX_INSTRUMENTS} "
                    f"channels beside that of the drums, and none is free"
                )
            report(f"a new track: {program_name(program)}")
        frames = Frames(self.midi_tokenizer, self.vocabulary)
        self.engine.ready(PATIENCE_SECONDS)
        filler = Filler(self.model, self.engine, frames, sampling, report)
        takes = filler.fill(score, wanted, num_samples, seed)
        asked = {"bars": [wanted.first, wanted.last], "track": list(tracks), "programs": list(wanted.programs)}
        made = {
            "version": __version__,
            "versions": versions(),
            "weights": self.weights,
            "seed": seed,
            "settings": {**asdict(sampling), **constraints.asdict()},
            "infill": asked,
            "num_samples": num_samples,
            **self.hashes,
        }
        found = []
        for i, (take, likelihood) in enumerate(takes, 1):
            says, file = {**made, "sample": i}, None
            if original is not None:
                try:
                    file = original.with_notes(take.score, provenance_text(says))
                except InputError as error:
                    report(WRITTEN_ANEW.format(error))
            controls = filler.controls(take, wanted)
            found.append(Filled(take.score, take.notes, likelihood, says, list(take.asked), controls, file))
        if keep:
            found = [min(found, key=lambda filled: filled.distance)]
        for filled in found:
            for program in sorted({*wanted.programs} - {note.program for note in filled.notes}):
                which = "" if len(found) == 1 else f"take {filled.provenance['sample']}: "
                report(f"{which}the model gave {program_name(program)} no note")
        return found

    def replay(self, path: str | Path, report: Report = lambda text: None) -> Piece:
        """Make a piece again from what its file says of itself: the same bytes, on the same machine and versions.

        Raises:
            InputError: the file says nothing, or this is not the model that made it.
        """
        made = read_provenance(Path(path))
        if made is None:
            raise InputError(f"{path} does not say how it was made: expected a MIDI file written by musicgpt generate")
        if "infill" in made:
            raise InputError(f"{path} was filled in, which is not replayed: give the piece to musicgpt infill again")
        if "weights" not in made:
            raise InputError(f"{path} was made by an older version, which chose its ids in another way")
        if (theirs := made["weights"]) != self.weights:
            raise InputError(f"{path} was made with --weights {theirs}; these are {self.weights}: say so too")
        for name, ours in self.hashes.items():
            if made.get(name) != ours:
                raise InputError(
                    f"{path} was made by the {name} {str(made.get(name))[:12]}…; this one is {ours[:12]}…: "
                    f"name the one that made it"
                )
        try:
            for name, ours in versions().items():
                theirs = made["versions"].get(name)
                if theirs != ours:
                    report(f"made with {name} {theirs}, here it is {ours}: the result may differ")
            settings = {**made["settings"], "seed": made["seed"]}
            prompt_ids, samples = [int(id) for id in made["prompt_ids"]], range(1, 1 + int(made["num_samples"]))
            if "left_after" not in made:
                return self.generate_many(len(samples), prompt_ids, **settings)[samples.index(made["sample"])]
            del settings["best_of"]
            stream = self.stream(prompt_ids, **settings)
            for _ in islice(stream.steps(), made["left_after"]):
                pass
            return stream.piece()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise InputError(f"{path} says how it was made in a way that this version cannot read") from error

    def task(self, name: str, text: str, *, seed: int = 0) -> str:
        """`summarize` an article or `translate` a sentence, by the zero-shot prompts of the GPT-2 paper.

        Raises:
            InputError: a text that makes no prompt, or examples that do not fit the context.
        """
        task = TASKS[name]
        head, tail = (self.tokenizer.encode(part) for part in task.prompt(text))
        room = self.model.config.n_positions - task.max_new_tokens - len(tail)
        if room < 0:
            raise InputError(
                f"the examples are {len(tail):,} ids long; at most {room + len(tail):,} fit beside the answer"
            )
        options = {"max_new_tokens": task.max_new_tokens, "seed": seed, **task.sampling}
        answer = "".join(self.stream(head[:room] + tail, **options))
        return first_sentences(answer, task.sentences)

    def prompt_ids(
        self,
        prompt: Prompt,
        report: Report = lambda text: None,
        *,
        prompt_bars: int | None = None,
        prompt_tokens: int | None = None,
    ) -> list[int]:
        """Ids of a prompt, without BOS; `report` gets a line for each thing that had to be changed in it.

        Raises:
            InputError: it cannot be read, or is too long.
            UsageError: a number outside its range.
        """
        for name, value in (("prompt_bars", prompt_bars), ("prompt_tokens", prompt_tokens)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} {value}: expected at least 1")
        music = not self.tokenizer.prints
        if prompt_bars is not None and not music:
            raise UsageError("prompt_bars: this is a model of text; prompt_tokens takes the first ids")
        if prompt is None or (isinstance(prompt, list | tuple) and not prompt):
            return []
        if music and not isinstance(prompt, str | Path | Sequence | ScoreTick):
            raise UsageError(f"the prompt is a {type(prompt).__name__}; expected a path, a phrase, ids or a Score")
        if isinstance(prompt, Sequence) and not isinstance(prompt, str):
            ids = list(prompt)
            foreign = [id for id in ids if not isinstance(id, int) or not 0 <= id < self.tokenizer.vocab_size]
            if foreign:
                raise UsageError(f"the prompt has the id {foreign[0]}; expected 0 to {self.tokenizer.vocab_size - 1}")
        else:
            document, remarks = self.tokenizer.prompt(str(prompt)) if isinstance(prompt, str | Path) else (prompt, [])
            if prompt_bars is not None:
                document, more = midi.cut(document, prompt_bars)
                remarks = [*remarks, *more]
            ids = self.tokenizer.encode(document)
            for remark in [*remarks, *self.tokenizer.changes(document, ids)]:
                report(f"prompt: {remark}")
        ids = ids[:prompt_tokens]
        if music:  # cut anywhere, or made anyhow: encoding settles after one pass
            ids = self.tokenizer.encode(self.tokenizer.decode(ids))
        if len(ids) > MAX_PROMPT_IDS:
            raise InputError(
                f"the prompt is {len(ids):,} ids long; expected at most {MAX_PROMPT_IDS:,}: use its beginning, "
                f"{'--prompt-bars 16' if music else '--prompt-tokens 1000'}"
            )
        return ids


class Stream:
    """One request as it is carried out. Made by `LanguageModel`; see there for the options and errors."""

    def __init__(
        self,
        language_model: LanguageModel,
        prompt: Prompt,
        *,
        num_samples: int,
        prompt_bars: int | None = None,
        prompt_tokens: int | None = None,
        max_new_tokens: int | None = None,
        bars: int | None = None,
        seconds: float | None = None,
        seed: int = 0,
        include_prompt: bool = True,
        report: Report = lambda text: None,
        **options: Any,
    ) -> None:
        self._model = language_model
        tokenizer = language_model.tokenizer
        limits: tuple[tuple[str, float | None, float, float], ...] = (
            ("num_samples", num_samples, 1, MAX_SAMPLES),
            ("max_new_tokens", max_new_tokens, 1, 2**63),
            ("bars", bars, 1, 2**31),
            ("seconds", seconds, 1, 2**31),
            ("seed", seed, 0, 2**63),
        )
        for name, value, least, most in limits:
            kinds = int | float if name == "seconds" else int
            if value is not None and (not isinstance(value, kinds) or not least <= value <= most):
                raise UsageError(f"{name} {value!r}: expected at least {least}, at most {most:,}")
        if bars is not None and seconds is not None:
            raise UsageError("bars and seconds: one of them is the length")
        if max_new_tokens is None and bars is None and seconds is None:
            max_new_tokens = MAX_NEW_TOKENS
        named = set(signature(Stream).parameters) - {"language_model", "options", "prompt", "num_samples"}
        self.constraints, self.sampling = read_options(options, {*named, "best_of (not for a stream)"})
        check_asked(self.constraints, self.sampling)
        self._opening = [tokenizer.bos_id]
        if isinstance(tokenizer, MidiTokenizer):
            self._opening = tokenizer.opening(self.constraints.style)
        self._seed = seed
        self._report = report
        self._include_prompt = include_prompt
        self.num_samples = num_samples
        self.prompt_ids = language_model.prompt_ids(
            prompt, report, prompt_bars=prompt_bars, prompt_tokens=prompt_tokens
        )
        self.grammar: Grammar | None = None
        self._n_ids = tokenizer.vocab_size
        if isinstance(tokenizer, MidiTokenizer):
            self.grammar = Grammar(
                language_model.vocabulary, self.prompt_ids, self.constraints, bars=bars, seconds=seconds
            )
            for remark in self.grammar.remarks:
                report(remark)
        elif isinstance(tokenizer, GridTokenizer):
            if seconds is not None or self.constraints != Constraints():
                raise UsageError("this is a model of voices on a grid: of lengths and constraints it knows bars alone")
            if bars is not None:
                max_new_tokens = min(bars * IDS_PER_BAR, max_new_tokens or bars * IDS_PER_BAR)
                self._n_ids = tokenizer.eos_id  # no end before that
        elif bars is not None or seconds is not None or self.constraints != Constraints():
            raise UsageError("this is a model of text: it has no bars, seconds, instruments or notes")
        lengths = {"max_new_tokens": max_new_tokens, "bars": bars, "seconds": seconds}
        self.settings: dict[str, Any] = {
            **asdict(self.sampling),
            **(self.constraints.asdict() if self.grammar else {}),
            **{name: value for name, value in lengths.items() if value is not None},
            "include_prompt": include_prompt,
            "best_of": 1,
        }
        self.request = {
            "version": __version__,
            "versions": versions(),
            "weights": language_model.weights,
            "seed": seed,
            "settings": self.settings,
            "prompt_ids": self.prompt_ids,
        }
        lead = len(self.grammar.prelude) if self.grammar else 0
        if max_new_tokens is not None and max_new_tokens <= lead:
            raise UsageError(f"max_new_tokens {max_new_tokens}: the way to the first bar line takes {lead} already")
        self._budget = None if max_new_tokens is None else max_new_tokens - lead
        self.rows = [Row(self.grammar) for _ in range(num_samples)]
        self.drafts = Drafts()
        self._steps = self._run()
        self._taken: int | None = 0
        """How many ids of each row have been taken; None when all rows have ended."""

    def steps(self) -> Iterator[None]:
        """Go on by one id a row, until all rows have ended; where it was left, if it was."""
        return self._steps

    def _run(self) -> Iterator[None]:
        tokenizer = self._model.tokenizer
        before = [*self.grammar.prompt_ids, *self.grammar.prelude] if self.grammar else self.prompt_ids
        # where BOS is EOS it ends the text before: GPT-2 reads a prompt without it, and begins from it alone
        alone = len(before) > 0 and tokenizer.bos_id == tokenizer.eos_id
        self._model.engine.ready(PATIENCE_SECONDS)
        made = generate(
            self._model.engine,
            before if alone else [*self._opening, *before],
            self.sampling,
            max_new_tokens=self._budget,
            seed=self._seed,
            num_samples=self.num_samples,
            eos_id=tokenizer.eos_id,
            n_ids=self._n_ids,
            guide=self.grammar,
            state=self.grammar.begin if self.grammar else None,
            window=tokenizer.window,
            drafts=self.drafts,
            marks=tokenizer.unscored,
        )
        for ids, states in made:
            for row, id, state in zip(self.rows, ids, states, strict=True):
                if id is not None:
                    row.take(id, state, self._budget)
            self._taken = None if all(row.ended for row in self.rows) else (self._taken or 0) + 1
            yield
            if self._taken is None:
                return
        self._taken = None

    def __iter__(self) -> Iterator[Any]:
        """The notes (`Note`) of a piece of music as each is complete, or a text in parts that end with a character.

        Raises:
            UsageError: a model of voices on a grid, of which the whole piece is shown.
        """
        if self.grammar is None and not self._model.tokenizer.prints:
            raise UsageError("this model, of voices on a grid, shows the whole piece only: no notes as they are made")
        row, shown = self.rows[0], 0
        for _ in self.steps():
            if self.grammar is not None:
                yield from row.notes[shown:]
                shown = len(row.notes)
            else:
                text = self._model.tokenizer.decode(row.ids)
                if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                    yield text[shown:]
                    shown = len(text)
        if self.grammar is None:
            yield self._model.tokenizer.decode(row.ids)[shown:]
        else:
            row.close()
            yield from row.notes[shown:]

    def likelihood(self, row: int) -> float:
        """What the model thinks of a row: the mean log-probability of its ids; of one without a note, -inf."""
        made, grammar = self.rows[row], self.grammar
        made.close()
        if grammar is not None and (made.state.notes == 0 or made.stuck):
            return -math.inf
        before = [*self._opening, *([*grammar.prompt_ids, *grammar.prelude] if grammar else self.prompt_ids)]
        return log_likelihood(self._model.model, before + made.ids, len(before), self._model.tokenizer.unscored)

    def piece(self, row: int = 0, sample: int = 0) -> Piece:
        """What there is of a row, properly closed.

        Raises:
            InputError: there is no complete note in it.
        """
        grammar, made = self.grammar, self.rows[row]
        samples = self.num_samples // self.settings["best_of"]
        provenance = {**self.request, **self._model.hashes, "sample": sample + 1, "num_samples": samples}
        if self._taken is not None:
            provenance["left_after"] = self._taken
        guessed = (self.drafts.tried, self.drafts.right)
        if grammar is None:
            return Piece(
                self.prompt_ids,
                made.ids,
                self._include_prompt,
                self._model.tokenizer,
                provenance=provenance,
                guessed=guessed,
            )
        made.close()
        if made.stuck:
            raise InputError(
                f"behind {made.state.notes} notes nothing may follow, and the end is not reached: ask for less at once "
                f"(instruments, scale, ranges, density, repeats)"
            )
        if made.state.notes == 0:
            raise InputError(
                "no note was complete: ask for more (--max-new-tokens, --bars), or for less at once "
                "(instruments, scale, ranges, density)"
            )
        for program in grammar.constraints.programs or ():
            if program not in made.state.tracks:
                self._report(f"{program_name(program)} was asked for, and the model gave it no note")
        per_quarter = grammar.vocabulary.ticks_per_quarter
        last = grammar.end(made.state)
        begin, end = grammar.boundary / per_quarter, last / per_quarter if last is not None and made.reached else None
        if self._include_prompt and begin:
            provenance["boundary_quarters"] = begin
        new_ids = [*grammar.prelude, *made.ids]
        tokenizer = self._model.tokenizer
        controls: list[Levels] = []
        if grammar.constraints.controls and isinstance(tokenizer, MidiTokenizer):
            score = tokenizer.decode([*grammar.prompt_ids, *new_ids])
            controls = tokenizer.levels(score, begin, end)
            begins = midi.BarLines(score).bar_at(round(begin * score.ticks_per_quarter))
            new_bars = midi.last_bar(score) + 1 - begins if grammar.bars is None else grammar.bars
            if (last_bar := grammar.constraints.last_bar) > new_bars:
                self._report(f"--control bars=…-{last_bar}: the piece has {new_bars} new bars")
        return Piece(
            grammar.prompt_ids,
            new_ids,
            self._include_prompt,
            tokenizer,
            begin,
            end,
            provenance,
            guessed,
            [grammar.levels(segment) for segment in range(len(controls))],
            controls,
        )


def _original(path: Path, score: ScoreTick, report: Report) -> Original | None:
    """The MIDI file that a score was read from, to be edited, if it is one and can be."""
    if path.suffix.lower() in midi.MIDI_SUFFIXES:
        try:
            return Original.read(path, score)
        except InputError as error:
            report(WRITTEN_ANEW.format(error))
    return None


def versions() -> dict[str, str]:
    """What a result depends on beside the model: replays say where it differs."""
    return {
        "musicgpt": __version__,
        "torch": torch.__version__,
        "numba": version("numba"),
        "threads": str(torch.get_num_threads()),
    }


def load(
    directory: str | Path = BOXED,
    *,
    revision: str | None = None,
    device: str = "cpu",
    weights: str | None = None,
) -> LanguageModel:
    """A checkpoint, a run (then its best one), or `organisation/model` of the Hub -> a model that generates.

    Nothing: the model that comes with the package.

    `weights` "int8" reads a quarter of the bytes for each id; None is float32 on a CPU, elsewhere as they are stored.

    Raises:
        CheckpointError: no checkpoint there, or one that does not fit.
        TokenizerError: it holds no tokenizer, or one that is refused.
    """
    directory = checkpoint.resolve_checkpoint(directory, revision)
    model, tokenizer = checkpoint.load(directory, device=device, weights=weights)
    return LanguageModel(model, tokenizer, CpuEngine(model) if CpuEngine.serves(model) else None, directory)
