"""From a cold process: `musicgpt --help`, and a phrase continued to a written file, beside transformers with miditok.

    python benchmarks/cold_start.py CHECKPOINT [--prompt pop] [--bars 8] [--rounds 7] [--json FILE]

The peer is the shortest script that does the same with the same checkpoint: it reads the prompt from a MIDI file, makes
as many ids as ours took for the bars (it has no other way to say a length), and writes a MIDI file. Processes take
turns; the files they need are in the system's cache from a first round that does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import musicgpt
from musicgpt import midi
from musicgpt.checkpoint import resolve_checkpoint

SCRIPT = """
import sys
import torch
from miditok import REMI
from symusic import Score
from transformers import GPT2LMHeadModel
checkpoint, prompt, new, out = sys.argv[1:]
tokenizer = REMI(params=f"{checkpoint}/tokenizer.json")
model = GPT2LMHeadModel.from_pretrained(checkpoint)
ids = torch.tensor([[tokenizer["BOS_None"], *tokenizer.encode(Score(prompt)).ids]])
made = model.generate(ids, do_sample=True, top_k=40, min_new_tokens=int(new), max_new_tokens=int(new))
tokenizer.decode(made[0].tolist()).dump_midi(out)
"""


def seconds(command: list[str], out: Path | None = None) -> float:
    """How long it takes from start to end, with `out` written."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    took = time.perf_counter() - start
    if out is not None:
        assert midi.read_scores(out)[0][0].note_num() > 0
        out.unlink()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompt", default="pop", help="a phrase, or a file")
    parser.add_argument("--bars", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write all times")
    options = parser.parse_args()
    checkpoint = resolve_checkpoint(options.checkpoint)
    model = musicgpt.load(checkpoint)
    stream = model.stream(options.prompt, bars=options.bars)
    new = sum(1 for _ in stream.steps())
    with tempfile.TemporaryDirectory(prefix="musicgpt-") as folder:
        prompt, out = Path(folder) / "prompt.mid", Path(folder) / "out.mid"
        model.tokenizer.write(model.tokenizer.prompt(options.prompt)[0], prompt)
        ours = [sys.executable, "-m", "musicgpt"]
        generate = ["generate", str(checkpoint), "--prompt", str(prompt), "--bars", str(options.bars), "-o", str(out)]
        script = [sys.executable, "-c", SCRIPT, str(checkpoint), str(prompt), str(new), str(out)]
        commands = {
            "musicgpt --help": ([*ours, "--help"], None),
            "musicgpt generate": ([*ours, *generate], out),
            "transformers and miditok": (script, out),
            "of which: import torch": ([sys.executable, "-c", "import torch"], None),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for i in range(options.rounds + 1):
            for name, command in commands.items():
                took = seconds(*command)
                times[name] += [took] if i else []
    middle = {name: statistics.median(each) for name, each in times.items()}
    peer = middle["transformers and miditok"]
    print(f"{options.bars} bars behind {options.prompt}: {new} ids; medians of {options.rounds} rounds\n")
    print("| from a cold process | seconds | of the peer's |\n|---|---|---|")
    for name, each in middle.items():
        print(f"| {name} | {each:.2f} | {each / peer:.2f} |")
    if options.json:
        options.json.write_text(json.dumps({"ids": new, "seconds": times}, indent=1))


if __name__ == "__main__":
    main()
