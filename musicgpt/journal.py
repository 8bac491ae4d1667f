"""What `prepare` knows of a corpus while it works, on disk: memory does not grow with it, and a kill loses little.

One SQLite file. Files are numbered in the order of their names; a document's number says its file and its place in
it, so that numbers follow the order of the shards. What is recorded is kept from `commit` on; what was recorded since
is forgotten if the process dies, and done again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from musicgpt.passes import Found, Outcome

PLACES = 2**24
"""More documents than a file can hold: the number of one is that of its file times this, plus its place."""

PAGE = 1024
"""Rows that are read at a time."""

TABLES = (
    "facts (name TEXT PRIMARY KEY, value TEXT)",
    "files (file INTEGER PRIMARY KEY, name BLOB, found TEXT)",
    # piece: the first document that is the same; it is kept and has a split, and once it is encoded an outcome
    "documents (document INTEGER PRIMARY KEY, fingerprint TEXT, piece INTEGER, split TEXT, outcome TEXT)",
    "keys (document INTEGER, key TEXT)",
)

LINKS = """
CREATE TEMP TABLE links AS
    WITH every AS (SELECT document, fingerprint AS key FROM documents UNION ALL SELECT document, key FROM keys)
    SELECT document, key FROM every WHERE key IN (SELECT key FROM every GROUP BY key HAVING count(*) > 1)
"""
"""Keys that more than one document has."""

SPREAD = """
WITH lowest AS (SELECT key, min(piece) AS piece FROM links JOIN documents USING (document) GROUP BY key),
     nearest AS (SELECT document, min(piece) AS piece FROM links JOIN lowest USING (key) GROUP BY document)
UPDATE documents SET piece = nearest.piece FROM nearest
WHERE documents.document = nearest.document AND nearest.piece < documents.piece
"""
"""Each document joins the lowest piece that one of its keys leads to."""


@dataclass(frozen=True)
class Document:
    """A document as the ledger names it."""

    original: bytes | None
    """Of a duplicate, the name of the file that has the same piece."""
    same: bool
    """Whether that is by content, not only by likeness."""
    outcome: Outcome | None


class Journal:
    """Opened at `path`, made where there is none; use as a context manager.

    Raises:
        sqlite3.Error: no room, or a file that is no journal.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)  # transactions are ours
        for pragma in ("locking_mode = exclusive", "journal_mode = wal", "synchronous = normal"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("BEGIN")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def commit(self) -> None:
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def begin(self, source: dict[str, Any], names: Iterable[bytes]) -> None:
        """A new journal of the files of these names, in whatever order they come."""
        for table in TABLES:
            self._db.execute(f"CREATE TABLE {table}")
        self._db.execute("CREATE TEMP TABLE unsorted (name BLOB)")
        self._db.executemany("INSERT INTO unsorted VALUES (?)", ((name,) for name in names))
        self._db.execute("INSERT INTO files (name) SELECT name FROM unsorted ORDER BY name")
        self._db.execute("DROP TABLE unsorted")
        self.note("source", source)
        self.commit()

    def note(self, name: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def fact(self, name: str) -> Any:
        """What was noted; None where nothing was, or the journal has not begun."""
        if not self._count("sqlite_master WHERE name = 'facts'"):
            return None
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    # files -> what was found in them

    def count_unread(self) -> int:
        return self._count("files WHERE found IS NULL")

    def unread(self) -> Iterator[tuple[int, bytes]]:
        """Number and name of the files that were not scanned."""
        return self._pages("SELECT file, name FROM files WHERE file > ? AND found IS NULL ORDER BY file")

    def record_found(self, file: int, found: Found, documents: Sequence[Sequence[str]]) -> None:
        """What the scan of a file gave: of each document its fingerprint, then the keys of its likeness."""
        self._db.execute("UPDATE files SET found = ? WHERE file = ?", (json.dumps(asdict(found)), file))
        for place, (fingerprint, *keys) in enumerate(documents):
            number = file * PLACES + place
            self._db.execute("INSERT INTO documents VALUES (?, ?, ?, NULL, NULL)", (number, fingerprint, number))
            self._db.executemany("INSERT INTO keys VALUES (?, ?)", ((number, key) for key in keys))

    def count_files(self) -> int:
        return self._count("files")

    def first_refusal(self) -> str | None:
        (found,) = self._db.execute("SELECT found FROM files ORDER BY file LIMIT 1").fetchone()
        return Found(**json.loads(found)).refusal

    # documents -> pieces -> splits

    def group(self) -> int:
        """Find the documents that are one piece, by content or a key, through however many others; how many pieces."""
        self._db.execute(LINKS)
        self._db.execute(SPREAD)
        while self._db.execute("SELECT changes()").fetchone()[0]:
            self._db.execute(SPREAD)
        self._db.execute("DROP TABLE links")
        return self._count("documents WHERE piece = document")

    def assign_splits(self, split_of: Callable[[str], str]) -> None:
        """To the first document of each piece, by its fingerprint.

        Of three pieces and more, one at least is in val and one in train: where no fingerprint falls there by itself,
        the lowest and the highest.
        """
        self._db.create_function("split_of", 1, split_of, deterministic=True)
        self._db.execute("UPDATE documents SET split = split_of(fingerprint) WHERE piece = document")
        if self._count("documents WHERE split IS NOT NULL") < 3:
            return
        for split, order in (("val", "ASC"), ("train", "DESC")):
            if not self._count(f"documents WHERE split = '{split}'"):
                chosen = f"SELECT document FROM documents WHERE split IS NOT NULL ORDER BY fingerprint {order} LIMIT 1"
                self._db.execute(f"UPDATE documents SET split = '{split}' WHERE document = ({chosen})")

    # kept documents -> what became of them

    def count_unencoded(self) -> int:
        """How many files have documents that are kept and not encoded."""
        documents = f"(SELECT DISTINCT document / {PLACES} FROM documents WHERE split IS NOT NULL AND outcome IS NULL)"
        return self._count(documents)

    def unencoded(self) -> Iterator[tuple[int, bytes, list[tuple[int, str]]]]:
        """Number and name of those files, with the places of these documents and the split of each."""
        rows = self._pages(
            f"SELECT document, split, name FROM documents CROSS JOIN files ON file = document / {PLACES} "
            "WHERE document > ? AND split IS NOT NULL AND outcome IS NULL ORDER BY document"
        )
        for (file, name), documents in groupby(rows, key=lambda row: (row[0] // PLACES, row[2])):
            yield file, name, [(number % PLACES, split) for number, split, _ in documents]

    def shuffled(self) -> Iterator[tuple[int, bytes, list[tuple[int, str]]]]:
        """The same of all files with documents that are kept, in an order that depends on their content alone."""
        files = self._db.execute(
            f"SELECT file, name FROM documents CROSS JOIN files ON file = document / {PLACES} "
            "WHERE split IS NOT NULL GROUP BY file ORDER BY min(fingerprint)"
        )
        for file, name in files:
            documents = self._db.execute(
                f"SELECT document % {PLACES}, split FROM documents "
                "WHERE document BETWEEN ? AND ? AND split IS NOT NULL ORDER BY document",
                (file * PLACES, (file + 1) * PLACES - 1),
            )
            yield file, name, documents.fetchall()

    def record_outcome(self, file: int, place: int, outcome: Outcome) -> None:
        text = json.dumps(asdict(outcome))
        self._db.execute("UPDATE documents SET outcome = ? WHERE document = ?", (text, file * PLACES + place))

    def forget_outcomes(self) -> None:
        self._db.execute("UPDATE documents SET outcome = NULL")

    def outcomes(self) -> Iterator[Outcome]:
        for _, text in self._pages(
            "SELECT document, outcome FROM documents WHERE document > ? AND outcome IS NOT NULL ORDER BY document"
        ):
            yield Outcome(**json.loads(text))

    def ledger(self) -> Iterator[tuple[bytes, Found, list[Document]]]:
        """Every file in order: its name, what was found, and what became of each of its documents."""
        for file, name, found in self._pages("SELECT file, name, found FROM files WHERE file > ? ORDER BY file"):
            rows = self._db.execute(
                f"""
                SELECT CASE WHEN this.document != first.document THEN name END,
                       this.fingerprint = first.fingerprint, this.outcome
                FROM documents AS this JOIN documents AS first ON first.document = this.piece
                JOIN files ON file = first.document / {PLACES}
                WHERE this.document BETWEEN ? AND ? ORDER BY this.document
                """,
                (file * PLACES, (file + 1) * PLACES - 1),
            )
            documents = [
                Document(original, bool(same), Outcome(**json.loads(text)) if text else None)
                for original, same, text in rows.fetchall()
            ]
            yield name, Found(**json.loads(found)), documents

    def _count(self, rows: str) -> int:
        return int(self._db.execute(f"SELECT count(*) FROM {rows}").fetchone()[0])

    def _pages(self, query: str) -> Iterator[Any]:
        """The rows of a query that asks for `number > ?` in the order of the number, which comes first.

        A page at a time, each read to its end: what is recorded meanwhile disturbs no cursor.
        """
        last = -1
        while rows := self._db.execute(f"{query} LIMIT {PAGE}", (last,)).fetchall():
            yield from rows
            last = rows[-1][0]
