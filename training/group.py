"""Processes that train one model together, started by torchrun on one machine: what is whose, and how it becomes one.

All hold the same weights and draw the same batches. Each computes the loss of its share of a batch; the gradients are
added up before the optimiser's step, so the steps are those of a single process with the whole batch, but for the order
of additions. Dropout is drawn for the whole batch, too, and each process takes its rows. Process 0 is the first: it
alone reads the history, evaluates and writes.

Messages between processes are JSON and tensors; nothing is pickled. The environment is read in `training.settings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.errors import TrainingError
from training.settings import Launch

__all__ = ["ALONE", "Device", "Group", "open_group"]

Device = Literal["auto", "cpu", "cuda"]

# the others wait while the first replays and evaluates
PATIENCE = timedelta(days=7)
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Group:
    """One process of `size`; `rank` counts from 0. device: that it trains on."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: int) -> slice:
        """This process's items of a batch; its first, which is to count nothing, if there are too few for all."""
        return slice(self.rank, None, self.size) if self.counts(items) else slice(0, 1)

    def counts(self, items: int) -> bool:
        """Whether a batch of so many items has any for this process."""
        return self.rank < items

    def tell(self, value: Any = None) -> Any:
        """The first's JSON value, in all processes. Waits for it."""
        if self.size == 1:
            return value
        text = msgspec.json.encode(value) if self.first else b""
        length = torch.tensor([len(text)])
        dist.broadcast(length, 0)
        content = torch.frombuffer(bytearray(text), dtype=torch.uint8) if self.first else torch.empty(
            int(length), dtype=torch.uint8)  # fmt: skip
        dist.broadcast(content, 0)
        return msgspec.json.decode(content.numpy().tobytes())

    def wait(self) -> None:
        """For all processes."""
        self.tell()
        self.total(0.0)

    def total(self, value: float) -> float:
        """The sum over all processes."""
        if self.size == 1:
            return value
        found = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(found)
        return float(found.item())

    def align(self, model: nn.Module) -> None:
        """Give a model the first's weights and buffers."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)

    def add_up(self, model: nn.Module) -> None:
        """Make every gradient the sum of all processes'. A parameter without one has none in any of them."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])  # one message instead of dozens
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    @contextmanager
    def dropout_of(self, model: nn.Module, items: int) -> Iterator[None]:
        """While a share of a batch of so many items goes through the model, dropout is that of the whole batch."""
        with ExitStack() as stack:
            for module in model.modules() if self.size > 1 else ():
                if isinstance(module, nn.Dropout):
                    stack.enter_context(_dropout(module, items, self.share(items)))
            yield


ALONE = Group()


@contextmanager
def open_group(launch: Launch, device: Device = "cpu") -> Iterator[Group]:
    """The group of the processes that were started with this one; left with it.

    device: `auto` takes a GPU where there is one for each process. Raises TrainingError for a GPU that is not there.
    """
    chosen = _device(launch, device)
    if launch.processes == 1:
        yield Group(device=chosen)
        return
    dist.init_process_group("gloo" if chosen.type == "cpu" else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
    try:
        yield Group(launch.rank, launch.processes, chosen)
    finally:
        dist.destroy_process_group()


def _device(launch: Launch, device: Device) -> torch.device:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and found < launch.processes):
        return CPU
    if found < launch.processes:
        raise TrainingError(f"--device cuda: torch sees {found} GPUs: expected one for each of {launch.processes}")
    chosen = torch.device("cuda", launch.local_rank)
    torch.cuda.set_device(chosen)
    return chosen


@contextmanager
def _dropout(module: nn.Dropout, items: int, share: slice) -> Iterator[None]:
    """Drawn as torch draws it for the whole batch, in the same order."""
    rate = module.p

    def drop(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        kept = torch.empty((items, *output.shape[1:]), dtype=output.dtype, device=output.device).bernoulli_(1.0 - rate)
        return output * kept[share].div_(1.0 - rate)

    module.p = 0.0
    handle = module.register_forward_hook(drop)
    try:
        yield
    finally:
        handle.remove()
        module.p = rate
