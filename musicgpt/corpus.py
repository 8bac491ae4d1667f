"""Which files make a corpus, which documents of theirs are kept, and into which split each goes.

A corpus is a folder (searched through), a single file, or the name of one that can be installed: `folk` and
`chorales` are read out of the `music21` wheel, converted to MIDI once and cached.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from musicgpt import midi
from musicgpt.errors import InputError
from musicgpt.files import directory_in_place

HELD_OUT = 0.05
"""Share of documents in each of val and test."""

CONVERSION = 1
"""Counts up when a conversion changes, so that nobody goes on with an old one."""

CORPORA = {
    "folk": "4,246 Irish, American and Scottish tunes: Ryan's Mammoth, O'Neill's, Aird's (music21's ABC)",
    "chorales": "four-part chorales by J. S. Bach (music21's MusicXML)",
}


def resolve_corpus(text: str, report: Callable[[str], None]) -> Path:
    """A folder, a file, or the name of a corpus -> where its files are.

    Raises:
        InputError: nothing there and no such name, or the package that carries the corpus is missing.
    """
    path = Path(text)
    if path.exists():
        return path
    if text in CORPORA:
        return named_corpus(text, report)
    raise InputError(
        f"{text} is neither a file nor a folder, nor a corpus that is known by name ({', '.join(CORPORA)})"
    )


def find_files(root: Path) -> list[Path]:
    """Every file below a folder (or the file itself), in an order that depends on the names alone.

    Links are followed, each folder once. What begins with a dot is no part of a corpus: it is the system's or a tool's.
    """
    if root.is_file():
        return [root]
    files, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        seen.add(os.path.realpath(folder))
        folders[:] = [name for name in folders if name[0] != "." and os.path.realpath(Path(folder) / name) not in seen]
        files += [Path(folder) / name for name in names if name[0] != "."]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def file_name(path: Path, root: Path) -> str:
    """How a file is called in the ledger and in messages: relative to the corpus, with forward slashes."""
    return path.name if path == root else path.relative_to(root).as_posix()


def assign_splits(fingerprints: Sequence[str]) -> dict[str, str]:
    """Distinct content hashes -> split of each; at least one in val, as long as two remain for train.

    The split is a function of the content, so a piece stays where it is when the corpus grows, and is the same for
    every tokenizer. Only where no hash falls into val by itself is the lowest one put there.
    """
    splits = {}
    for value in fingerprints:
        share = int(value[:16], 16) / 16**16
        splits[value] = "val" if share < HELD_OUT else "test" if share < 2 * HELD_OUT else "train"
    if len(fingerprints) >= 3:
        ordered = sorted(fingerprints)
        if "val" not in splits.values():
            splits[ordered[0]] = "val"
        if "train" not in splits.values():
            splits[ordered[-1]] = "train"
    return splits


def named_corpus(name: str, report: Callable[[str], None]) -> Path:
    """`folk` or `chorales` -> a cached folder of MIDI files, converted on first use.

    Raises:
        InputError: music21 (or verovio, for the chorales) is not installed.
    """
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("musicgpt")) / "corpora" / f"v{CONVERSION}" / name
    if folder.is_dir():
        return folder
    spec = find_spec("music21")
    if spec is None or spec.origin is None:
        raise InputError(
            f"the corpus {name} is read out of the music21 package, which is not installed: "
            f"pip install 'musicgpt-midi[corpus]'"
        )
    source = Path(spec.origin).parent / "corpus"  # data only: importing music21 itself takes seconds
    report(f"converting the corpus {name} ({CORPORA[name]}), once")
    with directory_in_place(folder) as beside:
        if name == "folk":
            for collection in ("ryansMammoth", "oneills1850", "airdsAirs"):
                _convert(sorted((source / collection).glob("*.abc")), beside / collection)
        else:
            _convert(sorted((source / "bach").glob("*.mxl")), beside)
    return folder


def _convert(files: list[Path], folder: Path) -> None:
    """ABC books or MusicXML files -> one MIDI file a piece; what cannot be converted is left out."""
    folder.mkdir(exist_ok=True)
    if files[0].suffix in midi.ABC_SUFFIXES:
        # one book of all tunes: abc2midi is started once, not a thousand times
        book = "\n\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
        for i, score in enumerate(midi.read_abc(book, folder.name), 1):
            midi.write_midi(score, folder / f"{i:04d}.mid")
    else:
        for path, score in midi.convert_musicxml(files).items():
            midi.write_midi(score, folder / f"{path.stem}.mid")


def digest(files: Iterable[Path], root: Path) -> str:
    """A hash of names, sizes and modification times: whether prepared shards are still those of these files."""
    state = hashlib.sha256()
    for path in files:
        try:
            stat = path.stat()
            size, modified = stat.st_size, stat.st_mtime_ns
        except OSError:  # a link to nowhere: the ledger will say so
            size, modified = -1, -1
        state.update(os.fsencode(file_name(path, root)) + f"\0{size}\0{modified}\n".encode())
    return state.hexdigest()
