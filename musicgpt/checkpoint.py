"""A directory <-> a model and its tokenizer, in the layout of Hugging Face.

    config.json              transformers' GPT2Config
    generation_config.json   its GenerationConfig: special ids and our sampling defaults
    model.safetensors        the names and shapes of GPT2LMHeadModel
    tokenizer.json, tokenizer_config.json   the tokenizer's own

`AutoModelForCausalLM.from_pretrained` loads what is written here and what it saves is loaded here. Safetensors and
JSON only: pickled weights are refused, and no file name found inside a checkpoint is followed. A field of a foreign
config that this GPT-2 does not implement is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from musicgpt.config import WEIGHT_KINDS, resolve_boxed
from musicgpt.errors import CheckpointError, InputError, UsageError
from musicgpt.files import read_json, set_aside, write_json
from musicgpt.int8 import is_int8, to_int8
from musicgpt.model import GPT, GPTConfig, empty, from_weights
from musicgpt.runs import checkpoints
from musicgpt.tokenizer import CONFIG_NAME, Tokenizer, load_tokenizer

WEIGHTS = "model.safetensors"
"""The model that comes with the package; a user calls it `boxed`."""

PREFIX = "transformer."
"""GPT2LMHeadModel holds the stack under this name; older files leave it out."""

FETCHED = ("*.json", "*.safetensors", "*.safetensors.xz", "merges.txt", "vocab.bpe")
"""What is fetched of a model on the Hub: nothing pickled."""

NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias")
"""Causal masks that old checkpoints stored as buffers."""

FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "tie_word_embeddings": (True,),
    "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "cross_attention_hidden_size": (None,),
}
"""Fields of GPT2Config with the only values that are implemented here."""

WITHOUT_MEANING = {
    "_name_or_path", "architectures", "auto_map", "dtype", "finetuning_task", "gradient_checkpointing", "id2label",
    "is_decoder", "label2id", "n_ctx", "output_attentions", "output_hidden_states", "output_past", "pad_token_id",
    "prefix", "problem_type", "return_dict", "return_dict_in_generate", "sep_token_id", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params",
    "tf_legacy_loss", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "use_bfloat16",
    "use_cache", "_attn_implementation_autoset", "_num_labels", "num_labels",
}  # fmt: skip
"""Fields that change no logit: bookkeeping, and what only other heads or the `generate` of transformers read."""

MAX_LAYERS = 1024
"""More are refused before a module is made of each; the largest GPT-2 has 48."""

PRECISIONS = ("F16", "BF16", "F32", "F64")
"""Of weights, as safetensors calls them."""

NOT_OF_THE_OUTPUT = ("embd_pdrop", "resid_pdrop", "attn_pdrop", "initializer_range", "bos_token_id", "eos_token_id")
"""Fields of GPTConfig that change no logit; special ids are the tokenizer's."""


def parse_config(values: dict[str, Any], name: str) -> GPTConfig:
    """What config.json holds -> our config.

    Raises:
        CheckpointError: a field that is missing, of a value not implemented, or unknown; the message names it.
    """
    ours = {field.name for field in fields(GPTConfig)}
    n_embd = values.get("n_embd", GPTConfig.n_embd)
    for key, value in values.items():
        if key in FIXED:
            if value not in FIXED[key]:
                raise CheckpointError(
                    f"{name} has {key} {value!r}, which is not implemented; expected {FIXED[key][0]!r}"
                )
        elif key == "n_inner":
            if value is not None and (not isinstance(n_embd, int) or value != 4 * n_embd):
                raise CheckpointError(f"{name} has n_inner {value!r}, which is not implemented; expected 4 x n_embd")
        elif key not in ours and key not in WITHOUT_MEANING:
            raise CheckpointError(f"{name} has the field {key} ({value!r}), which is not implemented")
    for key in ("model_type", "vocab_size"):
        if key not in values:
            raise CheckpointError(f"{name} has no {key}; expected the config of a GPT-2")
    try:
        return GPTConfig(**{key: value for key, value in values.items() if key in ours})
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{name}: {error}") from error


def save_model(directory: Path, model: GPT, tokenizer: Tokenizer[Any] | None = None) -> None:
    """Write the model, and its tokenizer where there is one, into a directory that need not exist.

    Raises:
        InputError: it cannot be written.
    """
    if is_int8(model):
        raise ValueError("int8 weights are not to be saved: they are made anew from a checkpoint")
    weights = {name: weight.detach().cpu() for name, weight in model.state_dict().items()}
    save_weights(directory, model.config, weights, tokenizer)


def save_weights(
    directory: Path, config: GPTConfig, weights: Mapping[str, torch.Tensor], tokenizer: Tokenizer[Any] | None
) -> None:
    """`save_model` of weights on the host, by name.

    Raises:
        InputError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {PREFIX + name: weight.contiguous() for name, weight in weights.items()}
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {directory / WEIGHTS}: {error}") from error
    special = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    if tokenizer is not None:
        special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        tokenizer.save(directory)
    dtype = str(weights["wte.weight"].dtype).removeprefix("torch.")
    shape = asdict(config) | special
    fixed = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "n_inner": None,
    }
    write_json(directory / "config.json", fixed | shape | {"tie_word_embeddings": True, "dtype": dtype})
    shutil.copymode(directory / "config.json", directory / WEIGHTS)  # safetensors lets only its owner read
    write_json(directory / "generation_config.json", special | {"do_sample": True, "top_k": 40})


def load_model(directory: str | Path, *, device: str | torch.device = "cpu", weights: str | None = None) -> GPT:
    """A checkpoint, or a run (then its best one) -> the model, in evaluation mode.

    Names, shapes and sizes are checked against the config before any weight is read. `weights` is one of WEIGHT_KINDS:
    what its matrices are made into; None leaves them as they are stored.

    Raises:
        CheckpointError: no checkpoint there, or one that does not fit this GPT-2; the message says what.
        UsageError: another kind of weights.
    """
    if weights not in (None, *WEIGHT_KINDS):
        raise UsageError(f"weights {weights!r}: expected one of {', '.join(WEIGHT_KINDS)}")
    directory = resolve_checkpoint(directory)
    try:
        config = parse_config(read_json(directory / "config.json"), str(directory / "config.json"))
    except InputError as error:
        raise CheckpointError(str(error)) from error
    paths = [directory / WEIGHTS]
    if not paths[0].is_file():  # transformers splits a large model over several files
        paths = sorted(path for path in directory.glob("model-?????-of-?????.safetensors") if path.is_file())
    if not paths:
        pickled = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
        raise CheckpointError(
            f"{directory} holds no {WEIGHTS}"
            + (
                f"; {pickled[0]} is pickled, which can run code when read, and is refused: save it as safetensors"
                if pickled
                else ""
            )
        )
    size = sum(path.stat().st_size for path in paths)
    if config.n_layer > MAX_LAYERS:
        raise CheckpointError(f"{directory} has {config.n_layer:,} layers; expected at most {MAX_LAYERS:,}")
    if size < 2 * config.n_parameters:  # before anything of that size is made; no weight has fewer than two bytes
        raise CheckpointError(
            f"{paths[0]} cannot hold what config.json describes: {size:,} bytes for {config.n_parameters:,} weights"
        )
    expected = {name: tuple(weight.shape) for name, weight in empty(config).state_dict().items()}
    found: dict[str, torch.Tensor] = {}
    head: torch.Tensor | None = None
    for path in paths:
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for key in file.keys():  # noqa: SIM118 not a mapping
                    name = key.removeprefix(PREFIX)
                    if name.endswith(NOT_WEIGHTS):
                        continue
                    stored = file.get_slice(key)
                    shape, wanted = tuple(stored.get_shape()), expected.get(name.replace("lm_head", "wte"))
                    if wanted != shape:
                        expectation = f"expected {wanted}" if wanted else "a GPT-2 of this config has none"
                        raise CheckpointError(f"{path}: the weight {key} has shape {shape}; {expectation}")
                    known = stored.get_dtype() in PRECISIONS
                    weight = file.get_tensor(key) if known else torch.tensor(torch.nan)
                    if not bool(torch.isfinite(weight).all()):
                        raise CheckpointError(f"{path}: the weight {key} is not made of finite floating-point numbers")
                    if name == "lm_head.weight":
                        head = weight
                    else:
                        found[name] = weight
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    missing = sorted(set(expected) - set(found))
    if missing:
        raise CheckpointError(f"{directory} lacks {len(missing)} weights of its config, the first {missing[0]}")
    dtype = found["wte.weight"].dtype
    found = {name: weight.to(dtype) for name, weight in found.items()}
    if head is not None and not torch.equal(head.to(dtype), found["wte.weight"]):
        raise CheckpointError(f"{directory} has a head of its own (lm_head.weight); expected one tied to wte.weight")
    model = from_weights(config, found)
    if weights == "int8":
        return to_int8(model.float())
    return model if weights is None else model.to(getattr(torch, weights))


def model_sha256(model: GPT) -> str:
    """A hash of the weights, their precision and the shape: the same for each layout of files and each device."""
    shape = {name: value for name, value in asdict(model.config).items() if name not in NOT_OF_THE_OUTPUT}
    found = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name, weight in sorted(model.state_dict().items()):
        found.update(f"\n{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        # as bytes: NumPy has no bfloat16
        found.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def tokenizer_sha256(tokenizer: Tokenizer[Any]) -> str:
    """A hash of what `save` writes, but for the versions of libraries and the note to the reader."""
    found = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="musicgpt-") as folder:
        tokenizer.save(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            values = {
                key: value for key, value in read_json(path).items() if key != "note" and not key.endswith("_version")
            }
            found.update(f"\n{path.name} {json.dumps(values, sort_keys=True)}".encode())
    return found.hexdigest()


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FETCHED)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{name} is no directory here, and cannot be had from the Hugging Face Hub ({reason}); "
            f"check the name and the network, or give a directory"
        ) from error


def load(
    directory: str | Path, *, revision: str | None = None, device: str | None = "cpu", weights: str | None = None
) -> tuple[GPT, Tokenizer[Any]]:
    """A checkpoint or a run -> its model and its tokenizer.

    `weights` as in `load_model`, but None makes float32 of half precision on a CPU, whose engine computes in that.

    Raises:
        CheckpointError: as `load_model`; or the tokenizer has more ids than the model.
        TokenizerError: the directory holds no tokenizer, or one that is refused.
    """
    directory = resolve_checkpoint(directory, revision)
    tokenizer = load_tokenizer(directory)
    target = device_named(device)
    model = load_model(directory, device=target, weights=weights)
    if weights is None and target.type == "cpu":
        model.float()
    ids, rows = tokenizer.vocab_size, model.config.vocab_size
    if ids != rows and (ids > rows or rows % 64):  # some pad the model to a multiple of 64, for speed
        raise CheckpointError(
            f"{directory}: the tokenizer has {ids} ids and the model {rows}; they do not belong together"
        )
    return model, tokenizer


def device_named(name: str | None) -> torch.device:
    """cpu, cuda, cuda:1, mps …; None for the fastest there is.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"the device {name} cannot be used here; expected cpu, or cuda or mps where there is one"
        ) from error
    return device


def resolve_checkpoint(path: str | Path, revision: str | None = None) -> Path:
    """A checkpoint -> itself; a run -> its best checkpoint, or its newest where none is best yet.

    Where there is no such path, `boxed` is the model that comes with the package, and `organisation/model` is fetched
    from the Hugging Face Hub into its cache.

    Raises:
        CheckpointError: none of these.
    """
    path = resolve_boxed(Path(path))
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        return _fetch(str(path), revision)
    best = path / "best"
    # set aside: by a training that is just replacing it, or died there; only a training puts that right
    for directory in (path, best, set_aside(best), *checkpoints(path)):
        if (directory / "config.json").is_file():
            return directory
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; expected a checkpoint or a run")
    found = "a file" if path.is_file() else "a tokenizer" if (path / CONFIG_NAME).is_file() else "another folder"
    raise CheckpointError(f"{path} is {found}; expected a checkpoint (config.json, {WEIGHTS}) or a run that has one")
