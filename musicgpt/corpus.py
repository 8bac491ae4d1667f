"""Which files make a corpus, and into which split each document goes.

A corpus is a folder (searched through), a single file, or the name of one that can be installed: `folk` and
`chorales` are read out of the `music21` wheel, converted to MIDI once and cached.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from musicgpt import midi
from musicgpt.errors import InputError, UsageError
from musicgpt.files import directory_in_place
from musicgpt.marks import MOST_STYLES, style_named

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


def find_files(root: Path) -> Iterator[Path]:
    """Every file below a folder (or the file itself), in no order; memory does not grow with how many there are.

    Links are followed, each folder once: one that leads to where we are anyway adds nothing. What begins with a dot is
    no part of a corpus: it is the system's or a tool's. Nor is a run, whose samples are a model's.
    """
    if root.is_file():
        yield root
        return
    trees = [os.path.realpath(root)]
    links: list[Path] = []
    yield from _walk(root, trees, links)
    while links:
        link = links.pop(0)
        target = os.path.realpath(link)
        if not any(Path(target).is_relative_to(tree) for tree in trees):
            trees.append(target)
            yield from _walk(link, trees, links)


def _walk(root: Path, trees: Sequence[str], links: list[Path]) -> Iterator[Path]:
    """The files below `root`, not through links to folders, which are noted, nor into another of the trees."""
    folders, linked = [root], []
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    yield Path(entry.path)
                elif entry.is_symlink():
                    linked.append(Path(entry.path))
                elif (len(trees) == 1 or os.path.realpath(entry.path) not in trees) and not _is_run(entry.path):
                    folders.append(Path(entry.path))
    links += sorted(linked)


def _is_run(folder: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in ("run.json", "metrics.jsonl"))  # noqa: PTH113, PTH118


@dataclass(frozen=True)
class Survey:
    """What is known of a corpus without opening a file."""

    count: int
    digest: str
    """A hash of names, sizes and modification times: whether prepared shards are still those of these files."""
    suffixes: frozenset[str]
    """Endings of names, lower case."""


def survey(root: Path) -> Survey:
    """Every file's name, size and time; the digest is a sum of hashes, so that their order is of no account."""
    count = total = 0
    suffixes = set()
    for path in find_files(root):
        try:
            stat = path.stat()
            state = f"{stat.st_size}\0{stat.st_mtime_ns}"
        except OSError:  # a link to nowhere: the ledger will say so
            state = ""
        name = os.fsencode(file_name(path, root))
        total += int.from_bytes(hashlib.sha256(name + b"\0" + state.encode()).digest(), "big")
        count += 1
        suffixes.add(path.suffix.lower())
    return Survey(count, f"{total % 2**256:064x}", frozenset(suffixes))


def file_name(path: Path, root: Path) -> str:
    """How a file is called in the ledger and in messages: relative to the corpus, with forward slashes."""
    return path.name if path == root else path.relative_to(root).as_posix()


def style_of(name: str) -> str:
    """A file's name in a corpus -> its style, the folder of the first level; "" for a file at the top."""
    folder, inside, _ = name.partition("/")
    return style_named(folder) if inside else ""


def styles_of(root: Path) -> list[str]:
    """The styles of a corpus: a folder of the first level is one if a file in it is music by its name.

    Raises:
        UsageError: none, too many, or two folders that would be the same.
    """
    folders: dict[str, str] = {}
    for path in find_files(root):
        folder, inside, _ = file_name(path, root).partition("/")
        if not inside or path.suffix.lower() not in midi.SUFFIXES:
            continue
        style = style_named(folder)
        if (same := folders.setdefault(style, folder)) != folder:
            one, other = sorted((same, folder))
            raise UsageError(f"--styles: the folders {one} and {other} would both be the style {style}: rename one")
    if not 1 <= len(folders) <= MOST_STYLES:
        raise UsageError(
            f"--styles: {root} has {len(folders) or 'no'} folders with music in them; expected one for each style, "
            f"at most {MOST_STYLES}"
        )
    return sorted(folders)


def split_of(fingerprint: str) -> str:
    """A function of the content: a piece stays where it is when the corpus grows, and for every tokenizer."""
    share = int(fingerprint[:16], 16) / 16**16
    return "val" if share < HELD_OUT else "test" if share < 2 * HELD_OUT else "train"


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
