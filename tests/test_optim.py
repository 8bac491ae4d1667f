"""Groups, the orthogonal update, and the schedule."""

from __future__ import annotations

import pytest
import torch

from musicgpt import optim
from musicgpt.model import GPT, GPTConfig
from musicgpt.optim import Muon, default_learning_rate, learning_rate_at, make_optimizers, orthogonal


@pytest.fixture
def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2))


def test_matrices_decay_and_vectors_do_not(gpt: GPT) -> None:
    for name in ("adamw", "muon"):
        groups = [
            group
            for optimizer in make_optimizers(gpt, name, learning_rate=1e-3, weight_decay=0.1)
            for group in optimizer.param_groups
        ]
        for group in groups:
            assert {weight.ndim for weight in group["params"]} == ({2} if group["weight_decay"] else {1})
        assert sum(weight.numel() for group in groups for weight in group["params"]) == gpt.config.n_parameters


def test_muon_has_the_matrices_inside_the_blocks_and_no_more(gpt: GPT) -> None:
    muon, adamw = make_optimizers(gpt, "muon", learning_rate=1e-3, weight_decay=0.1)
    taken = {id(weight) for group in muon.param_groups for weight in group["params"]}
    names = {name for name, weight in gpt.named_parameters() if id(weight) in taken}
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert names == {f"h.{i}.{kind}.weight" for i in range(2) for kind in kinds}
    assert isinstance(adamw, torch.optim.AdamW)


@pytest.mark.parametrize("shape", [(64, 64), (32, 128)])
def test_an_orthogonal_matrix_keeps_directions_and_evens_out_sizes(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 1e-3
    found = orthogonal(matrix[None])[0].float()
    sizes = torch.linalg.svdvals(found)
    assert sizes.max() < 1.3
    assert sizes.quantile(0.05) > 0.6  # the smallest of a square one may be nothing
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.linalg.matrix_norm(found - u @ vh) < 0.4 * torch.linalg.matrix_norm(u @ vh)


def test_matrices_taken_together_move_as_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a block: square, wide, tall, and three side by side; gradients in either order of memory."""
    torch.manual_seed(0)
    shapes = [(32, 32), (32, 128), (128, 32), (32, 96)] * 3
    begin, grads = [torch.randn(shape) for shape in shapes], [torch.randn(shape[::-1]).t() for shape in shapes]

    def moved(at_once: int) -> list[torch.Tensor]:
        monkeypatch.setattr(optim, "AT_ONCE", at_once)
        weights = [torch.nn.Parameter(weight.clone()) for weight in begin]
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad.clone()
        Muon(weights, lr=0.1, weight_decay=0.1).step()
        return [weight.detach() for weight in weights]

    for at_once in (1, 2 * 32 * 128, 2**22):
        for after, before, grad in zip(moved(at_once), begin, grads, strict=True):
            parts = 3 if grad.shape[1] == 96 else 1
            for part, of in zip((0.99 * before - after).chunk(parts, 1), grad.chunk(parts, 1), strict=True):
                u, _, vh = torch.linalg.svd(of, full_matrices=False)
                ideal = u @ vh * 0.1 * 0.2 * max(part.shape) ** 0.5
                assert (part - ideal).norm() < 0.4 * ideal.norm()


def test_queries_keys_and_values_are_made_orthogonal_by_themselves() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(32, 96))
    weight.grad = torch.randn(32, 96) * torch.tensor([1.0, 100.0, 0.01]).repeat_interleave(32)
    Muon([weight], lr=1.0, weight_decay=0.0).step()
    for part in weight.detach().chunk(3, dim=1):
        assert part.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)  # as AdamW's updates are


def test_muon_goes_down_a_slope() -> None:
    weight = torch.nn.Parameter(torch.eye(8) * 5)
    optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
    for _ in range(200):
        optimizer.zero_grad()
        (weight - 1).square().sum().backward()
        optimizer.step()
    assert (weight - 1).abs().mean() < 0.3


def test_muon_decays_in_proportion_to_the_rate() -> None:
    weight = torch.nn.Parameter(torch.eye(8))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.eye(8) * 0.95)


def test_the_rate_rises_along_a_line_and_falls_to_its_end() -> None:
    for name, middle, end in (("muon", 0.5, 0.0), ("adamw", 0.55, 0.1)):
        rates = [learning_rate_at(step, name, steps=1000, warmup=0.1) for step in range(1001)]
        assert rates[0] == pytest.approx(0.01)
        assert rates[99] == rates[100] == 1.0
        assert rates[550] == pytest.approx(middle, abs=1e-3)
        assert rates[1000] == pytest.approx(end)
        assert rates[:100] == sorted(rates[:100])
        assert rates[100:] == sorted(rates[100:], reverse=True)
        assert learning_rate_at(0, name, steps=1, warmup=0.0) == 1.0


def test_the_default_rate_falls_with_the_width() -> None:
    for name in ("muon", "adamw"):
        assert default_learning_rate(64, name) == default_learning_rate(128, name)
        assert default_learning_rate(1024, name) == pytest.approx(default_learning_rate(512, name) / 2)
