"""GPT-2: sizes, causality, the cache, the loss, and parity with transformers both ways."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

import musicgpt
from musicgpt import cpu_ops
from musicgpt import model as model_module
from musicgpt.checkpoint import load_model, save_model
from musicgpt.model import GPT, PRESETS, GPTConfig, KVCache, empty

SMALL = GPTConfig(vocab_size=211, n_positions=64, n_embd=48, n_layer=3, n_head=4)


@pytest.fixture
def gpt() -> GPT:
    torch.manual_seed(1)
    model = GPT(SMALL)
    with torch.no_grad():  # biases and norms begin at 0 and 1, where swapping two would go unseen
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_presets_have_the_published_number_of_weights(name: str, count: int) -> None:
    config = GPTConfig(vocab_size=50_257, **PRESETS[name])
    assert config.n_parameters == count
    assert sum(weight.numel() for weight in empty(config).parameters()) == count


def test_every_preset_counts_what_it_allocates() -> None:
    for shape in PRESETS.values():
        config = GPTConfig(vocab_size=777, n_positions=100, **shape)
        assert config.n_parameters == sum(weight.numel() for weight in empty(config).parameters())


def test_a_model_is_loaded_without_torchs_compiler() -> None:
    check = (
        "import sys; from musicgpt.model import *; config = GPTConfig(vocab_size=9, n_embd=8, n_layer=1, n_head=1)\n"
        "model = from_weights(config, GPT(config).state_dict()); model(torch.zeros(1, 5, dtype=torch.int64))\n"
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_logits_do_not_depend_on_what_comes_later(gpt: GPT) -> None:
    ids = torch.randint(0, 211, (2, 40))
    changed = ids.clone()
    changed[:, 25:] = (changed[:, 25:] + 1) % 211
    before, after = gpt(ids), gpt(changed)
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.allclose(before[:, 25:], after[:, 25:])


@pytest.mark.parametrize("cuts", [(64,), (1,) * 64, (10, 1, 1, 20, 1, 31), (63, 1)])
def test_with_and_without_the_cache_the_logits_agree(gpt: GPT, cuts: tuple[int, ...]) -> None:
    ids = torch.randint(0, 211, (3, 64))
    cache = KVCache(SMALL, 3)
    parts = torch.cat([gpt(part, cache) for part in ids.split(list(cuts), dim=1)], dim=1)
    assert cache.length == 64
    torch.testing.assert_close(parts, gpt(ids), atol=1e-5, rtol=1e-4)


def test_a_repeated_cache_is_that_many_rows(gpt: GPT) -> None:
    ids = torch.randint(0, 211, (1, 20))
    cache = KVCache(SMALL, 1)
    gpt(ids, cache)
    rows = cache.repeat(4)
    new = torch.randint(0, 211, (4, 1))
    expected = gpt(torch.cat((ids.repeat(4, 1), new), dim=1))[:, -1:]
    torch.testing.assert_close(gpt(new, rows), expected, atol=1e-5, rtol=1e-4)


def test_logits_to_keep_are_the_last(gpt: GPT) -> None:
    ids = torch.randint(0, 211, (2, 30))
    torch.testing.assert_close(gpt(ids, logits_to_keep=3), gpt(ids)[:, -3:])


def test_more_positions_than_learned_are_refused(gpt: GPT) -> None:
    with pytest.raises(ValueError, match="65 positions asked for; the model has learned 64"):
        gpt(torch.zeros(1, 65, dtype=torch.long))


@pytest.mark.parametrize("at_once", [2**24, 211 * 7])
def test_the_loss_in_chunks_is_the_loss_at_once(gpt: GPT, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", at_once)
    ids, targets = torch.randint(0, 211, (2, 40)), torch.randint(0, 211, (2, 40))
    targets[0, :11] = -100
    expected = F.cross_entropy(gpt(ids).flatten(0, 1), targets.flatten(), ignore_index=-100)
    expected.backward()
    gradients = [weight.grad.clone() for weight in gpt.parameters() if weight.grad is not None]
    gpt.zero_grad()
    loss = gpt.loss(ids, targets)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert len(gradients) == len(list(gpt.parameters()))
    for weight, gradient in zip(gpt.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gpt.loss(ids, targets, reduction="sum"), expected * (80 - 11))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("n_positions", [40, 256, 700])  # one by torch, one piece by ours, several with a rest
@pytest.mark.parametrize("mkl_is_slow", [True, False])
def test_the_fast_ways_of_a_cpu_are_the_plain_ones(
    mkl_is_slow: bool, n_positions: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients, as a share of their size, with and without autocast, on cores of either maker."""
    monkeypatch.setattr(cpu_ops, "MKL_IS_SLOW", mkl_is_slow)
    monkeypatch.setattr(cpu_ops, "AMX", True)
    config = GPTConfig(
        vocab_size=99, n_positions=n_positions, n_embd=48, n_layer=2, n_head=3, embd_pdrop=0.0, resid_pdrop=0.0,
        attn_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(2)
    model = GPT(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    ids = torch.randint(0, 99, (2, n_positions))

    def learned() -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model.loss(ids, ids)
            loss.backward()  # in it, as in training
        return [loss.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]

    fast = learned()
    monkeypatch.setattr(cpu_ops, "ONEDNN", None)
    for mine, plain in zip(fast, learned(), strict=True):
        assert (mine - plain).norm() <= tolerance * plain.norm() + 1e-6


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("openmp", ["GNU's", "another"])
def test_in_whatever_threads_they_run_the_numbers_are_the_same(
    threads: int, openmp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> list[torch.Tensor]:
        torch.manual_seed(1)
        x = torch.randn(3, 2000, 48).requires_grad_()
        norm, qkv = torch.randn(2, 48).requires_grad_(), torch.randn(2, 300, 3 * 64).requires_grad_()
        results = (
            cpu_ops.GELU.apply(x),
            cpu_ops.LayerNorm.apply(x, *norm, 1e-5),
            cpu_ops.Attention.apply(qkv, 2, 0.1),
        )
        sum(y.square().sum() for y in results).backward()
        return [*results, x.grad, norm.grad, qkv.grad]

    expected, before = made(), torch.get_num_threads()
    if openmp == "another":
        monkeypatch.setattr(cpu_ops, "_fork", lambda: None)
    try:
        torch.set_num_threads(threads)
        for mine, first in zip(made(), expected, strict=True):
            torch.testing.assert_close(mine, first, rtol=1e-5, atol=1e-5)  # products may add in another order
    finally:
        torch.set_num_threads(before)


def test_whatever_the_defaults_and_autocast_are_the_fast_ways_do_not_change() -> None:
    config = GPTConfig(vocab_size=99, n_positions=300, n_embd=48, n_layer=1, n_head=3, attn_pdrop=0.1)
    ids = torch.randint(0, 99, (2, 300))

    def learned() -> torch.Tensor:
        torch.manual_seed(3)
        model = GPT(config)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                loss = model.loss(ids, ids)
        finally:
            torch.set_default_dtype(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):  # behind a way there in float32
            loss.backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    torch.manual_seed(3)
    plain = GPT(config)
    plain.loss(ids, ids).backward()
    expected = torch.cat([weight.grad.flatten() for weight in plain.parameters() if weight.grad is not None])
    assert (learned() - expected).norm() < 0.01 * expected.norm()  # torch's own way back through the head is rounded


def test_numbers_that_do_not_lie_side_by_side_are_refused() -> None:
    x = torch.randn(64, 48)
    for wrong in (x.t(), x.double(), x.to("meta")):
        with pytest.raises(TypeError, match="side by side"):
            cpu_ops._everywhere("gelu", torch.float32, wrong.numel(), wrong, torch.empty(48, 64))


def test_where_nothing_compiles_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_ops, "_compiled", {})
    monkeypatch.setitem(sys.modules, "musicgpt.elementwise", None)
    monkeypatch.delattr(musicgpt, "elementwise", raising=False)
    model = GPT(GPTConfig(vocab_size=99, n_positions=300, n_embd=48, n_layer=1, n_head=3, attn_pdrop=0.5))
    ids = torch.randint(0, 99, (2, 300))
    with pytest.warns(UserWarning, match="torch goes on alone"):
        model.loss(ids, ids).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_dropout_of_attention_keeps_a_cpu_on_the_fast_way() -> None:
    """Nothing of T x T is kept for the way back, and there the same weights are left out: the gradient is right."""
    qkv = torch.randn(1, 300, 3 * 32).requires_grad_()
    torch.manual_seed(0)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        y = cpu_ops.Attention.apply(qkv, 2, 0.25)
    assert max(kept) == qkv.numel()
    y.square().sum().backward()
    direction = torch.randn_like(qkv)
    ends = []
    for sign in (1, -1):
        torch.manual_seed(0)
        moved = cpu_ops.Attention.apply((qkv + sign * 1e-3 * direction).detach(), 2, 0.25)
        ends.append(float(moved.double().square().sum()))
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(float((qkv.grad * direction).sum()), rel=1e-2)


def test_dropout_of_attention_leaves_the_mean_and_drops_its_share() -> None:
    torch.manual_seed(0)
    qkv = torch.zeros(1, 64, 3)  # all weights of a row alike, all values one: the result is the share that was kept
    qkv[:, :, 2] = 1
    rows = torch.stack([cpu_ops.Attention.apply(qkv, 1, 0.25)[0, :, 0] for _ in range(400)])
    assert rows.mean() == pytest.approx(1, abs=0.01)
    both = cpu_ops.Attention.apply(torch.cat([qkv.new_zeros(1, 64, 4), qkv.new_ones(1, 64, 2)], 2), 2, 0.25)[0]
    assert not torch.equal(both[:, 0], both[:, 1])  # heads leave out other weights
    assert (rows[:, 0] == 0).float().mean() == pytest.approx(0.25, abs=0.07)


def test_initialisation_is_that_of_gpt2() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=500, n_embd=256, n_layer=8, n_head=4))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.03)
    block = model.h[3]
    assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert block.attn.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert block.attn.c_attn.bias.abs().max() == 0
    assert torch.equal(block.ln_1.weight, torch.ones(256))


def test_dropout_is_on_in_training_only(gpt: GPT) -> None:
    ids = torch.randint(0, 211, (1, 30))
    assert torch.equal(gpt(ids), gpt(ids))
    gpt.train()
    assert not torch.equal(gpt(ids), gpt(ids))


@pytest.mark.parametrize(
    "wrong", [{"n_embd": 50}, {"n_layer": 0}, {"vocab_size": "9"}, {"resid_pdrop": 1.0}, {"n_head": True}]
)
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        GPTConfig(**({"vocab_size": 10, "n_embd": 48, "n_head": 4} | wrong))  # type: ignore[arg-type]


def test_our_weights_in_transformers(gpt: GPT, tmp_path: Path) -> None:
    save_model(tmp_path, gpt)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    ids = torch.randint(0, 211, (2, 64))
    with torch.inference_mode():
        assert (theirs.eval()(ids).logits - gpt(ids)).abs().max() < 1e-4


def test_their_weights_in_ours(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=211, n_positions=64, n_embd=48, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ids = torch.randint(0, 211, (2, 64))
    with torch.inference_mode():
        assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("length", [9, 64])
def test_other_precisions_pass_through(dtype: torch.dtype, length: int) -> None:
    torch.manual_seed(3)
    gpt = GPT(GPTConfig(vocab_size=50, n_positions=64, n_embd=64, n_layer=2, n_head=2)).eval()
    ids = torch.randint(0, 50, (2, length))
    with torch.no_grad():
        expected, found = gpt(ids), gpt.to(dtype)(ids)
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < 0.02
