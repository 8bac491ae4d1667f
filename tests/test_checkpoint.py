"""Directories: ours, transformers', and the ones that must be refused by name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from musicgpt.checkpoint import load, load_model, model_sha256, resolve_checkpoint, save_model, tokenizer_sha256
from musicgpt.errors import CheckpointError, TokenizerError, UsageError
from musicgpt.model import GPT, GPTConfig
from musicgpt.tokenizer import load_tokenizer, new_tokenizer

CONFIG = GPTConfig(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_model(tmp_path, GPT(CONFIG))
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "REMOVED"}))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model = GPT(CONFIG)
    save_model(tmp_path, model)
    again = load_model(tmp_path)
    assert again.config == CONFIG
    assert not again.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation_function", "relu"),
        ("n_inner", 100),
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("reorder_and_upcast_attn", True),
        ("add_cross_attention", True),
        ("tie_word_embeddings", False),
        ("model_type", "llama"),
        ("quantization_config", {"bits": 4}),
        ("rope_theta", 10000.0),
        ("n_head", 3),
        ("n_layer", "2"),
        ("vocab_size", 10**30),
        ("layer_norm_epsilon", "abc"),
        ("initializer_range", None),
    ],
)
def test_a_field_that_is_not_implemented_is_refused_by_name(directory: Path, field: str, value: object) -> None:
    edit(directory / "config.json", **{field: value})
    with pytest.raises(CheckpointError, match=field):
        load_model(directory)


def test_every_field_that_transformers_writes_is_known(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1, n_inner=64
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert load_model(tmp_path).config.n_layer == 2


def test_the_layout_of_the_first_gpt2_release_is_read(directory: Path) -> None:
    """No prefix, the causal masks stored as buffers, and the head a second time."""
    weights = {
        key.removeprefix("transformer."): value for key, value in load_file(directory / "model.safetensors").items()
    }
    extra = {"h.0.attn.bias": torch.ones(1, 1, 16, 16), "lm_head.weight": weights["wte.weight"].clone()}
    before = load_model(directory)
    save_file(weights | extra, directory / "model.safetensors")
    ids = torch.randint(0, 50, (1, 16))
    assert torch.equal(before(ids), load_model(directory)(ids))


def test_weights_split_over_files_are_read(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    names = sorted(weights)
    before = load_model(directory)
    (directory / "model.safetensors").unlink()
    for i, part in enumerate((names[:5], names[5:]), 1):
        save_file({name: weights[name] for name in part}, directory / f"model-0000{i}-of-00002.safetensors")
    ids = torch.randint(0, 50, (1, 16))
    assert torch.equal(before(ids), load_model(directory)(ids))


def test_pickled_weights_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is pickled.*refused"):
        load_model(directory)


def test_weights_that_do_not_fit_the_config_are_refused(directory: Path) -> None:
    edit(directory / "config.json", vocab_size=51)
    with pytest.raises(CheckpointError, match=r"wte.weight has shape \(50, 16\); expected \(51, 16\)"):
        load_model(directory)
    edit(directory / "config.json", vocab_size=50, n_layer=3)
    with pytest.raises(CheckpointError, match=r"lacks 12 weights of its config, the first h\.2"):
        load_model(directory)
    edit(directory / "config.json", n_layer=1)
    with pytest.raises(CheckpointError, match="a GPT-2 of this config has none"):
        load_model(directory)


@pytest.mark.parametrize("spoil", ["nan", "int8", "untied head"])
def test_weights_that_mean_nothing_are_refused(spoil: str, directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    if spoil == "nan":
        weights["transformer.wpe.weight"][3, 3] = float("nan")
    elif spoil == "int8":
        weights = {name: weight.to(torch.int8) for name, weight in weights.items()}
        weights["padding"] = torch.zeros(100_000)  # so that the size alone does not tell
    else:
        weights["lm_head.weight"] = weights["transformer.wte.weight"] + 1
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"finite floating-point numbers|a head of its own|a GPT-2 of this config"
    ):
        load_model(directory)


def test_weights_of_two_precisions_become_one(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["transformer.ln_f.bias"] = weights["transformer.ln_f.bias"].half()
    save_file(weights, directory / "model.safetensors")
    assert {weight.dtype for weight in load_model(directory).parameters()} == {torch.float32}


def test_a_stray_file_of_weights_is_not_read(directory: Path) -> None:
    before = load_model(directory).wte.weight
    stray = {name: torch.zeros_like(weight) for name, weight in load_file(directory / "model.safetensors").items()}
    save_file(stray, directory / "model_old.safetensors")
    assert torch.equal(load_model(directory).wte.weight, before)


def test_a_device_that_is_not_there_is_one_line(run: Path) -> None:
    for name in ("foo", "cuda:99"):
        with pytest.raises(UsageError, match=f"the device {name} cannot be used here"):
            load(run, device=name)


def test_a_torn_weight_file_is_refused(directory: Path) -> None:
    data = (directory / "model.safetensors").read_bytes()
    for length in (0, 5, 200, len(data) - 1):
        (directory / "model.safetensors").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cannot be read as safetensors|cannot hold what"):
            load_model(directory)


def test_a_huge_config_allocates_nothing_before_it_is_refused(directory: Path) -> None:
    edit(directory / "config.json", n_embd=2_000_000, n_head=2)
    with pytest.raises(CheckpointError, match="cannot hold what config"):
        load_model(directory)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is another folder; expected a checkpoint"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="is a tokenizer; expected a checkpoint"):
        load_model(run / "shards")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_model(tmp_path)


def test_a_run_means_its_best_checkpoint(run: Path) -> None:
    assert resolve_checkpoint(run) == run / "best"
    newest = run / "checkpoints" / "000008"
    assert resolve_checkpoint(newest) == newest


def test_the_hash_of_a_model_is_that_of_what_it_computes(tmp_path: Path) -> None:
    """However its files are laid out; each change of a weight, the precision or the shape changes it."""
    hf = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.5)
    )
    hf.save_pretrained(tmp_path / "hf")
    model = load_model(tmp_path / "hf")
    found = model_sha256(model)
    assert re.fullmatch("[0-9a-f]{64}", found)
    save_model(tmp_path / "ours", model)
    hf.save_pretrained(tmp_path / "split", max_shard_size="5KB")
    assert len([*(tmp_path / "split").glob("*.safetensors")]) > 1
    edit(tmp_path / "ours" / "config.json", resid_pdrop=0.0, bos_token_id=3)
    for name in ("ours", "split"):
        assert model_sha256(load_model(tmp_path / name)) == found
    others = [found]
    for field, value in (("n_head", 4), ("layer_norm_epsilon", 1e-6)):
        whole = (tmp_path / "ours" / "config.json").read_bytes()
        edit(tmp_path / "ours" / "config.json", **{field: value})
        others.append(model_sha256(load_model(tmp_path / "ours")))
        (tmp_path / "ours" / "config.json").write_bytes(whole)
    for weight in model.state_dict().values():
        weight.view(-1)[-1] += 1
        others.append(model_sha256(model))
    assert len(set(others)) == len(others) == 3 + len(model.state_dict())


def test_the_hash_of_a_model_in_bfloat16(tmp_path: Path) -> None:
    model = GPT(CONFIG).bfloat16()
    save_model(tmp_path, model)
    assert load_model(tmp_path).wte.weight.dtype == torch.bfloat16
    assert model_sha256(load_model(tmp_path)) == model_sha256(model) != model_sha256(model.float())


def test_the_hash_of_a_tokenizer(run: Path, tunes: list[Any], tmp_path: Path) -> None:
    found = tokenizer_sha256(load_tokenizer(run / "best"))
    assert re.fullmatch("[0-9a-f]{64}", found)
    assert found == tokenizer_sha256(load_tokenizer(run / "shards")) == tokenizer_sha256(new_tokenizer("remi"))
    tokenizers = [new_tokenizer(name) for name in ("remi", "tsd", "bytes", "bpe", "characters")]
    for size in (800, 900):
        tokenizers.append(new_tokenizer("tsd"))
        size += tokenizers[-1].vocab_size
        tokenizers[-1].learn(tunes[:20], size)
    tokenizers[3].learn(["to be or not to be"], 260)
    hashes = [tokenizer_sha256(tokenizer) for tokenizer in tokenizers]
    assert len(set(hashes)) == len(hashes)
    for i, (tokenizer, before) in enumerate(zip(tokenizers, hashes, strict=True)):
        folder = tmp_path / str(i)
        folder.mkdir()
        tokenizer.save(folder)
        if "miditok_version" in json.loads((folder / "tokenizer.json").read_text()):
            edit(folder / "tokenizer.json", miditok_version="3.1.7", symusic_version="0.6.9")
        assert tokenizer_sha256(load_tokenizer(folder)) == before


def test_a_checkpoint_without_a_tokenizer_or_with_a_foreign_one_is_refused(run: Path, directory: Path) -> None:
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        load(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(run / "best" / name, directory / name)
    with pytest.raises(CheckpointError, match="they do not belong together"):
        load(directory)


def test_a_trained_checkpoint_generates_in_transformers(run: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "best")
    out = model.generate(torch.tensor([[1]]), max_new_tokens=5, do_sample=False)
    ours = load_model(run)
    assert int(ours(out[:, :-1])[0, -1].argmax()) == int(out[0, -1])
