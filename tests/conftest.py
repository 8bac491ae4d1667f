"""What several tests need: real music, and a real run trained through the command line."""

from __future__ import annotations

import os
import random
from importlib.util import find_spec
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: processes that share cores slow each other down
    os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import symusic

from musicgpt.cli import main
from musicgpt.midi import read_abc, write_midi

# how long an example takes is the machine's affair, and the same examples come each time
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")

SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ids", type=int, default=1000, help="how many ids are sampled of each kind of tokenizer")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real corpora and difficult inputs, beside the repository and never in it."""
    if not SHARED.is_dir():
        pytest.skip("the shared corpora are not beside this repository (../shared/data)")
    return SHARED


@pytest.fixture(scope="session")
def corpora(shared: Path) -> list[Path]:
    """35 files of every corpus, five each, the same on every run."""
    return [
        path
        for corpus in sorted((shared / "corpora").iterdir())
        for path in random.Random(7).sample(sorted(corpus.rglob("*.mid")), 5)
    ]


@pytest.fixture(scope="session")
def folk_books() -> Path:
    """The ABC tune books inside the music21 wheel."""
    spec = find_spec("music21")
    assert spec is not None, "the tests need the [corpus] extra"
    assert spec.origin is not None
    return Path(spec.origin).parent / "corpus"


@pytest.fixture(scope="session")
def tunes(folk_books: Path) -> list[symusic.Score]:
    """180 tunes by James Aird."""
    return read_abc((folk_books / "airdsAirs" / "book1.abc").read_text(errors="replace"), "book1.abc")


@pytest.fixture(scope="session")
def folk(tmp_path_factory: pytest.TempPathFactory, tunes: list[symusic.Score]) -> Path:
    """A folder of 60 tunes as MIDI files."""
    folder = tmp_path_factory.mktemp("folk")
    for i, score in enumerate(tunes[:60]):
        write_midi(score, folder / f"{i:03d}.mid")
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, folk: Path) -> Path:
    """A run of eight steps on those tunes: too little to sound, enough to be real."""
    out = tmp_path_factory.mktemp("runs") / "folk"
    main(
        f"train {folk} --out {out} --preset music-tiny --n-positions 128 --transpositions 2 --steps 8 --batch-size 4 "
        f"--checkpoint-every 4".split()
    )
    return out
