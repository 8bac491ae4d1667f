"""GPT-2: sizes, causality, the cache, the loss, and parity with transformers both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

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
