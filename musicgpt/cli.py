"""The verbs: each turns its flags into one call. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from musicgpt import __version__
from musicgpt.config import PrepareConfig, TrainConfig, flag
from musicgpt.errors import MusicGPTError, UsageError
from musicgpt.sampling import SamplingConfig

A = TypeVar("A")


class Parser(argparse.ArgumentParser):
    """A user's mistake is one line and exit status 1."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"musicgpt: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        options.verb(options)
    except MusicGPTError as error:
        print(f"musicgpt: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("musicgpt: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone
        sys.exit(1)


def make_parser() -> Parser:
    parser = Parser(prog="musicgpt", description="A language model of music: GPT-2 on MIDI.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"musicgpt {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    train = _verb(
        verbs, "train", _train, "train a model on a folder of music, a file, prepared shards, or a corpus by name"
    )
    train.add_argument("corpus", metavar="CORPUS", help="a folder, a file, shards, or a name: folk, chorales")
    train.add_argument("--out", required=True, metavar="RUN", type=Path, help="the run: checkpoints, metrics, samples")
    train.add_argument("--resume", action="store_true", help="go on with the run in RUN")
    train.add_argument("--init-from", metavar="CHECKPOINT", help="fine-tune these weights, with their vocabulary")
    train.add_argument("--force", action="store_true", help="replace the run in RUN")
    _add_fields(train, TrainConfig)
    _add_fields(train, PrepareConfig)

    prepare = _verb(verbs, "prepare", _prepare, "turn a corpus into shards (train does this by itself)")
    prepare.add_argument("corpus", metavar="CORPUS", help="a folder, a file, or a name: folk, chorales")
    prepare.add_argument("--out", required=True, metavar="SHARDS", type=Path, help="ids, manifest, ledger, tokenizer")
    prepare.add_argument("--force", action="store_true", help="replace what is in SHARDS")
    _add_fields(prepare, PrepareConfig)

    generate = _verb(verbs, "generate", _generate, "continue a phrase, or begin a piece")
    generate.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run (its best one)")
    generate.add_argument("--prompt", metavar="PHRASE", help="a file to continue")
    generate.add_argument("--prompt-tokens", metavar="N", type=int, help="use the first N ids of the prompt")
    generate.add_argument("--no-include-prompt", action="store_true", help="write the new part only")
    generate.add_argument(
        "--max-new-tokens", metavar="N", type=int, default=512, help="at most this many new ids (512)"
    )
    generate.add_argument("--num-samples", metavar="N", type=int, default=1, help="so many results, as one batch (1)")
    generate.add_argument("--seed", metavar="N", type=int, default=0, help="another number, another result (0)")
    generate.add_argument(
        "--no-top-k",
        dest="top_k",
        action="store_const",
        const=None,
        default=argparse.SUPPRESS,
        help="no limit on the candidates",
    )
    generate.add_argument("--device", default="cpu", help="cpu, cuda, mps (cpu)")
    generate.add_argument("--force", action="store_true", help="overwrite OUT")
    generate.add_argument(
        "-o", "--out", metavar="OUT", type=Path, help="where to write; out-1, out-2 … for several (out)"
    )
    _add_fields(generate, SamplingConfig)
    return parser


def _verb(verbs: Any, name: str, function: Any, text: str) -> Parser:
    parser: Parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.set_defaults(verb=function)
    return parser


def _add_fields(parser: Parser, config: type) -> None:
    """A flag for each field; one that is not given leaves no trace, so that defaults are the dataclass's own."""
    hints = get_type_hints(config)
    for field in fields(config):
        kinds = [kind for kind in (get_args(hints[field.name]) or (hints[field.name],)) if kind is not type(None)]
        default = "" if field.default is None else f" ({field.default})"
        parser.add_argument(
            flag(field.name),
            type=kinds[0],
            default=argparse.SUPPRESS,
            choices=field.metadata.get("choices"),
            metavar=None if "choices" in field.metadata else {str: "NAME", int: "N", float: "X"}[kinds[0]],
            help=field.metadata["help"] + default,
        )


def _chosen(options: argparse.Namespace, config: type[A]) -> tuple[A, frozenset[str]]:
    """The config with what the user gave, and the names of what that was."""
    given = {field.name: getattr(options, field.name) for field in fields(config) if hasattr(options, field.name)}  # type: ignore[arg-type]
    try:
        return config(**given), frozenset(given)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _train(options: argparse.Namespace) -> None:
    config, given = _chosen(options, TrainConfig)
    prepare_config, given_too = _chosen(options, PrepareConfig)
    from musicgpt.train import train

    with Meter() as meter:
        best = train(
            options.corpus,
            options.out,
            config,
            prepare_config,
            given=given | given_too,
            resume=options.resume,
            init_from=options.init_from,
            force=options.force,
            report=meter.report,
            progress=_track,
            meter=meter,
        )
    print(best)


def _prepare(options: argparse.Namespace) -> None:
    config, _ = _chosen(options, PrepareConfig)
    from musicgpt.corpus import resolve_corpus
    from musicgpt.prepare import prepare
    from musicgpt.shards import is_shards

    if options.out.exists() and not options.force and not is_shards(options.out) and any(options.out.iterdir()):
        raise UsageError(
            f"{options.out} is there and holds no shards; choose another --out, or replace it with --force"
        )
    prepare(resolve_corpus(options.corpus, _report), options.out, config, report=_report, progress=_track)
    print(options.out)


def _generate(options: argparse.Namespace) -> None:
    sampling, _ = _chosen(options, SamplingConfig)
    from musicgpt.compose import load

    model = load(options.checkpoint, device=options.device)
    out = options.out or Path("out" + model.tokenizer.suffixes[0])
    if out.suffix.lower() not in model.tokenizer.suffixes[:1]:
        raise UsageError(f"-o {out}: this model writes {model.tokenizer.suffixes[0]} files")
    n = options.num_samples
    paths = [out] if n == 1 else [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(1, n + 1)]
    taken = [path for path in paths if path.exists()]
    if taken and not options.force:
        raise UsageError(f"{taken[0]} is there already; choose another -o, or overwrite it with --force")
    if not out.parent.is_dir():
        raise UsageError(f"the folder {out.parent} does not exist; make it, or choose another -o")
    prompt_ids: list[int] = []
    if options.prompt is not None:
        document, remarks = model.tokenizer.prompt(options.prompt)
        for remark in remarks:
            _report(f"prompt: {remark}")
        prompt_ids = model.tokenizer.encode(document)
        for kind, count in model.tokenizer.losses(document, prompt_ids).items():
            if count:
                _report(f"prompt: {count} {kind.replace('_', ' ')}")
        if options.prompt_tokens is not None:
            if options.prompt_tokens < 1:
                raise UsageError(f"--prompt-tokens {options.prompt_tokens}: expected at least 1")
            prompt_ids = prompt_ids[: options.prompt_tokens]
    pieces = model.generate_many(
        n,
        prompt_ids,
        max_new_tokens=options.max_new_tokens,
        sampling=sampling,
        seed=options.seed,
        include_prompt=not options.no_include_prompt,
    )
    for piece, path in zip(pieces, paths, strict=True):
        piece.save(path)
        print(path)


def _track(items: Iterable[A], total: int, title: str) -> Iterable[A]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(
        items, description=title, total=total, console=console, transient=True, disable=not console.is_terminal
    )


class Meter:
    """The progress of a training: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.bar: Any = None
        self.val = ""

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def report(self, text: str) -> None:
        if self.console.is_terminal:
            self.console.print(text, markup=False, soft_wrap=True)
        else:
            _report(text)

    def __call__(self, row: dict[str, float], steps: int) -> None:
        """Show the metrics of one step."""
        if "val_loss" in row:
            self.val = f"val {row['val_loss']:.3f}"
        text = f"loss {row['loss']:.3f} {self.val} {row['tokens_per_second']:,.0f} tokens/s"
        if self.console.is_terminal:
            self._show(int(row["step"]), steps, text)
        elif "val_loss" in row:
            _report(f"step {int(row['step']):,} of {steps:,}: {text}")

    def _show(self, step: int, steps: int, text: str) -> None:
        from rich import progress

        if self.bar is None:
            self.bar = progress.Progress(
                "{task.description}",
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[text]}"),
                progress.TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task("training", total=steps, completed=step - 1, text=text)
            self.bar.start()
        self.bar.update(self.task, completed=step, text=text)
