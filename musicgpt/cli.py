"""The verbs: each turns its flags into one call. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args, get_type_hints

from musicgpt import __version__
from musicgpt.config import BOXED, WEIGHT_KINDS, PrepareConfig, TrainConfig, flag
from musicgpt.constraints import SURROUNDED, Constraints, read_bars
from musicgpt.errors import MusicGPTError, UsageError
from musicgpt.sampling import SamplingConfig

if TYPE_CHECKING:
    from musicgpt.compose import LanguageModel

A = TypeVar("A")

METAVARS = {str: "NAME", int: "N", float: "X"}


class Parser(argparse.ArgumentParser):
    """A user's mistake is one line and exit status 1."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """A verb refuses by itself what it does not know: argparse would point to the help that lists the verbs."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"musicgpt: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        options.verb(options)
    except MusicGPTError as error:
        if _is_first():  # of the processes of one training, one says it
            print(f"musicgpt: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # the disk, a folder, a file: what the machine refuses is the user's to mend
        if isinstance(error, BrokenPipeError):  # the reader of our output has gone
            sys.stderr.close()
            sys.exit(1)
        where = f": {error.filename}" if error.filename else ""
        print(f"musicgpt: error: {error.strerror or error}{where}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("musicgpt: interrupted", file=sys.stderr)
        sys.exit(130)


def make_parser() -> Parser:
    parser = Parser(
        prog="musicgpt", description="A language model of music: GPT-2 on MIDI, and on text.", allow_abbrev=False
    )
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
    train.add_argument("--tensorboard", action="store_true", help="also write the metrics for TensorBoard")
    _add_fields(train, TrainConfig)
    _add_fields(train, PrepareConfig)

    prepare = _verb(verbs, "prepare", _prepare, "turn a corpus into shards (train does this by itself)")
    prepare.add_argument("corpus", metavar="CORPUS", help="a folder, a file, or a name: folk, chorales")
    prepare.add_argument("--out", required=True, metavar="SHARDS", type=Path, help="ids, manifest, ledger, tokenizer")
    prepare.add_argument("--force", action="store_true", help="replace what is in SHARDS")
    _add_fields(prepare, PrepareConfig)

    generate = _verb(verbs, "generate", _generate, "continue a phrase, or begin a piece")
    generate.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT",
        help="a checkpoint, a run (its best one), or organisation/model of the Hugging Face Hub (the model that comes "
        "with the package)",
    )
    generate.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a model on the Hugging Face Hub")
    generate.add_argument(
        "--replay", metavar="MIDI", type=Path, help="make this file again, from what is written in it"
    )
    generate.add_argument("--device", default="cpu", help="cpu, cuda, mps (cpu)")
    _add_weights(generate)
    generate.add_argument("--force", action="store_true", help="overwrite OUT")
    generate.add_argument(
        "-o", "--out", metavar="OUT", type=Path, help="where to write; out-1, out-2 … for several (out)"
    )
    # as the fields below, what is not given leaves no trace
    piece = generate.add_argument_group("what is asked for", argument_default=argparse.SUPPRESS)
    piece.add_argument(
        "--prompt",
        metavar="PHRASE",
        help="what to continue: a file, ABC written out, or a phrase that ships (a wrong name lists them); "
        "for text, the words themselves",
    )
    piece.add_argument(
        "--task",
        choices=("summarize", "translate"),
        help="GPT-2's zero-shot prompts, made of the file given as --prompt",
    )
    piece.add_argument("--prompt-bars", metavar="N", type=int, help="use the first N bars of the prompt")
    piece.add_argument("--prompt-tokens", metavar="N", type=int, help="use the first N ids of the prompt")
    piece.add_argument("--no-include-prompt", action="store_true", help="write the new part only, from bar 1 on")
    piece.add_argument("--bars", metavar="N", type=int, help="exactly N new bars")
    piece.add_argument("--seconds", metavar="X", type=float, help="new music of X seconds, to the beat")
    piece.add_argument(
        "--max-new-tokens", metavar="N", type=int, help="at most N new ids (512 where no length is given)"
    )
    piece.add_argument("--num-samples", metavar="N", type=int, help="so many results, as one batch (1)")
    piece.add_argument("--best-of", metavar="N", type=int, help="keep the likeliest of N, by the model itself (1)")
    piece.add_argument(
        "--keep", choices=("best",), help="of --num-samples, the one nearest to the controls asked for (density, key …)"
    )
    piece.add_argument("--seed", metavar="N", type=int, help="another number, another result (0)")
    piece.add_argument(
        "--max-copied-bars", metavar="N", type=int, help="sample again where more bars are shared with a training piece"
    )
    piece.add_argument(
        "--against",
        metavar="WHERE",
        type=Path,
        help="look for copies in these shards, those of this run, or this index (CHECKPOINT's own)",
    )
    piece.add_argument("--stream", action="store_true", help="also print each note as it is made, as a JSON line")
    choice = generate.add_argument_group("how ids are chosen", argument_default=argparse.SUPPRESS)
    _add_fields(choice, SamplingConfig)
    choice.add_argument("--no-top-k", dest="top_k", action="store_const", const=None, help="no limit on the candidates")
    _add_fields(generate.add_argument_group("what the music keeps to"), Constraints)

    infill = _verb(verbs, "infill", _infill, "fill bars or tracks of a piece, and leave the rest as it is")
    infill.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="as for generate")
    infill.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a model on the Hugging Face Hub")
    infill.add_argument("--device", default="cpu", help="cpu, cuda, mps (cpu)")
    _add_weights(infill)
    infill.add_argument("--force", action="store_true", help="overwrite OUT")
    infill.add_argument(
        "--piece", required=True, metavar="MIDI", help="a file, a phrase that ships, or ABC written out"
    )
    infill.add_argument(
        "-o", "--out", metavar="OUT", type=Path, help="where to write; OUT-1 is the best of several (out)"
    )
    piece = infill.add_argument_group("what is asked for", argument_default=argparse.SUPPRESS)
    piece.add_argument("--bars", metavar="A-B", help="which bars, counted from 1, as 5-8 (all)")
    piece.add_argument("--num-samples", metavar="N", type=int, help="so many takes, the likeliest first (1)")
    piece.add_argument("--keep", choices=("best",), help="of those, the one nearest to the controls asked for")
    piece.add_argument("--seed", metavar="N", type=int, help="another number, another result (0)")
    choice = infill.add_argument_group("how ids are chosen", argument_default=argparse.SUPPRESS)
    _add_fields(choice, SamplingConfig)
    choice.add_argument("--no-top-k", dest="top_k", action="store_const", const=None, help="no limit on the candidates")
    keeps = infill.add_argument_group("what the music keeps to", argument_default=argparse.SUPPRESS)
    keeps.add_argument(
        "--track",
        action="append",
        metavar="WHAT",
        help="a track to fill, by its number in inspect (from 0) or its instrument, which may be new; with what "
        "holds for it, as 1:pitch-range=C2-C4 (repeat it for others; all)",
    )
    _add_fields(keeps, Constraints, leave_out=(*SURROUNDED, "bars_left", "track"))

    render = _verb(verbs, "render", _render, "turn a piece into sound (.wav) or a piano roll (.png, .svg)")
    render.add_argument("piece", metavar="MIDI", type=Path, help="a file of music")
    render.add_argument("-o", "--out", required=True, metavar="OUT", type=Path, help="OUT.wav, OUT.png or OUT.svg")
    render.add_argument(
        "--boundary", metavar="QUARTERS", type=float, help="quarter notes that are the prompt, told apart"
    )
    render.add_argument("--force", action="store_true", help="overwrite OUT")

    evaluate = _verb(
        verbs, "evaluate", _evaluate, "measure a model on a corpus, or pieces against real ones (--against)"
    )
    evaluate.add_argument("subject", metavar="CHECKPOINT", help="a checkpoint, or a run (its best one); or pieces")
    evaluate.add_argument("corpus", nargs="?", metavar="CORPUS", help="a folder, a file, shards, or a name: folk …")
    evaluate.add_argument("--json", action="store_true", help="one JSON object")
    scored = evaluate.add_argument_group("of a model, on CORPUS", argument_default=argparse.SUPPRESS)
    scored.add_argument("--split", choices=("train", "val", "test"), help="which part of it (val)")
    scored.add_argument("--stride", metavar="N", type=int, help="new ids a window; fewer, more context (half of it)")
    scored.add_argument("--device", help="cpu, cuda, mps (cpu)")
    _add_weights(scored)
    compared = evaluate.add_argument_group("of pieces (a folder or a file)", argument_default=argparse.SUPPRESS)
    compared.add_argument("--against", metavar="REAL", help="real pieces: a folder, a file, or a corpus by name")
    compared.add_argument("--bars", metavar="N", type=int, help="compare the first N bars of each piece (the whole)")
    compared.add_argument("--plot", metavar="OUT", type=Path, help="also draw the distributions: a .png or .svg")
    compared.add_argument("--seed", metavar="N", type=int, help="of the intervals (0)")
    compared.add_argument("--force", action="store_true", help="overwrite OUT")

    originality = _verb(
        verbs, "originality", _originality, "say what a piece shares with training pieces, in any key and tempo"
    )
    originality.add_argument(
        "piece", nargs="?", metavar="MIDI", help="a file of music, a phrase that ships, or ABC written out"
    )
    originality.add_argument(
        "--against",
        metavar="WHERE",
        type=Path,
        help="shards, a run with its own, an index that was made of them, or a checkpoint that holds one (boxed)",
    )
    originality.add_argument(
        "-o", "--out", metavar="INDEX", type=Path, help="keep the index of the shards, to give again"
    )
    originality.add_argument("--json", action="store_true", help="one JSON object")
    originality.add_argument("--force", action="store_true", help="overwrite INDEX")

    inspect = _verb(verbs, "inspect", _inspect, "say what a file or folder is and holds")
    inspect.add_argument(
        "path", metavar="PATH", type=Path, help="music, a run, a checkpoint, shards, a ledger …; or boxed"
    )
    inspect.add_argument("--json", action="store_true", help="one JSON object instead of words")
    inspect.add_argument(
        "--tokenizer",
        metavar="DIRECTORY",
        type=Path,
        help="show tokens, and levels of controls, by this tokenizer, checkpoint or run (or remi, tsd …, boxed)",
    )
    inspect.add_argument("-o", "--out", metavar="OUT", type=Path, help="draw the losses of a run: a .png or .svg")
    inspect.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser


def _verb(verbs: Any, name: str, function: Any, text: str) -> Parser:
    parser: Parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.set_defaults(verb=function)
    return parser


def _add_weights(parser: Any) -> None:
    parser.add_argument(
        "--weights",
        choices=WEIGHT_KINDS,
        help="what the matrices are made into (float32 on a CPU, elsewhere as they are stored); int8 is fastest",
    )


def _add_fields(parser: Any, config: type, leave_out: Sequence[str] = ()) -> None:
    """A flag for each field; one that is not given leaves no trace, so that defaults are the dataclass's own."""
    hints = get_type_hints(config)
    for field in fields(config):
        if not field.init or field.name in leave_out:
            continue
        if field.default == ():
            parser.add_argument(
                flag(field.name),
                action="append",
                default=argparse.SUPPRESS,
                metavar="WHAT",
                help=field.metadata["help"],
            )
            continue
        if hints[field.name] is bool:
            parser.add_argument(
                flag(field.name), action="store_true", default=argparse.SUPPRESS, help=field.metadata["help"]
            )
            continue
        kinds = [kind for kind in (get_args(hints[field.name]) or (hints[field.name],)) if kind is not type(None)]
        default = "" if field.default is None else f" ({field.default})"
        parser.add_argument(
            flag(field.name),
            type=kinds[0],
            default=argparse.SUPPRESS,
            choices=field.metadata.get("choices"),
            metavar=None if "choices" in field.metadata else field.metadata.get("metavar", METAVARS[kinds[0]]),
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

    wanted = options.tensorboard and _is_first()
    with Meter() as meter, _tensorboard(options.out) if wanted else nullcontext() as board:

        def show(row: dict[str, float], steps: int) -> None:
            meter(row, steps)
            if board is not None:
                for name, value in row.items():
                    board.add_scalar(name, value, int(row["step"]))

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
            meter=show,
        )
    if _is_first():
        print(best)


def _is_first() -> bool:
    """Whether this process speaks for all that torchrun started. distributed.rank would import torch."""
    return os.environ.get("RANK", "0") == "0"


def _tensorboard(run: Path) -> Any:
    """A writer of event files in RUN/tensorboard. Raises: UsageError: TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs TensorBoard: pip install 'musicgpt-midi[tensorboard]'") from error
    return SummaryWriter(str(run / "tensorboard"))


def _prepare(options: argparse.Namespace) -> None:
    config, _ = _chosen(options, PrepareConfig)
    from musicgpt.corpus import resolve_corpus
    from musicgpt.prepare import prepare

    corpus = resolve_corpus(options.corpus, _report)
    prepare(corpus, options.out, config, replace=options.force, report=_report, progress=_track)
    print(options.out)


def _generate(options: argparse.Namespace) -> None:
    _chosen(options, SamplingConfig)  # what cannot be read is said before a model is loaded
    _chosen(options, Constraints)
    others = {"verb", "checkpoint", "revision", "device", "weights", "replay", "out", "force"}
    asked = {name: value for name, value in vars(options).items() if name not in others}
    if options.replay is not None and asked:
        raise UsageError(f"--replay takes everything from the file: leave out {flag(min(asked))}")
    model = _load(options)
    suffix = model.tokenizer.suffixes[0]
    prints = model.tokenizer.prints
    out = options.out or (None if prints else Path("out" + suffix))
    against = asked.pop("against", None)
    if prints and (against is not None or "max_copied_bars" in asked):
        raise UsageError("--against and --max-copied-bars look for copies in music; this is a model of text")
    num_samples, best_of = asked.pop("num_samples", 1), asked.pop("best_of", 1)
    paths = _outputs(out, suffix, 1 if "keep" in asked else num_samples, options.force) if out else []
    if options.replay is not None:
        model.replay(options.replay, _report).save(paths[0])
        print(paths[0])
        return
    prompt = asked.pop("prompt", None)
    if "task" in asked:
        if not prints or prompt is None:
            raise UsageError(f"--task {asked['task']} needs a model of text, and the file as --prompt")
        document, _ = model.tokenizer.prompt(prompt)
        print(model.task(asked["task"], document, seed=asked.get("seed", 0)))
        return
    streams = asked.pop("stream", False)
    include_prompt = not asked.pop("no_include_prompt", False)
    asked |= {"include_prompt": include_prompt, "report": _report}
    index = _index(against) if against is not None else model.index
    chooses = {"keep", "max_copied_bars"} & asked.keys()
    if num_samples == best_of == 1 and not chooses and (streams or (prints and out is None)):
        stream = model.stream(prompt, **asked)
        if prints and include_prompt:
            print(model.tokenizer.decode(stream.prompt_ids), end="")
        for part in stream:
            print(part if prints else json.dumps(asdict(part)), end="" if prints else "\n", flush=True)
        if prints:
            print()
        pieces = [stream.piece()]
    elif streams:
        raise UsageError("--stream shows one piece: leave out --num-samples, --best-of, --keep, --max-copied-bars")
    else:
        pieces = model.generate_many(num_samples, prompt, best_of=best_of, against=index, **asked)
        if prints and not paths:
            print("\n".join(f"--- {i}\n{piece.document}" for i, piece in enumerate(pieces, 1)))
    for piece, path in zip(pieces, paths, strict=False):
        piece.save(path)
        if piece.guessed[0]:
            _report("of {:,} ids guessed ahead {:,} came true".format(*piece.guessed))
        for line in piece.answers:
            _report(line)
        if index is not None:
            _report(piece.originality(index).in_line())
        if not streams:
            print(path)


def _load(options: argparse.Namespace) -> LanguageModel:
    with _kept():
        from musicgpt.compose import load

        return load(
            options.checkpoint or BOXED, revision=options.revision, device=options.device, weights=options.weights
        )


def _infill(options: argparse.Namespace) -> None:
    _chosen(options, SamplingConfig)
    others = {"verb", "checkpoint", "revision", "device", "weights", "piece", "track", "out", "force"}
    asked = {name: value for name, value in vars(options).items() if name not in others}
    if "bars" in asked:
        read_bars(asked["bars"])  # what cannot be read is said before a model is loaded
    num_samples = 1 if "keep" in asked else asked.get("num_samples", 1)
    paths = _outputs(options.out or Path("out.mid"), ".mid", num_samples, options.force)
    model = _load(options)
    tracks = getattr(options, "track", [])
    for filled, path in zip(model.infill(options.piece, tracks=tracks, report=_report, **asked), paths, strict=False):
        filled.save(path)
        for line in filled.answers:
            _report(line)
        if model.index is not None:
            _report(filled.originality(model.index).in_line())
        print(path)


@contextmanager
def _kept() -> Iterator[None]:
    """What is made here lives as long as the process: the garbage collector leaves it alone, also at the end.

    Of torch's objects alone there are so many that looking through them takes a quarter of a short `generate`.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _outputs(out: Path, suffix: str, n: int, force: bool) -> list[Path]:
    """Where n results go, checked before the work begins."""
    if not out.suffix:
        out = out.with_name(out.name + suffix)
    if out.suffix.lower() != suffix:
        raise UsageError(f"-o {out}: this model writes {suffix} files")
    paths = [out] if n == 1 else [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(1, n + 1)]
    _refuse_to_overwrite(paths, force)
    return paths


def _render(options: argparse.Namespace) -> None:
    from musicgpt.render import render

    _refuse_to_overwrite([options.out], options.force)
    render(options.piece, options.out, boundary=options.boundary)
    print(options.out)


def _compare(
    generated: str, real: str, as_json: bool, *, plot: Path | None = None, force: bool = False, **how: Any
) -> None:
    if plot is not None:
        _check_picture(plot, "--plot", force)
    from musicgpt import comparison
    from musicgpt.files import write_bytes
    from musicgpt.render import picture_bytes

    found = comparison.compare(generated, real, **how, report=_report, progress=_track)
    if plot is not None:
        write_bytes(plot, picture_bytes(comparison.picture(found), plot.suffix.lower().removeprefix(".")))
        _report(f"distributions drawn in {plot}")
    print(json.dumps(comparison.as_json(found)) if as_json else "\n".join(comparison.in_words(found)))


def _evaluate(options: argparse.Namespace) -> None:
    given = {name: value for name, value in vars(options).items() if name not in ("verb", "subject", "corpus", "json")}
    if ("against" in given) == (options.corpus is not None):
        raise UsageError("evaluate takes a checkpoint and a corpus, or pieces and --against real ones")
    of_model = {"split", "stride", "device", "weights"}
    if foreign := sorted(given.keys() & of_model if "against" in given else given.keys() - of_model):
        wanted = "a checkpoint and a corpus" if "against" in given else "pieces and --against"
        raise UsageError(f"{flag(foreign[0])} goes with {wanted}; leave it out")
    if "against" in given:
        _compare(options.subject, given.pop("against"), options.json, **given)
        return
    from musicgpt.evaluate import evaluate

    found = evaluate(options.subject, options.corpus, **given, report=_report, progress=_track)
    if options.json:
        print(json.dumps(found))
        return
    rows = [("loss (nats per token)", found["loss"]), ("perplexity", found["perplexity"])]
    rows += [(key.replace("_", " "), found[key]) for key in found if key.startswith("bits_per_") and found[key]]
    rows += [(f"{name}, without a model (nats)", loss) for name, loss in found["baselines"].items()]
    for name, value in rows:
        print(f"{name:34} {value:10.4f}")
    unit = next((key for key in found if key.startswith("bits_per_") and found[key]), "loss")
    parts = {"all": found, **found["by_folder"]}
    print(f"{unit.replace('_', ' '):34} {'model':>10} {'back_off':>10} {'documents':>10}")
    for name, part in parts.items():
        print(f"  {name:32} {part[unit]:10.4f} {part['back_off'][unit]:10.4f} {part['documents']:10,}")
    print(f"{found['tokens']:,} tokens of {found['documents']:,} documents, split {found['split']}, each scored once")
    print("without a model: counted on the training documents of the same corpus, which the model need not have seen")
    if found["bits_per_note"] is not None:
        print("bits per note compare only at equal grid, velocity steps, tracks and number of notes")


def _originality(options: argparse.Namespace) -> None:
    from musicgpt.originality import compare_file

    if options.out is not None:
        _refuse_to_overwrite([options.out], options.force)
    elif options.piece is None:
        raise UsageError("nothing to do: name a file of music, or with -o where to keep an index")
    index = _index(options.against)
    if options.out is not None:
        index.write(options.out)
        _report(f"index of {len(index.names):,} pieces in {options.out}")
    if options.piece is not None:
        found = compare_file(options.piece, index, _report)
        print(json.dumps(asdict(found)) if options.json else found.in_words())


def _index(where: Path | None) -> Any:
    from musicgpt.originality import open_index

    return open_index(where, _track)


def _inspect(options: argparse.Namespace) -> None:
    out: Path | None = options.out
    if out is not None:
        _check_picture(out, "-o", options.force)
    from musicgpt.describe import describe, in_words, loss_curve, picture
    from musicgpt.files import write_bytes

    description = describe(options.path, options.tokenizer)
    if out is not None:
        if description["kind"] != "run":
            raise UsageError(f"-o draws the losses of a run; {options.path} is of the kind {description['kind']}")
        write_bytes(out, picture(loss_curve(options.path), out.suffix.lower()))
        _report(f"losses drawn in {out}")
    print(json.dumps(description) if options.json else in_words(description))


def _check_picture(out: Path, flag: str, force: bool) -> None:
    """Raises: UsageError: it does not end as a picture does, or cannot be written without overwriting."""
    if out.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"{flag} {out}: expected a name that ends in .png or .svg")
    _refuse_to_overwrite([out], force)


def _refuse_to_overwrite(paths: Sequence[Path], force: bool) -> None:
    """Raises: UsageError: one of them is there (and there is no --force), or their folder is not."""
    taken = [path for path in paths if path.exists()]
    if taken and not force:
        raise UsageError(f"{taken[0]} is there already; choose another -o, or overwrite it with --force")
    missing = [path.parent for path in paths if not path.parent.is_dir()]
    if missing:
        raise UsageError(f"the folder {missing[0]} does not exist; make it, or choose another -o")


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
