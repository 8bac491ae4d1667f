"""Engines that run the same GPT-2, ours and others, each in a process of its own.

A folder that `musicgpt.checkpoint.save_model` wrote -> functions of one kind, (prompt, rows, new, top_k) -> rows of new
ids, where a `top_k` of 1 takes the likeliest. What others need is converted from the folder into it. Each process waits
for its turn and is given time to let its threads go to sleep: those of an OpenMP that still spin halve the speed of the
next.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Generate = Callable[[list[int], int, int, int], list[list[int]]]
"""(prompt, rows, new, top_k) -> new ids of each row."""

QUIET_SECONDS = 0.5
"""More than any of them spins: LLVM's OpenMP for 0.2 s."""

CONTEXT = get_context("spawn")


class Process:
    """Something made in a process of its own, `build(*arguments)`, that is then called from here."""

    def __init__(self, build: Callable[..., Callable[..., Any]], *arguments: Any) -> None:
        """Raises: Missing: it cannot be made; the message says why."""
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
        self._process.start()
        if (reason := self._pipe.recv()) is not None:
            raise Missing(reason)

    def __call__(self, *arguments: Any) -> tuple[float, Any]:
        """The seconds that the call took there, and what it returned."""
        time.sleep(QUIET_SECONDS)
        self._pipe.send(arguments)
        seconds, result = self._pipe.recv()
        return seconds, result

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


class Missing(Exception):
    """An engine that is not installed, or does not start here."""


def _serve(pipe: Connection, build: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...]) -> None:
    try:
        call = build(*arguments)
    except Exception as error:  # of any library: the table is printed without it
        pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return
    pipe.send(None)
    while (given := pipe.recv()) is not None:
        start = time.perf_counter()
        result = call(*given)
        pipe.send((time.perf_counter() - start, result))


def ours(weights: str, folder: Path, threads: int) -> Generate:
    """With the grammar, where the folder has a tokenizer; the likeliest ids without it, to be compared."""
    import torch

    from musicgpt.checkpoint import load_model
    from musicgpt.cpu_engine import CpuEngine
    from musicgpt.drafts import Drafts
    from musicgpt.generate import generate
    from musicgpt.grammar import Grammar
    from musicgpt.midi_tokenizer import MidiTokenizer
    from musicgpt.sampling import SamplingConfig
    from musicgpt.vocabulary import Vocabulary

    torch.set_num_threads(threads)
    engine = CpuEngine(load_model(folder, weights=weights))
    engine.ready()
    has_grammar = (folder / "tokenizer.json").exists()
    vocabulary = Vocabulary(MidiTokenizer.load(folder)) if has_grammar else None

    def made(prompt: list[int], rows: int, new: int, top_k: int) -> list[list[int]]:
        config = SamplingConfig(top_k=top_k, temperature=1.0 if top_k > 1 else 0.0)
        options: dict[str, Any] = {"drafts": Drafts()}
        if vocabulary is not None and top_k > 1:
            grammar = Grammar(vocabulary, prompt[1:], bars=10**6)
            options |= {"guide": grammar, "state": grammar.begin, "n_ids": len(vocabulary)}
        steps = generate(engine, prompt, config, max_new_tokens=new, seed=0, num_samples=rows, **options)
        return [list(row) for row in zip(*(ids for ids, _ in steps), strict=True)]

    return made


def transformers(dtype: str, folder: Path, threads: int) -> Generate:
    import torch
    from transformers import GPT2LMHeadModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.generation_config.eos_token_id = None  # all make the same number of ids

    def made(prompt: list[int], rows: int, new: int, top_k: int) -> list[list[int]]:
        ids = torch.tensor([prompt] * rows)
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            pad_token_id=0,
            max_new_tokens=new,
            do_sample=top_k > 1,
            top_k=top_k if top_k > 1 else None,
        )
        return found[:, len(prompt) :].tolist()  # type: ignore[no-any-return]

    return made


def ctranslate2(compute_type: str, folder: Path, threads: int) -> Generate:
    import ctranslate2

    target = folder / "ctranslate2"
    if not target.exists():
        from ctranslate2.converters.transformers import GPT2Loader
        from transformers import GPT2LMHeadModel, logging

        logging.disable_progress_bar()
        model = GPT2LMHeadModel.from_pretrained(folder)
        spec = GPT2Loader().get_model_spec(model)
        spec.register_vocabulary([str(id) for id in range(model.config.vocab_size)])
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
        spec.validate()
        spec.optimize()
        target.mkdir()
        spec.save(str(target))
    generator = ctranslate2.Generator(str(target), compute_type=compute_type, inter_threads=1, intra_threads=threads)

    def made(prompt: list[int], rows: int, new: int, top_k: int) -> list[list[int]]:
        found = generator.generate_batch(
            [[str(id) for id in prompt]] * rows,
            max_length=new,
            min_length=new,
            sampling_topk=top_k,
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in found]

    return made


LLAMA_TYPES = {"F32": 0, "Q8_0": 7, "BF16": 32}
"""llama.cpp's numbers for kinds of files."""


def llama_cpp(kind: str, folder: Path, threads: int) -> Generate:
    """Through the functions of its C interface, with its own sampler: no Python but one call of each for a token."""
    import llama_cpp as c
    import torch

    silent = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(silent, ctypes.c_void_p(0))
    c.llama_backend_init()
    path = folder / f"{kind}.gguf"
    if not path.exists():
        plain = path.with_name("F32.gguf")
        if not plain.exists():
            _write_gguf(folder, plain)
        if path != plain:
            how = c.llama_model_quantize_default_params()
            how.ftype, how.nthread = LLAMA_TYPES[kind], threads
            assert c.llama_model_quantize(str(plain).encode(), str(path).encode(), ctypes.byref(how)) == 0
    how = c.llama_model_default_params()
    how.use_extra_bufts = not torch.cpu.get_capabilities().get("amx_int8")  # with AMX 0.3.36 ends by a fault in Q8_0
    model = c.llama_model_load_from_file(str(path).encode(), how)
    n_vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))

    def made(prompt: list[int], rows: int, new: int, top_k: int) -> list[list[int]]:
        assert silent
        settings = c.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.n_batch = rows * 1024, rows, 1024
        settings.n_threads = settings.n_threads_batch = threads
        context = c.llama_init_from_model(model, settings)
        samplers = []
        for row in range(rows):
            chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
            steps = [c.llama_sampler_init_top_k(top_k), c.llama_sampler_init_temp(1.0), c.llama_sampler_init_dist(row)]
            for step in steps if top_k > 1 else [c.llama_sampler_init_greedy()]:
                c.llama_sampler_chain_add(chain, step)
            samplers.append(chain)
        batch = c.llama_batch_init(rows * len(prompt), 0, 1)
        ids = [prompt] * rows
        rows_of_ids: list[list[int]] = [[] for _ in range(rows)]
        for step in range(new):
            first = step and len(prompt) + step - 1
            last = []  # where in the batch the last id of each row is
            batch.n_tokens = sum(map(len, ids))
            at = 0
            for row, own in enumerate(ids):
                for i, id in enumerate(own):
                    batch.token[at], batch.pos[at] = id, first + i
                    batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
                    batch.logits[at] = i == len(own) - 1
                    at += 1
                last.append(at - 1)
            assert c.llama_decode(context, batch) == 0
            ids = [[c.llama_sampler_sample(samplers[row], context, last[row])] for row in range(rows)]
            for own, (id,) in zip(rows_of_ids, ids, strict=True):
                own.append(id)
        c.llama_batch_free(batch)
        for chain in samplers:
            c.llama_sampler_free(chain)
        c.llama_free(context)
        assert all(0 <= id < n_vocab for own in rows_of_ids for id in own)
        return rows_of_ids

    return made


def _write_gguf(folder: Path, path: Path) -> None:
    """The checkpoint as a file of llama.cpp, without a vocabulary."""
    import gguf
    from safetensors.numpy import load_file

    from musicgpt.files import read_json

    config = read_json(folder / "config.json")
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(LLAMA_TYPES["F32"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    theirs = {
        "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm", "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }  # fmt: skip
    for name, weight in load_file(folder / "model.safetensors").items():
        name, _, kind = name.removeprefix("transformer.").rpartition(".")
        block = ""
        if name.startswith("h."):
            _, number, name = name.split(".", 2)
            block = f"blk.{number}."
        writer.add_tensor(
            f"{block}{theirs[name]}.{kind}", weight.T.copy() if ".c_" in name and weight.ndim == 2 else weight
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bandwidth(threads: int) -> Callable[[], int]:
    """A function that reads a gigabyte with all threads, and says how many bytes that is."""
    import numba
    import numpy as np

    numba.set_num_threads(threads)

    @numba.njit(parallel=True, fastmath=True)  # type: ignore[untyped-decorator]
    def total(array: Any) -> Any:
        found = np.float32(0)
        for i in numba.prange(len(array)):
            found += array[i]
        return found

    array = np.ones(2**28, dtype=np.float32)
    total(array)

    def read() -> int:
        total(array)
        return array.nbytes

    return read


@dataclass(frozen=True)
class Engine:
    """How one of them is made; `bits` is what a weight takes in memory."""

    name: str
    build: Callable[[Path, int], Generate]
    bits: float
    """Of a weight in memory."""


ENGINES = [
    Engine("ours, fp32", partial(ours, "float32"), 32),
    Engine("ours, int8", partial(ours, "int8"), 8),
    Engine("transformers, fp32", partial(transformers, "float32"), 32),
    Engine("transformers, bf16", partial(transformers, "bfloat16"), 16),
    Engine("CTranslate2, fp32", partial(ctranslate2, "float32"), 32),
    Engine("CTranslate2, int8", partial(ctranslate2, "int8"), 8),
    Engine("llama.cpp, F32", partial(llama_cpp, "F32"), 32),
    Engine("llama.cpp, BF16", partial(llama_cpp, "BF16"), 16),
    Engine("llama.cpp, Q8_0", partial(llama_cpp, "Q8_0"), 8.5),
]


@contextmanager
def started(engines: list[Engine], folder: Path, threads: int) -> Iterator[dict[str, Process]]:
    """Those that start, by name; why the others do not is said in a line each."""
    os.environ |= {"OMP_NUM_THREADS": str(threads)}
    found: dict[str, Process] = {}
    try:
        for engine in engines:
            try:
                found[engine.name] = Process(engine.build, folder, threads)
            except Missing as error:
                print(f"left out: {engine.name} ({error})")
        yield found
    finally:
        for process in found.values():
            process.close()
