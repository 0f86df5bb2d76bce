"""The optimisation that fine-tuning and pre-training share: AdamW with a one-cycle rate over shuffled batches,
gradients clipped, weights averaged. All of its state can be saved and put back between two epochs. In a group of
processes each goes through its share of every batch, and all make the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Generator, Tensor, nn

from training.averaging import Average
from training.group import ALONE, Group

__all__ = ["Loop"]

WARM_UP = 0.3  # share of the steps on which the rate rises
CLIP = 1.0  # gradient norm: one odd batch must not undo an epoch

AnyModel = TypeVar("AnyModel", bound=nn.Module)
# loss(places of a batch, generator for whatever it draws) -> mean over the batch; in a group, the sum over the group's
# share of it, divided by its size
Loss = Callable[[Tensor, Generator], Tensor]


class Loop(Generic[AnyModel]):
    """Trains a model in place. Seeds torch's global generator (dropout) and sets its number of threads.

    rates: (parameters, peak of their rate). items: how many there are to go through in an epoch. epochs: of the cycle;
    it may be left before its end. average: see `Average`. group: this process's place; the model is on its device.
    """

    def __init__(
        self, model: AnyModel, rates: list[tuple[list[nn.Parameter], float]], *, items: int, batch: int, epochs: int,
        weight_decay: float, average: float, seed: int, threads: int, group: Group = ALONE,
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        self.model, self.items, self.batch, self.epoch, self.group = model, items, batch, 0, group
        self.generator = Generator().manual_seed(seed)
        groups = [{"params": parameters} for parameters, _ in rates if parameters]
        peaks = [rate for parameters, rate in rates if parameters]
        self.optimizer = torch.optim.AdamW(groups, lr=peaks[0], weight_decay=weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, peaks, total_steps=-(-items // batch) * epochs, pct_start=WARM_UP
        )
        self.average = Average(model, average)

    def run_epoch(self, loss_of: Loss) -> float:
        """One pass; the mean loss of its items."""
        self.model.train()
        order = torch.randperm(self.items, generator=self.generator)
        total = 0.0
        for index in torch.split(order, self.batch):
            self.optimizer.zero_grad(set_to_none=True)
            with self.group.dropout_of(self.model, len(index)):
                loss = loss_of(index, self.generator)
            if not self.group.counts(len(index)):
                loss = loss * 0.0
            loss.backward()  # type: ignore[no-untyped-call]
            self.group.add_up(self.model)
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.schedule.step()
            self.average.update(self.model)
            total += float(loss.item()) * len(index)
        self.epoch += 1
        return self.group.total(total) / self.items

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and JSON values."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.model.state_dict().items()}
        optimizer = self.optimizer.state_dict()
        for number, moments in optimizer["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        tensors |= {"random.global": torch.get_rng_state(), "random.own": self.generator.get_state()}
        facts = {
            "epoch": self.epoch, "average_steps": self.average.steps, "groups": optimizer["param_groups"],
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if isinstance(v, int | float | list)},
        }  # fmt: skip
        return tensors, facts

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """What `state` gave, in a loop that was made with the same arguments for a model of the same shapes."""
        self.model.load_state_dict(_under("model.", tensors))
        self.average.model.load_state_dict(_under("average.", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer.", tensors).items():
            number, _, what = name.partition(".")
            moments.setdefault(int(number), {})[what] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": facts["groups"]})
        self.schedule.load_state_dict(facts["schedule"])
        torch.set_rng_state(tensors["random.global"])
        self.generator.set_state(tensors["random.own"])
        self.epoch, self.average.steps = facts["epoch"], facts["average_steps"]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
