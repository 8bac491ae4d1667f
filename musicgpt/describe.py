"""Any file or folder of ours -> what it is: a dict that JSON can hold, words for a terminal, a picture of a run.

Reads only, a run that is going on included: nothing is repaired, no weight is loaded (the header of a safetensors file
says their shapes), and torch is not needed.
"""

from __future__ import annotations

import json
import math
import re
import stat
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from symusic.core import ScoreTick

from musicgpt import midi
from musicgpt.config import resolve_boxed
from musicgpt.constraints import program_name
from musicgpt.controls import Bins, Segment, measured
from musicgpt.errors import InputError, UsageError
from musicgpt.files import read_json
from musicgpt.marks import KEYS, LEVELS, PER_INSTRUMENT
from musicgpt.mending import end_ticks
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.provenance import read_provenance
from musicgpt.render import picture_bytes
from musicgpt.runs import STATE, checkpoints
from musicgpt.shards import MANIFEST, Shards
from musicgpt.tokenizer import CONFIG_NAME, Tokenizer, load_tokenizer, new_tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Description = dict[str, Any]

MARKS = {"run": "run.json", "shards": MANIFEST, "checkpoint": "config.json", "tokenizer": CONFIG_NAME}
"""The file by which a folder is known, the first that is there: shards and checkpoints hold a tokenizer too."""

EXPECTED = "a run, shards, a checkpoint, a tokenizer, a ledger, or a file of music or text"
FORMATS = dict.fromkeys(midi.MIDI_SUFFIXES, "MIDI") | dict.fromkeys(midi.ABC_SUFFIXES, "ABC")
LOSS_ENDINGS = ("_lost", "_clipped", "_replaced")
"""How the keys of a ledger line end that count what did not fit."""

AT_MOST = 12
"""Changes of tempo and metre, files, rows of a table; behind them only how many there are."""

FIRST_TOKENS = 64
SHAPE = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def describe(path: Path, tokenizer: Path | None = None) -> Description:
    """What is at `path`; `kind` is midi, tokenizer, shards, ledger, run, checkpoint or text, the rest depends on it.

    Where there is no such path, `boxed` is the model that comes with the package.

    With a tokenizer (a directory, checkpoint or run that holds one, or the name of a scheme) a piece of music has
    its tokens described too, and where that knows controls, their levels.

    Raises:
        InputError: nothing there, or nothing of ours; the message says what was found.
        TokenizerError, ShardsError: a tokenizer or shards that cannot be loaded.
        UsageError: a tokenizer for something that is no music.
    """
    try:
        path = resolve_boxed(path)
        kind = _kind_of(path)
        if tokenizer is not None and kind != "midi":
            raise UsageError(f"--tokenizer goes with a file of music; {path} is of the kind {kind}")
        found = _midi(path, tokenizer) if kind == "midi" else DESCRIBERS[kind](path)
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    plain: Description = _plain({"kind": kind, "path": str(path), **found})
    return plain


def _kind_of(path: Path) -> str:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        for kind, name in MARKS.items():
            if (path / name).is_file():
                return kind
        inside = Counter(p.suffix or p.name for p in path.iterdir())
        holds = ", ".join(f"{count:,} {name}" for name, count in inside.most_common(4))
        raise InputError(f"{path} is a folder that holds {holds or 'nothing'}; expected {EXPECTED}")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is neither a file nor a folder; expected {EXPECTED}")
    if path.suffix.lower() in midi.SUFFIXES:
        return "midi"
    with open(path, "rb") as file:
        head = file.readline(2**16)
    if head[:4] in (b"MThd", b"RIFF"):
        raise InputError(f"{path} begins like a MIDI file; expected it to be called .mid")
    row = _json_object(head)
    return "ledger" if path.name == "ledger.jsonl" or (row and {"path", "status"} <= set(row)) else "text"


def _plain(value: Any) -> Any:
    """JSON has no infinite numbers: they become None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _midi(path: Path, tokenizer: Path | None) -> Description:
    scores, remarks = midi.read_scores(path)
    ends: Sequence[int | None] = ()
    if path.suffix.lower() in midi.MIDI_SUFFIXES:
        ends = end_ticks(path.read_bytes(), str(path))
    if len(ends) != len(scores):  # ABC has none; of several patterns some may hold no notes, and be no pieces
        ends = [None] * len(scores)
    read_by = None if tokenizer is None else _tokenizer_at(tokenizer)
    bins = read_by.bins if isinstance(read_by, MidiTokenizer) else None
    pieces = [_piece(score, end, bins) for score, end in zip(scores, ends, strict=True)]
    tokens = None if read_by is None else _tokens(read_by, scores)
    whole = {key: sum(piece[key] for piece in pieces) for key in ("notes", "bars", "beats_of_the_metre", "seconds")}
    name = FORMATS.get(path.suffix.lower(), "MusicXML")
    said = {"format": name, "provenance": read_provenance(path), "remarks": remarks, "pieces": len(pieces)}
    return said | whole | {"each": pieces, "tokens": tokens}


def _piece(score: ScoreTick, closing: int | None, bins: Bins | None) -> Description:
    """One piece, to the end of its last note: what rings on by pedal or is written behind counts for nothing.

    `closing`, the tick at which its last track ends, is where a player begins again; None where there is no such thing.
    """
    tracks = [(track, track.notes.numpy()) for track in score.tracks if len(track.notes)]
    end = midi.end_of_notes(score)
    velocities = np.concatenate([notes["velocity"] for _, notes in tracks]).astype(int)
    lines = midi.BarLines(score)
    # some programs write the same one into every track
    metres = dict.fromkeys(sorted((s.time, s.numerator, s.denominator) for s in score.time_signatures))
    changes = dict.fromkeys(sorted((tempo.time, round(tempo.qpm, 3)) for tempo in score.tempos))
    signatures = [{"bar": lines.bar_at(tick), "numerator": n, "denominator": unit} for tick, n, unit in metres]
    tempos = [{"bar": lines.bar_at(tick), "tempo_bpm": tempo} for tick, tempo in changes]
    bpm = [tempo["tempo_bpm"] for tempo in tempos]
    return {
        "ticks_per_quarter": score.ticks_per_quarter,
        "notes": len(velocities),
        "bars": lines.bar_at(end - 1),
        "beats_of_the_metre": round(lines.beats_until(end), 3),
        "seconds": _seconds(score),
        "end_of_track": None
        if closing is None
        else {"bar": lines.bar_at(closing - 1), "quarter_notes": round(closing / score.ticks_per_quarter, 3)},
        "time_signatures": _cut_short(signatures),
        "tempos": _cut_short(tempos) | {"lowest_bpm": min(bpm, default=None), "highest_bpm": max(bpm, default=None)},
        "velocities": {"lowest": int(velocities.min()), "highest": int(velocities.max())},
        "tracks": [{"track": i} | _track(track, notes) for i, (track, notes) in enumerate(tracks)],
        "segments": [_segment(segment, bins) for segment in measured(score)],
    }


def _segment(segment: Segment, bins: Bins | None) -> Description:
    """Four bars, by what `generate` can be asked for, in the units of controls.py; by bins in levels too."""
    values = {key: round(value, 3) for key, value in segment.values.items()}
    levels = {} if bins is None else bins.levels(segment)
    key = values.get((None, "key"))
    ranks = sorted({rank for rank, _ in values if rank is not None})
    instruments = []
    for rank in ranks:
        heard = {control: values.get((rank, control)) for control in PER_INSTRUMENT}
        said = {control: LEVELS[levels[rank, control]] for control in PER_INSTRUMENT if (rank, control) in levels}
        instruments.append({"instrument": program_name(rank)} | heard | ({"levels": said} if said else {}))
    return {
        "bars": list(segment.bars),
        "bars_left": int(values.get((None, "bars_left"), 0)),
        "key": None if key is None else KEYS[int(key)],
        "repetition": values.get((None, "repetition")),
        "instruments": instruments,
    }


def _seconds(score: ScoreTick) -> float:
    """When the last note ends, by the tempo map of the piece."""
    seconds: Any = score.to("second")
    notes = [track.notes.numpy() for track in seconds.tracks if len(track.notes)]
    return round(max(float((part["time"] + part["duration"]).max()) for part in notes), 3)


def _track(track: Any, notes: dict[str, np.ndarray]) -> Description:
    from pretty_midi import note_number_to_name, program_to_instrument_name

    lowest, highest = int(notes["pitch"].min()), int(notes["pitch"].max())
    named = None if track.is_drum else [note_number_to_name(lowest), note_number_to_name(highest)]
    return {
        "name": track.name,
        "instrument": "Drums" if track.is_drum else program_to_instrument_name(track.program),
        "program": track.program,
        "is_drum": track.is_drum,
        "notes": len(track.notes),
        "pitches": [lowest, highest],
        "pitch_names": named,
    }


def _cut_short(items: list[Any]) -> Description:
    return {"count": len(items), "first": items[:AT_MOST]}


def _tokenizer_at(path: Path) -> Tokenizer[Any]:
    """The tokenizer of a directory, a checkpoint or a run, or a new one by the name of its scheme."""
    path = resolve_boxed(path)
    if not path.exists():
        return new_tokenizer(str(path))
    inside = [path, path / "best", *checkpoints(path), path / "shards"]
    return load_tokenizer(next((directory for directory in inside if (directory / CONFIG_NAME).is_file()), path))


def _tokens(tokenizer: Tokenizer[Any], scores: Sequence[ScoreTick]) -> Description:
    encoded = [tokenizer.encode(score) for score in scores]
    losses: Counter[str] = Counter(dict.fromkeys(tokenizer.loss_kinds, 0))
    for score, ids in zip(scores, encoded, strict=True):
        losses.update(tokenizer.losses(score, ids))
    total = sum(map(len, encoded))
    return {
        "ids": total,
        "ids_per_note": round(total / sum(score.note_num() for score in scores), 3),
        "first": [_spelled(tokenizer, id) for id in encoded[0][:FIRST_TOKENS]],
        "losses": dict(losses),
    }


def _spelled(tokenizer: Tokenizer[Any], id: int) -> str:
    return "+".join(tokenizer.expansions[id]) if isinstance(tokenizer, MidiTokenizer) else str(id)


def _tokenizer(path: Path) -> Description:
    tokenizer = load_tokenizer(path)
    found: Description = {
        "scheme": tokenizer.name if isinstance(tokenizer, MidiTokenizer) else type(tokenizer).__name__,
        "vocab_size": tokenizer.vocab_size,
        "special_ids": {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id},
        "reads": list(tokenizer.suffixes),
    }
    if isinstance(tokenizer, MidiTokenizer):
        base = tokenizer.wrapped.vocab
        learned = range(len(base), tokenizer.vocab_size)
        found |= {
            "styles": tokenizer.styles,
            "merges": len(learned),
            "tokens_by_type": dict(Counter(token.split("_")[0] for token in base).most_common()),
            "first_merges": [{"id": id, "tokens": _spelled(tokenizer, id)} for id in learned[:8]],
        }
    return found


def _shards(path: Path) -> Description:
    shards = Shards(path)  # which finds files that are missing, cut short or altered
    try:
        found = {key: shards.manifest[key] for key in ("vocab_size", "split_within_documents", "splits")}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path / MANIFEST} is no manifest of shards ({error}); prepare the corpus again") from error
    ledger = path / "ledger.jsonl"
    return found | {
        "styles": _part(shards.manifest, "styles"),
        "transpositions": _part(shards.manifest, "source").get("transpositions"),
        "bytes": _bytes(path),
        "tokenizer": _tokenizer_said(path),
        "ledger": _ledger(ledger) if ledger.is_file() else None,
    }


def _ledger(path: Path) -> Description:
    rows, broken = _rows(path)
    amounts: Counter[str] = Counter()
    lost: list[tuple[float, str, dict[str, float]]] = []
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        numbers = {key: number for key in row if (number := _number(row, key)) is not None}
        amounts.update(numbers)
        losses = {key: number for key, number in numbers.items() if key.endswith(LOSS_ENDINGS) and number}
        if losses:
            lost.append((-sum(losses.values()), str(row.get("path")), losses))
        status, reason = str(row.get("status")), str(row.get("reason") or "")
        reason = re.sub(r"(?<=the same music as ).*", "another file", reason)
        reason = re.sub(r"(?<=begins with )b'.*?', ", "…, ", reason)
        for text in [reason] if status == "refused" else reason.split("; "):  # what is refused says one thing
            if text:
                text = text.replace(Path(str(row.get("path"))).name, "…")
                reasons[status, re.sub(NUMBER, "N", text)].append(text)
    counted = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    return {
        "files": len(rows),
        "status": dict(Counter(str(row.get("status")) for row in rows).most_common()),
        "amounts": {key: round(value, 3) for key, value in amounts.items() if not key.endswith(LOSS_ENDINGS)},
        "losses": {key: value for key, value in amounts.items() if key.endswith(LOSS_ENDINGS)},
        "reasons": [
            {"status": status, "reason": _in_common(texts), "files": len(texts)} for (status, _), texts in counted
        ],
        "files_with_losses": len(lost),
        "worst": [{"path": name, **losses} for _, name, losses in sorted(lost, key=lambda one: one[:2])[:AT_MOST]],
        "unreadable_lines": broken,
    }


NUMBER = r"0x[0-9a-f]+|\d+"


def _in_common(texts: Sequence[str]) -> str:
    """Texts that differ in numbers only -> one, with N where they differ."""
    columns = zip(*(re.findall(NUMBER, text) for text in texts), strict=True)
    values = iter([column[0] if len(set(column)) == 1 else "N" for column in columns])
    return re.sub(NUMBER, lambda _: next(values), texts[0])


def _run(path: Path) -> Description:
    said = read_json(path / MARKS["run"])
    config, shape = _part(said, "train"), _part(said, "model")
    rows, broken = _metrics(path)
    loss, val_loss = _series(rows, "loss"), _series(rows, "val_loss")
    done = loss[-1][0] if loss else 0
    per_step = _tokens_per_step(said)
    speeds = [value for _, value in _series(rows, "tokens_per_second")]
    found = {}
    for directory in (path / "best", *checkpoints(path)):
        if (directory / MARKS["checkpoint"]).is_file():
            state = directory / STATE
            step = read_json(state).get("step") if state.is_file() else _lowest(val_loss)[0]
            found[directory.relative_to(path).as_posix()] = {"step": step, **_weights(directory)}
    floors = path / "baselines.json"
    return {
        "corpus": said.get("corpus"),
        "init_from": said.get("init_from"),
        "preset": config.get("preset"),
        "model": {key: shape.get(key) for key in SHAPE},
        "steps_done": done,
        "steps": config.get("steps"),
        "tokens_seen": done * per_step if per_step else None,
        "epochs": next((value for _, value in reversed(_series(rows, "epoch"))), None),
        "losses": {"training": _last_and_lowest(loss), "validation": _last_and_lowest(val_loss)} if loss else {},
        "baselines": read_json(floors) if floors.is_file() else {},
        "tokens_per_second": median(speeds) if speeds else None,
        "hours": round(sum(value for _, value in _series(rows, "seconds")) / 3600, 4),
        "checkpoints": found,
        "unreadable_lines": broken,
    }


def _metrics(run: Path) -> tuple[list[Description], int]:
    return _rows(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else ([], 0)


def _tokens_per_step(said: Description) -> int | None:
    """Of a run.json: how many ids a batch holds."""
    batch_size = _number(_part(said, "train"), "batch_size")
    n_positions = _number(_part(said, "model"), "n_positions")
    return int(batch_size * n_positions) if batch_size and n_positions else None


Series = list[tuple[int, float]]
"""(step, value), by step."""


def _series(rows: Iterable[Description], key: str) -> Series:
    pairs = ((_number(row, "step"), _number(row, key)) for row in rows)
    return [(int(step), value) for step, value in pairs if step is not None and value is not None]


def _lowest(series: Series) -> tuple[int | None, float | None]:
    return min(series, key=lambda pair: pair[1], default=(None, None))


def _last_and_lowest(series: Series) -> Description:
    """All None where there is no value yet."""
    (last_step, last), (lowest_step, lowest) = series[-1] if series else (None, None), _lowest(series)
    return {"last": last, "last_step": last_step, "lowest": lowest, "lowest_step": lowest_step}


def _checkpoint(path: Path) -> Description:
    values = read_json(path / MARKS["checkpoint"])
    state = path / "training_state.json"
    return {
        "model_type": values.get("model_type"),
        "model": {key: values.get(key) for key in SHAPE},
        **_weights(path),
        "step": read_json(state).get("step") if state.is_file() else None,
        "tokenizer": _tokenizer_said(path),
    }


def _weights(directory: Path) -> Description:
    """How many weights, and of which types, by the headers of the safetensors files alone."""
    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        raise InputError(f"{directory} holds config.json and no model.safetensors; expected both, as in a checkpoint")
    tied = read_json(directory / MARKS["checkpoint"]).get("tie_word_embeddings") is not False
    count, dtypes = 0, Counter[str]()
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 not a mapping
                    # old files store the causal masks, and some the head that is the embedding again
                    if key.endswith((".attn.bias", ".attn.masked_bias")) or (tied and key == "lm_head.weight"):
                        continue
                    part = file.get_slice(key)
                    count += math.prod(part.get_shape())
                    dtypes[part.get_dtype()] += 1
        except SafetensorError as error:
            raise InputError(f"{path} cannot be read as safetensors: {error}") from error
    names = [DTYPES.get(name, name) for name, _ in dtypes.most_common()]
    return {"weights": count, "dtype": " and ".join(names), "bytes": _bytes(directory)}


def _tokenizer_said(directory: Path) -> Description | None:
    """What a directory says of its tokenizer, which is not loaded."""
    if not (directory / CONFIG_NAME).is_file():
        return None
    values = read_json(directory / CONFIG_NAME)
    said = {"scheme": values.get("scheme") or values.get("tokenizer_class"), "vocab_size": values.get("vocab_size")}
    return said | ({"styles": styles} if (styles := _part(values, "styles")) else {})


def _text(path: Path) -> Description:
    characters = lines = 0
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for line in file:
                if "\0" in line:
                    raise InputError(f"{path} holds zero bytes, which is no text; expected {EXPECTED}")
                characters, lines = characters + len(line), lines + 1
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is neither music by its name nor UTF-8 text ({error.reason}); expected {EXPECTED}"
        ) from error
    return {"bytes": path.stat().st_size, "characters": characters, "lines": lines}


DESCRIBERS: dict[str, Callable[[Path], Description]] = {
    "tokenizer": _tokenizer,
    "shards": _shards,
    "ledger": _ledger,
    "run": _run,
    "checkpoint": _checkpoint,
    "text": _text,
}


def _rows(path: Path) -> tuple[list[Description], int]:
    """The objects of a .jsonl file, and how many lines are none: the last one, where a kill cut it short."""
    with open(path, "rb") as file:
        found = [_json_object(line) for line in file if line.strip()]
    rows = [row for row in found if row is not None]
    return rows, len(found) - len(rows)


def _json_object(line: bytes) -> Description | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _number(values: Description, key: str) -> float | None:
    value = values.get(key)
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return value if good else None


def _part(values: Description, key: str) -> Description:
    part = values.get(key)
    return part if isinstance(part, dict) else {}


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def in_words(description: Description) -> str:
    """What `describe` gave, for a person at a terminal: aligned plain text, about 40 lines at most."""
    shown = _midi_shown(description) if description["kind"] == "midi" else description
    # what a file calls itself may hold line ends, and codes that a terminal obeys
    return "\n".join("".join(c if c.isprintable() else "?" for c in line).rstrip() for line in _lines(shown))


def _midi_shown(d: Description) -> Description:
    """One piece in full, several as a table; changes of metre and tempo as text, and what made the file."""
    made_by = {"provenance": _made_by(d["provenance"])} if d["provenance"] else {}
    d = {("made_by" if key == "provenance" else key): value for key, value in (d | made_by).items()}
    pieces: list[Description] = []
    for i, piece in enumerate(d["each"], 1):
        metres, tempos = piece["time_signatures"], piece["tempos"]
        metre = [f"{m['numerator']}/{m['denominator']} from bar {m['bar']:,}" for m in metres["first"]]
        tempo = [f"{_cell(t['tempo_bpm']) or 'infinite'} from bar {t['bar']:,}" for t in tempos["first"]]
        between = f"{_cell(tempos['lowest_bpm'])} to {_cell(tempos['highest_bpm']) or 'infinite'}"
        times = {
            "time_signatures": _few(metre, str(metres["count"])) or "none written, which means 4/4",
            "tempos": _few(tempo, f"{tempos['count']:,}, {between}") or "none written, which means 120",
        }
        segments = [
            {name: value for name, value in segment.items() if name not in ("bars_left", "instruments")}
            | _with_levels(instrument)
            for segment in piece["segments"]
            for instrument in segment["instruments"]
        ]
        pieces.append({"piece": i} | piece | times | {"segments": segments})
    if len(pieces) > 1:
        short = [{name: value for name, value in piece.items() if name != "segments"} for piece in pieces]
        return d | {"each": [piece | {"tracks": len(piece["tracks"])} for piece in short]}
    without = {key: value for key, value in d.items() if key not in ("pieces", "each", "tokens")}
    return without | {key: value for key, value in pieces[0].items() if key != "piece"} | {"tokens": d["tokens"]}


def _with_levels(instrument: Description) -> Description:
    """What is measured of an instrument, and behind each number its level, where levels are known."""
    levels = instrument.get("levels", {})
    shown = {name: value for name, value in instrument.items() if name != "levels"}
    return shown | {name: f"{_cell(shown[name])} {level}" for name, level in levels.items()}


def _made_by(values: Description) -> str:
    """What a file says of its making, in one line; a field may be missing, unknown, or not of the type we write."""
    ours = ("version", "seed", "settings", "sample", "num_samples", "checkpoint", "tokenizer", "prompt_ids")
    plain = {key: values[key] for key in ("seed",) if key in values} | _part(values, "settings")
    plain |= {key: value for key, value in values.items() if key not in ours}
    facts = [f"{key} {_short(value)}" for key, value in plain.items() if value is not None]
    if values.get("num_samples") not in (None, 1):
        facts.append(f"sample {_short(values.get('sample'))} of {_short(values['num_samples'])}")
    for key in ("checkpoint", "tokenizer"):
        if isinstance(values.get(key), str):
            facts.append(f"{key} sha256 {_clip(values[key], 9)}")
    if isinstance(values.get("prompt_ids"), list):
        count = len(values["prompt_ids"])
        facts.append(f"prompt of {count:,} ids" if count else "no prompt")
    name = f"musicgpt {_short(values.get('version', ''))}".rstrip()
    return _clip(f"{name}: {', '.join(facts)}" if facts else name, 96 * 5)


def _short(value: Any) -> str:
    """As it would be given on the command line: a seed has no thousands separators."""
    return _clip(value if isinstance(value, str) else json.dumps(value), 40)


def _few(changes: list[str], of_all: str) -> str:
    return ", ".join(changes[:4]) + (f" (all: {of_all})" if len(changes) > 4 else "")


def _lines(values: Description) -> list[str]:
    """Facts one below the other, small groups of them in a line, tables of like things, sections of the rest."""
    # nobody wants to be told that every line was readable
    values = {key: v for key, v in values.items() if v not in (None, [], {}) and (v or key != "unreadable_lines")}
    width = 2 + max(map(len, values), default=0)
    lines: list[str] = []
    block = False  # whether what was last written stands apart
    for key, value in values.items():
        label = key.replace("_", " ")
        if isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
            value = [{label: name, **item} for name, item in value.items()]
        rows = isinstance(value, list) and isinstance(value[0], dict)
        nested = isinstance(value, dict) and any(isinstance(item, dict | list) and item for item in value.values())
        lines += [""] if lines and (block or rows or nested) else []
        block = rows or nested
        if rows:
            lines += _table(value, label)
        elif nested:
            lines += [f"{label}:", *("  " + line for line in _lines(value))]
        else:
            first, *rest = textwrap.wrap(_cell(value), 96, break_on_hyphens=False) or ["–"]
            lines += [f"{label:<{width}}{first}", *(" " * width + line for line in rest)]
    return lines


def _cell(value: Any) -> str:
    """A fact, or a group of them, as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_cell(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return ("–" if len(value) == 2 else " ").join(map(_cell, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


def _table(rows: list[Description], label: str) -> list[str]:
    """Aligned, numbers to the right; behind `AT_MOST` rows only how many there are."""
    shown = rows[:AT_MOST]
    keys = list(dict.fromkeys(key for row in shown for key in row))
    columns = []
    for key in keys:
        cells = [key.replace("_", " "), *(_clip(_cell(row.get(key))) for row in shown)]
        width = max(map(len, cells))
        right = all(isinstance(row.get(key, 0), int | float) for row in shown)
        columns.append([f"{cell:>{width}}" if right else f"{cell:<{width}}" for cell in cells])
    more = [f"… {len(rows) - AT_MOST:,} more {label}"] if len(rows) > AT_MOST else []
    return ["  ".join(cells) for cells in zip(*columns, strict=True)] + more


def _clip(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


STYLE: Any = {
    "svg.hashsalt": "musicgpt",  # else every SVG has its own random names
    "font.size": 10,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}
BLUE, ORANGE, GREY = "#3b6fb6", "#d1590f", "#555555"


def loss_curve(run: Path) -> Figure:
    """A run -> its losses by step: of training as they are and smoothed, of validation, and of the baselines.

    Raises:
        InputError: no run there, or one that has not done a step.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

    said = read_json(run / MARKS["run"])
    rows, _ = _metrics(run)
    loss, val_loss = _series(rows, "loss"), _series(rows, "val_loss")
    if not loss:
        raise InputError(f"{run} has done no step yet; there is no loss to draw")
    steps, values = np.array([step for step, _ in loss]), np.array([value for _, value in loss])
    last = int(steps[-1])
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.8), dpi=160, layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)", xlim=(0, last))
        axes.set_axisbelow(True)
        axes.plot(steps, values, color=BLUE, alpha=0.3, linewidth=0.7, label="training, each step")
        axes.plot(steps, _smooth(values), color=BLUE, linewidth=1.8, label="training, smoothed")
        if val_loss:
            marked: dict[str, Any] = {"color": ORANGE, "clip_on": False}  # the last lies on the edge
            axes.plot(*zip(*val_loss, strict=True), "o-", markersize=4, linewidth=1.2, label="validation", **marked)
            step, lowest = _lowest(val_loss)
            text = f"lowest validation: {lowest:.3f} at step {step:,}"
            axes.plot([step or 0], [lowest or 0], "o", markersize=9, markerfacecolor="none", label=text, **marked)
        baselines = read_json(run / "baselines.json") if (run / "baselines.json").is_file() else {}
        for name in baselines:
            floor = _number(baselines, name)
            if floor is not None:
                axes.axhline(floor, color=GREY, linestyle=(0, (5, 3)), linewidth=1)
                place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
                axes.annotate(f"{name} {floor:.3f}", (1, floor), (-4, 3), ha="right", color=GREY, **place)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        if per_step := _tokens_per_step(said):
            top = axes.secondary_xaxis("top", functions=(_scaled(per_step), _scaled(1 / per_step)))
            top.set_xlabel("tokens seen")
            top.xaxis.set_major_formatter(EngFormatter())
        figure.legend(loc="outside lower center", ncols=4, fontsize=9, columnspacing=1.5)
        return figure


def _scaled(by: float) -> Callable[[Any], Any]:
    return lambda steps: steps * by


def _smooth(values: np.ndarray) -> np.ndarray:
    """(N,) -> (N,) centred means over a fiftieth of the values, over what there is of them at the ends."""
    ones = np.ones(2 * (len(values) // 100) + 1)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def picture(figure: Figure, suffix: str) -> bytes:
    """A figure of losses -> the bytes of a file (.png or .svg)."""
    return picture_bytes(figure, suffix.removeprefix("."), STYLE)
