"""The package as it is built, imported and described."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import musicgpt
from musicgpt.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)], check=True
    )
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name.startswith("musicgpt_midi-")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "musicgpt").rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    assert names == {path.relative_to(ROOT).as_posix() for path in files}


def test_the_wheel_trains_and_generates_outside_the_source_tree(wheel: Path, folk: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    environment = os.environ | {"PYTHONPATH": str(site)}

    def run(*command: str) -> str:
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert str(site) in run("-c", "import musicgpt; print(musicgpt.__file__)")
    run("-m", "musicgpt", "train", str(folk), "--out", "run", "--n-positions", "32", "--steps", "2")
    run("-m", "musicgpt", "generate", "run", "--max-new-tokens", "40", "-o", "out.mid")
    run("-m", "musicgpt", "generate", "run", "--prompt", "lament", "--prompt-tokens", "20", "-o", "on.mid")
    assert (tmp_path / "out.mid").read_bytes()[:4] == b"MThd"


def test_imports_point_one_way() -> None:
    """The contracts of pyproject.toml; one that lint-imports would miss: a module left out of the layers."""
    subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    listed = set(re.findall(r"musicgpt\.(\w+)", (ROOT / "pyproject.toml").read_text()))
    assert {path.stem for path in (ROOT / "musicgpt").glob("*.py")} - {"__init__"} <= listed


def test_the_version_is_in_the_changelog() -> None:
    assert f"## {musicgpt.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_no_path_of_a_machine_is_in_the_repository() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        if (ROOT / name).suffix in (".py", ".md", ".toml", ".txt", ".ipynb", "") and (ROOT / name).is_file():
            assert not re.search(r"(^|[\s\"'=])/(home|root|work|tmp)/", (ROOT / name).read_text()), name


def test_what_the_readme_points_to_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def commands_of(path: Path) -> list[str]:
    """Every `musicgpt …` line in the code blocks of a document, continued lines joined."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", path.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+", " ", line.split("#")[0]).strip() for line in lines if line.startswith("musicgpt ")]


@pytest.mark.parametrize("command", commands_of(ROOT / "README.md"))
def test_the_commands_of_the_readme_run(
    command: str, run: Path, folk: Path, folk_books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a folder, a phrase and a run of the names the README uses, and few steps."""
    monkeypatch.chdir(tmp_path)
    for name in ("my_midis", "pop909", "made"):
        (tmp_path / name).symlink_to(folk)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "phrase.mid").write_bytes((folk / "004.mid").read_bytes())
    (tmp_path / "runs").mkdir()
    for name in ("notes.txt", "tinyshakespeare.txt"):
        (tmp_path / name).write_text((ROOT / "README.md").read_text())
    arguments = shlex.split(command)[1:]
    for name in ("jig.mid", "out.mid"):  # what the commands before it made
        if arguments[0] != "generate" and f"-o {name}" not in command:
            (tmp_path / name).write_bytes((folk / "004.mid").read_bytes())
    shape = "--n-positions 64 --batch-size 1 --steps 1 --transpositions 1".split()
    if arguments[0] == "train":
        if "--resume" in arguments:
            main(["train", arguments[1], "--out", "runs/mine", *shape])
        if "--init-from" in arguments:
            (tmp_path / "runs" / "folk").symlink_to(run)
            shape = shape[2:]  # the context is the checkpoint's
        arguments += shape
    else:
        for name in ("mine", "pop909", "folk", "demo"):
            (tmp_path / "runs" / name).symlink_to(run)
        if arguments[1] in ("runs/text", "runs/shakespeare"):
            main(["train", "notes.txt", "--out", arguments[1], *shape])
    if arguments[0] == "generate":
        if "--replay" in arguments:
            main("generate runs/mine --bars 1 -o out.mid".split())
        else:
            arguments += "--max-new-tokens 60".split()
            arguments += [] if "--prompt-bars" in arguments else ["--prompt-tokens", "40"]
    main(arguments)
