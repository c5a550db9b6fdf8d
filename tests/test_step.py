"""One optimizer step has one gradient, however it is cut: bugs.md A1 to A18."""

import json

import pytest
import torch
from accelerate import Accelerator
from ranks import run_on_two_ranks
from tiny_models import flat_grad, make_head, make_model, make_rows, relative_error
from tolerances import LOOSE, TIGHT, loose

from data.splits import Split
from losses import LOSSES
from models.forward import ActorCritic, Policy, Scorer
from runtime.sources.heldout import evaluate_rows
from train import optimizer_step

SPLITS = {
    "8 x 1": [[i] for i in range(8)],
    "2 x 4": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "5 + 3": [[0, 1, 2, 3, 4], [5, 6, 7]],
    "another order": [[7, 2, 4], [0], [6, 5, 3, 1]],
    "with an empty one": [[0, 1, 2, 3, 4, 5, 6, 7], []],
}
WHOLE = [[0, 1, 2, 3, 4, 5, 6, 7]]
# An untrained scorer's gradients of chosen and rejected nearly cancel, and rounding does not.
CANCELLING = {"reward": 4}
DTYPES = {torch.float64: TIGHT, torch.float32: loose(torch.float32)}  # 1e-12 and 1e-6


def module_for(loss, family="gpt_neox", dtype=torch.float64):
    """What the loss trains, around tiny models."""
    if loss.task == "seq_cls":
        return Scorer(make_head("sequence", family, dtype))
    policy = Policy(make_model(family, dtype))
    if "critic" in loss.needs(loss.config()):
        return ActorCritic(policy, make_head("token", family, dtype), temperature=0.7)
    return policy


def data_for(loss, layout="tree", responses=None, dtype=torch.float64):
    """Eight rows of unequal lengths, with every column that the loss reads.

    The reference is not the policy; for PPO the numbers of a rollout, the same for a row in every
    batch.
    """
    rows = make_rows(8, responses=responses or loss.responses_per_row, seed=11)
    sequences = sum(len(row.responses) for row in rows)
    columns = {}
    if "ref_seq_logps" in loss.reads:
        columns["ref_seq_logps"] = torch.linspace(-30, -10, sequences, dtype=torch.float64)
    if "margin" in loss.reads:
        columns["margin"] = torch.linspace(0, 1, 8, dtype=torch.float64).repeat_interleave(2)
    if "old_logps" in loss.reads:
        draw = torch.Generator().manual_seed(5)
        width = max(len(row.responses[0]) for row in rows)
        numbers = torch.rand((5, 8, width), generator=draw, dtype=torch.float64) - 0.5
        numbers[0] -= 4  # log-probs of about what an untrained model gives
        names = ("old_logps", "old_values", "advantages", "returns", "ref_logps")
        columns |= dict(zip(names, numbers, strict=True))
        columns["policy_weight"] = torch.ones(8, dtype=torch.float64)
    columns = {name: column.to(dtype) for name, column in columns.items()}
    return Split(rows, layout, loss.packing(loss.config()), columns)


def batch_for(data, members):
    return data.batch(members, torch.device("cpu"))


def gradient(name, split, dtype=torch.float64, family="gpt_neox", layout="tree"):
    """(gradient, units, metrics) of one optimizer step over the micro-batches of `split`."""
    loss, accelerator = LOSSES[name], Accelerator(cpu=True)
    module, data = module_for(loss, family, dtype), data_for(loss, layout, dtype=dtype)
    batches = [batch_for(data, members) for members in split]
    units, metrics = optimizer_step(accelerator, module, loss, loss.config(), batches)
    return flat_grad(module), units, metrics


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_do_not_change_the_gradient_or_the_metrics(name, split, dtype):
    whole, whole_units, whole_metrics = gradient(name, WHOLE, dtype)
    parts, units, metrics = gradient(name, SPLITS[split], dtype)
    assert relative_error(parts, whole) < DTYPES[dtype] * CANCELLING.get(name, 1)
    assert units == whole_units
    assert metrics == pytest.approx(whole_metrics, rel=LOOSE * DTYPES[dtype], abs=DTYPES[dtype])


@pytest.mark.parametrize("name", LOSSES)
def test_the_rectangle_gives_the_same_gradient(name):
    tree, _, _ = gradient(name, WHOLE)
    rectangle, _, _ = gradient(name, SPLITS["5 + 3"], layout="rectangle")
    assert relative_error(tree, rectangle) < 100 * TIGHT


def test_sft_divides_by_all_tokens_not_by_micro_batches():
    """A1: a mean of the micro-batches' means would weigh short rows more."""
    data = data_for(LOSSES["sft"])
    lengths = [len(row.responses[0]) for row in data.rows]
    assert len(set(lengths)) > 1, "rows of one length would not tell the two apart"
    _, units, metrics = gradient("sft", SPLITS["8 x 1"])
    assert units == {"tokens": sum(lengths)}
    by_row = [gradient("sft", [[i]])[2]["loss"] for i in range(8)]
    total = sum(mean * length for mean, length in zip(by_row, lengths, strict=True))
    assert metrics["loss"] == pytest.approx(total / sum(lengths), rel=TIGHT)
    assert metrics["loss"] != pytest.approx(sum(by_row) / 8, rel=1e6 * TIGHT)


def test_the_gradient_is_that_of_the_mean_by_autograd():
    """The step's gradient against the loss written out: mean over pairs, one backward."""
    loss = LOSSES["dpo"]
    policy, batch = module_for(loss), batch_for(data_for(loss), range(8))
    (loss.step(policy(batch), batch, loss.config()).totals["pairs"] / 8).backward()
    assert relative_error(gradient("dpo", SPLITS["5 + 3"])[0], flat_grad(policy)) < TIGHT


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "ppo"])
def test_evaluation_does_not_depend_on_how_it_is_cut(name):
    loss, accelerator = LOSSES[name], Accelerator(cpu=True)
    data = data_for(loss, responses=2)
    policy = module_for(loss)
    whole, alone = (
        evaluate_rows(accelerator, policy, loss, loss.config(), data, budget)
        for budget in (10**6, 1)
    )
    assert alone == pytest.approx(whole, rel=100 * TIGHT)
    assert 0 <= whole["accuracy"] <= 1


# --- two ranks, over gloo ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What both ranks of a two-process run computed: tests/rank_step.py, started by torchrun."""
    out = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks("rank_step.py", out)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_give_the_gradient_and_the_metrics_of_one(two_ranks, name, dtype):
    """A2, A17, A18: unequal shares, one rank with fewer rows than the other and a dummy."""
    whole, units, metrics = gradient(name, WHOLE, dtype)
    for rank in range(2):
        found = torch.load(two_ranks / f"{name}-{dtype}-{rank}.pt", weights_only=True)
        assert relative_error(found, whole) < DTYPES[dtype] * CANCELLING.get(name, 1)
        told = json.loads((two_ranks / f"{name}-{dtype}-{rank}.json").read_text())
        assert told["units"] == units
        assert told["metrics"] == pytest.approx(
            metrics, rel=LOOSE * DTYPES[dtype], abs=DTYPES[dtype]
        )
