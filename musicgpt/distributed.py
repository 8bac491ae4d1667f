"""Many processes that train one model: who takes part, and how weights are spread over them.

Parallelism is applied from outside: the model does not know of it, and the names of its weights never change.

    ddp    every process holds the whole model; gradients are averaged (DistributedDataParallel)
    fsdp   weights, gradients and moments are sharded; a block is gathered while it is used (FSDP2's `fully_shard`)

Started by `torchrun`, which says in the environment who is who. Processes that are alone go through the same calls.
Source: Rajbhandari et al. 2020, "ZeRO"; Zhao et al. 2023, "PyTorch FSDP"; Korthikanti et al. 2022 for activations.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from musicgpt.errors import UsageError
from musicgpt.model import LOGITS_AT_ONCE, GPTConfig

A = TypeVar("A")

PATIENCE = timedelta(days=1)
"""How long processes wait for the one that prepares a corpus. Dead ones are noticed at once, by their connections."""


def rank() -> int:
    """Which of the processes that torchrun started this one is; 0 where there is only one."""
    return int(os.environ.get("RANK", "0"))


def restarted_since(record: Path) -> bool:
    """Whether torchrun started this process again, after one of them died, and `record` is of this same launch."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return False
    return record.stat().st_mtime >= float(psutil.Process(os.getppid()).create_time())


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them."""

    device: torch.device
    rank: int = 0
    size: int = 1
    parallel: str | None = None
    """ddp or fsdp; None: alone."""
    control: Any = None
    """The group in which numbers of the host are exchanged, whatever the device is."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def part(self, rows: int) -> slice:
        """Those of the rows of a batch that are this process's."""
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    def lead(self, work: Callable[[], A]) -> A:
        """Let the first process do what only one should, and give all its result; where it fails, all leave.

        The others leave without a word: the first one has said what is wrong.
        """
        if self.size == 1:
            return work()
        told: list[Any] = [None]
        try:
            if self.is_first:
                told = [(work(),)]
        finally:
            dist.broadcast_object_list(told, 0, group=self.control)
        if told[0] is None:
            raise SystemExit(1)
        return told[0][0]  # type: ignore[no-any-return]

    def sum(self, *values: float) -> list[float]:
        """Each value, added up over all processes in float64."""
        totals = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(totals, group=self.control)
        return totals.tolist()

    def spread(self, model: nn.Module) -> None:
        """Under fsdp: shard the model in place, each block of `model.h` as a unit; what is left is the root's.

        The token embedding is used at both ends, so it belongs to the root, which stays gathered in between.
        """
        if self.parallel == "fsdp":
            mesh = init_device_mesh(self.device.type, (self.size,))
            for block in model.h:  # type: ignore[union-attr]
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh, reshard_after_forward=True)  # or a validation would leave it gathered
            register_fsdp_forward_method(model, "loss")

    def fill(self, model: nn.Module, value_of: Callable[[str, torch.Size], Tensor]) -> None:
        """Give a model without storage its weights, by name and shape, and one at a time: no more is ever in memory.

        Every process asks for every weight, and keeps its part.
        """
        model.to_empty(device=self.device)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                scatter(value_of(name, weight.shape), weight)

    def gathered(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Whole tensors by name, on the host of the first process; the others take part and keep nothing."""
        found = {}
        for name, tensor in tensors:
            whole = gather(tensor)
            if self.is_first:
                found[name] = whole
        return found

    def objective(self, model: nn.Module) -> nn.Module:
        """An `Objective`, through whatever averages gradients over the processes."""
        objective = Objective(model)
        if self.parallel != "ddp":
            return objective
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(objective, device_ids=devices, gradient_as_bucket_view=True)

    def unsynchronised(self, objective: nn.Module, more: bool) -> AbstractContextManager[None]:
        """While `more` micro-batches follow, ddp keeps gradients to itself; fsdp has no room to do so."""
        return objective.no_sync() if more and isinstance(objective, DistributedDataParallel) else nullcontext()


class Objective(nn.Module):
    """What DistributedDataParallel needs: a module whose forward is all that is minimised."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, targets: Tensor, altered_ids: Tensor | None = None, segments: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T) each -> the sum of the losses of the targets, and of the discriminative losses of marks, in nats."""
        if altered_ids is None or segments is None:
            nats = self.model.loss(ids, targets, reduction="sum")  # type: ignore[operator]
            return nats, torch.zeros_like(nats)
        seed = int(torch.randint(2**62, ()))
        torch.manual_seed(seed)
        nats = self.model.loss(ids, targets, reduction="none")  # type: ignore[operator]
        torch.manual_seed(seed)  # the same dropout for both: they differ in their marks alone
        altered_nats = self.model.loss(altered_ids, targets, reduction="none")  # type: ignore[operator]
        return nats.sum(), discriminative_loss(nats, altered_nats, segments)


def discriminative_loss(nats: Tensor, altered_nats: Tensor, segments: Tensor) -> Tensor:
    """(B, T) nats of each target behind the true marks and behind the altered -> the sum over segments, in nats.

    Of each segment −log σ of how much likelier its targets are behind the true ones: ln 2 where marks make no
    difference. Source: after Krause et al. 2021, "GeDi", with one other class drawn for each segment, sums over ids
    where they take means, and no scale to learn.
    """
    count = int(segments.max())
    margins = nats.new_zeros(len(segments), count + 1).scatter_add(1, segments, altered_nats - nats)
    there = torch.arange(1, count + 1, device=segments.device) <= segments.amax(1, keepdim=True)
    return F.softplus(-margins[:, 1:])[there].sum()


@contextmanager
def joined(device: torch.device, parallel: str | None) -> Iterator[World]:
    """Take part in what torchrun started, or be alone; `device` says which kind, torchrun which one of them.

    Raises:
        UsageError: `parallel` without torchrun.
    """
    if "WORLD_SIZE" not in os.environ:
        if parallel is not None:
            raise UsageError(
                f"--parallel {parallel} is for several processes: torchrun --nproc-per-node 2 -m musicgpt train …"
            )
        yield World(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    store, rank, size = next(rendezvous("env://"))
    # on one machine the store outlives a restart, with the addresses of the dead
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield World(device, rank, size, parallel or "ddp", control)
    finally:
        dist.destroy_process_group()


def gather(tensor: Tensor) -> Tensor:
    """A tensor or this process's part of one -> the whole, on the host; all processes must call."""
    with torch.no_grad():
        return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def scatter(whole: Tensor, into: Tensor) -> None:
    """Copy a whole tensor, or this process's part of it, into one that may be sharded; nothing is sent."""
    if isinstance(into, DTensor):
        part = distribute_tensor(whole.to(into.device), into.device_mesh, into.placements, src_data_rank=None)
        into.to_local().copy_(part.to_local())
    else:
        into.copy_(whole)


def recompute(model: nn.Module) -> None:
    """Let each block of `model.h` keep its input only and work itself out again on the way back."""
    for block in model.h:  # type: ignore[union-attr]
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@dataclass(frozen=True)
class Memory:
    """What a step of training needs on one device, in bytes."""

    weights: int
    gradients: int
    moments: int
    """Of the optimizer: two for each weight; with Muon one for those of matrices inside the blocks."""
    activations: int
    """What the way back needs of the way forth, for one micro-batch, and its logits."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations


def memory(
    config: GPTConfig,
    *,
    devices: int = 1,
    parallel: str = "fsdp",
    micro_batch: int = 1,
    recomputed: bool = False,
    bfloat16: bool = False,
    optimizer: str = "muon",
) -> Memory:
    """The memory of a training: weights, gradients and moments in float32, of all `n_positions`.

    Activations as autograd keeps them on the CPU: a block has 2 C of the residual stream, 14 C of products, a number
    for each head and, with dropout, 2 C of masks, for each position; on CUDA a mask is a byte. Where marks of controls
    are compared, there is a second row beside each, so that a micro-batch of one has two. Not in it: short attention,
    which a CPU works out in float32 under bfloat16 (10 C bytes a position), the libraries, and what the allocator
    leaves unused.
    """
    C, T, B = config.n_embd, config.n_positions, micro_batch
    block = 12 * C * C + 13 * C
    root = config.n_parameters - config.n_layer * block
    shares = devices if parallel == "fsdp" else 1
    part = 4 * -(-config.n_parameters // shares)
    gathered = 4 * root if shares > 1 else 0  # the root stays whole from the first use to the last
    size = 2 if bfloat16 else 4
    masks = 2 * C if config.resid_pdrop else 0
    kept = B * T * (4 * (2 * C + 4 + config.n_head) + size * (14 * C + masks))
    blocks = config.n_layer * B * T * 4 * C + kept if recomputed else config.n_layer * kept
    ends = B * T * (4 * C * (2 + bool(config.embd_pdrop)) + size * C * bfloat16)
    logits = 3 * 4 * min(LOGITS_AT_ONCE, B * T * config.vocab_size)
    return Memory(
        weights=part + gathered + (2 * 4 * block if shares > 1 else 0),  # a block in use, and the next one
        gradients=part + gathered + (4 * block if shares > 1 else 0),
        moments=2 * part - (4 * -(-config.n_layer * 12 * C * C // shares) if optimizer == "muon" else 0),
        activations=blocks + ends + logits,
    )
