"""The one division of the loop, and its metrics, as a rank of two sees them; all in one process."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from compare import column
from torch import nn

from data.row_table import Row
from data.trees import pack
from losses import LOSSES
from runtime.metrics import Totals
from train import count_units, optimizer_step

SFT, ORPO = LOSSES["sft"], LOSSES["orpo"]


class TwoRanks:
    """What the loop asks of Accelerate; the other rank always has what this one has."""

    num_processes = 2

    def __init__(self, device="cpu"):
        self.device, self.seen = torch.device(device), []

    def reduce(self, tensor, how):
        assert how == "sum"
        self.seen.append(tensor.device.type)
        return 2 * tensor

    @contextmanager
    def no_sync(self, module):
        self.seen.append(module)
        yield
        self.seen.append("synchronised again")

    def backward(self, loss):
        self.seen.append("backward")
        loss.backward()


class Constant(nn.Module):
    """Gives every token the same log-prob."""

    def __init__(self):
        super().__init__()
        self.logp = nn.Parameter(column(-3.0))

    def forward(self, batch):
        return self.logp.expand(batch.mask.shape)


def batch_of(*lengths, dummy=False):
    rows = [Row(i, [5], [[7] * n], [True], [1]) for i, n in enumerate(lengths)]
    return replace(pack(rows), dummy=dummy)


def test_a_step_divides_by_the_units_of_all_ranks_and_a_dummy_adds_nothing():
    """A2, A17: tokens 2 + 1 + 3 here and as many there; DDP's mean over ranks is made up for."""
    policy, ranks = Constant(), TwoRanks()
    batches = [batch_of(2, 1), batch_of(3), batch_of(4, dummy=True)]
    units, metrics = optimizer_step(ranks, policy, SFT, SFT.config(), batches)
    assert units == {"tokens": 12} and metrics == {"loss": 3.0}
    assert policy.logp.grad.item() == -2 * 6 / 12
    alone = [policy, "backward", "synchronised again"]
    assert ranks.seen == ["cpu", *alone, *alone, "backward", "cpu"]


def test_a_dummy_has_its_gradient_of_0_also_where_it_is_not_the_last():
    policy = Constant()
    optimizer_step(TwoRanks(), policy, SFT, SFT.config(), [batch_of(4, dummy=True), batch_of(2)])
    assert policy.logp.grad.item() == -2 * 2 / 4


def test_a_loss_with_two_units_divides_each_by_its_own():
    config = ORPO.config(lam=0.0, nll_reduction="token")
    rows = [Row(0, [5], [[7, 7], [7]], [True] * 2, [1] * 2)]
    policy = Constant()
    units, metrics = optimizer_step(TwoRanks(), policy, ORPO, config, [pack(rows), pack(rows)])
    assert units == {"pairs": 4, "tokens": 8}
    assert policy.logp.grad.item() == -2 * 4 / 8
    assert metrics["loss"] == metrics["nll_loss"] == 3.0


def test_units_are_counted_where_the_ranks_meet():
    """On the device whose collectives reduce them."""
    ranks = TwoRanks("meta")
    ranks.reduce = lambda tensor, how: ranks.seen.append(tensor.device.type) or torch.tensor([7])
    assert count_units(ranks, SFT, SFT.config(), [batch_of(2)]) == {"tokens": 7}
    assert ranks.seen == ["meta"]


# --- metrics -------------------------------------------------------------------------------------


def pair(total, count, dtype=torch.float64):
    return torch.tensor(total, dtype=dtype), torch.tensor(count)


def test_metrics_are_sums_over_sums():
    totals = Totals()
    totals.add({"a": pair(2.0, 1), "b": pair(5.0, 5)})
    totals.add({"a": pair(4.0, 3)})
    assert totals.reduce(TwoRanks()) == {"a": 1.5, "b": 1.0}


def test_a_dummy_brings_names_and_no_values():
    totals = Totals()
    totals.add({"a": pair(2.0, 1), "only here": pair(9.0, 1)}, dummy=True)
    totals.add({"a": pair(6.0, 2)})
    assert list(totals.parts) == ["a", "only here"]
    assert totals.reduce(TwoRanks()) == {"a": 3.0}  # what nobody counted has no mean


def test_the_loss_is_the_sum_over_its_units_and_comes_first():
    totals = Totals()
    totals.add({"a": pair(2.0, 1)})
    sums = {"pairs": column(6.0).sum().requires_grad_(), "tokens": column(8.0).sum()}
    totals.add_loss(sums, {"pairs": 2, "tokens": 4}, dummy=False)
    totals.add_loss(sums, {"pairs": 1, "tokens": 4}, dummy=False)
    totals.add_loss(sums, {"pairs": 9, "tokens": 9}, dummy=True)
    assert not any(x.requires_grad for parts in totals.parts.values() for p in parts for x in p)
    assert list(totals.reduce(TwoRanks()).items()) == [("loss", 12 / 3 + 16 / 8), ("a", 2.0)]


@pytest.mark.parametrize("device, exact", [("cpu", 2**24 + 1), ("mps", 2**24)])
def test_sums_are_kept_as_wide_as_the_device_has_it(device, exact):
    totals = Totals()
    for total, count in ((2.0**24, 1), (1.0, 0)):
        totals.add({"a": pair(total, count, torch.float32)})
    assert totals.reduce(TwoRanks(device)) == {"a": exact}


def test_counts_of_the_loss_stay_on_its_device():
    totals = Totals()
    totals.add_loss({"pairs": torch.ones((), device="meta")}, {"pairs": 2}, dummy=False)
    ((total, count),) = totals.parts["loss per pairs"]
    assert (total.device.type, count.device.type) == ("meta", "meta")
