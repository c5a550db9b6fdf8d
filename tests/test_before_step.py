"""`Loss.before_step`: one number over the whole step, known before its first backward.

A toy loss of KTO's form (kto_like.py) compares every log-ratio with their mean over the step. The
gradient must be that of the whole step, however it is cut, and z0 must have none.
"""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from kto_like import CHOSEN_ONLY, LOSS
from ranks import run_on_two_ranks
from test_by_hand import alone
from test_step import SPLITS, WHOLE, batch_for, module_for
from thread_ranks import on_ranks
from tiny_models import flat_grad, make_model, make_rows, relative_error
from tolerances import LOOSE, TIGHT, loose

from data.splits import Split
from runtime.sources.heldout import evaluate_rows
from train import optimizer_step

CONFIG = LOSS.config()
# Where the reference stands above 4 nats a token, about what an untrained model gives: z0 is above
# 0 with the first, and with the second below, although that of some rows alone is not.
REFERENCES = {"z0 above 0": (-12.0, 2.0), "z0 below 0": (-6.0, 8.0)}
NEAR = dict(rel=100 * TIGHT, abs=100 * TIGHT)


def rows():
    return make_rows(8, seed=11)


def reference(name):
    lengths = torch.tensor([len(response) for row in rows() for response in row.responses])
    return torch.linspace(*REFERENCES[name], 16, dtype=torch.float64) - 4 * lengths


def data_with(name, loss=LOSS, responses=2):
    ref = reference(name).view(8, 2)[:, :responses].flatten()
    kept = [replace(row, responses=row.responses[:responses]) for row in rows()]
    return Split(kept, packing=loss.packing(CONFIG), columns={"ref_seq_logps": ref})


def one_step(name, split, loss=LOSS, dtype=torch.float64):
    """(gradient, metrics) of one optimizer step over the micro-batches of `split`."""
    module, data = module_for(LOSS, dtype=dtype), data_with(name)
    batches = [batch_for(data, members) for members in split]
    _, metrics = optimizer_step(Accelerator(cpu=True), module, loss, CONFIG, batches)
    return flat_grad(module), metrics


def by_hand(name, groups=WHOLE):
    """(mean loss, z0 of the last group, gradient), every response alone through the model.

    With several groups each has a z0 of its own, as a loop would have it that takes micro-batches
    for steps.
    """
    model = make_model("gpt_neox")
    each = [alone(model, row.prompt, r).sum() for row in rows() for r in row.responses]
    r = (torch.stack(each) - reference(name)).view(8, 2)
    losses = []
    for members in groups:
        z0 = r[members].mean().item()
        above = r[members] - max(z0, 0.0)
        losses += [1 - torch.sigmoid(0.1 * above[:, 0]), 1 - torch.sigmoid(-0.1 * above[:, 1])]
    loss = torch.cat(losses).sum() / 8
    loss.backward()
    return loss.item(), z0, flat_grad(model)


@pytest.mark.parametrize("name", REFERENCES)
def test_loss_gradient_and_z0_are_those_worked_out_by_hand_over_all_rows(name):
    loss, z0, expected = by_hand(name)
    assert (z0 > 1) if name == "z0 above 0" else (z0 < -1)
    for split in (WHOLE, SPLITS["5 + 3"]):
        gradient, metrics = one_step(name, split)
        assert metrics == pytest.approx({"loss": loss, "z0": z0}, **NEAR)
        assert relative_error(gradient, expected) < 100 * TIGHT


@pytest.mark.parametrize("name", REFERENCES)
def test_a_z0_of_each_micro_batch_would_be_seen(name):
    groups = SPLITS["5 + 3"]
    assert relative_error(by_hand(name, groups)[2], by_hand(name)[2]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", REFERENCES)
def test_micro_batches_do_not_change_the_gradient_or_the_metrics(name, split, dtype):
    tolerance = TIGHT if dtype == torch.float64 else loose(dtype)
    whole, whole_metrics = one_step(name, WHOLE, dtype=dtype)
    parts, metrics = one_step(name, SPLITS[split], dtype=dtype)
    assert relative_error(parts, whole) < tolerance
    assert metrics == pytest.approx(whole_metrics, rel=LOOSE * tolerance, abs=tolerance)


def test_before_step_is_given_the_flags_and_has_no_gradient():
    """Nor is any graph kept: it runs under no_grad."""
    seen = []

    def watched(policy, batch, config):
        found = LOSS.before_step(policy, batch, config)
        seen.append((config, torch.is_grad_enabled(), found["z0"][0].requires_grad))
        return found

    one_step("z0 above 0", SPLITS["5 + 3"], replace(LOSS, before_step=watched))
    assert seen == [(CONFIG, False, False)] * 2


# --- held-out rows -------------------------------------------------------------------------------


def evaluated(name, loss=LOSS, budget=10**6, responses=2):
    module, data = module_for(LOSS), data_with(name, loss, responses)
    return evaluate_rows(Accelerator(cpu=True), module, loss, CONFIG, data, budget)


@pytest.mark.parametrize("budget", [10**6, 60, 1])
@pytest.mark.parametrize("name", REFERENCES)
def test_held_out_rows_have_their_own_z0_however_they_are_cut(name, budget):
    loss, z0, _ = by_hand(name)
    found = evaluated(name, budget=budget)
    assert {k: found[k] for k in ("loss", "z0")} == pytest.approx({"loss": loss, "z0": z0}, **NEAR)
    assert 0 <= found["accuracy"] <= 1


@pytest.mark.parametrize("budget", [10**6, 1])
def test_a_loss_on_chosen_responses_has_the_z0_of_these_on_pairs_too(budget):
    """Held-out pairs carry the rejected response for the accuracy; the loss never sees it."""
    pairs = evaluated("z0 above 0", CHOSEN_ONLY, budget)
    alone = evaluated("z0 above 0", CHOSEN_ONLY, responses=1)
    assert {k: pairs[k] for k in alone} == pytest.approx(alone, **NEAR)


# --- without it ----------------------------------------------------------------------------------


def test_a_loss_that_reads_what_no_one_computes_is_refused_by_name():
    without = replace(LOSS, before_step=None)
    message = "^loss kto_like reads the column z0; the batch has ref_seq_logps$"
    with pytest.raises(ValueError, match=message):
        one_step("z0 above 0", WHOLE, without)
    with pytest.raises(ValueError, match=message):
        evaluated("z0 above 0", without)


# --- two ranks -----------------------------------------------------------------------------------

SHARES = {0: [[0, 1, 2], [3], [4]], 1: [[5, 6], [7], []]}


@pytest.mark.parametrize("name", REFERENCES)
def test_ranks_in_threads_give_the_gradient_of_one(name):
    whole, metrics = one_step(name, WHOLE)
    modules = [module_for(LOSS) for _ in range(2)]  # here: threads share torch's generator

    def work(rank):
        module, data = modules[rank.process_index], data_with(name)
        batches = [batch_for(data, members) for members in SHARES[rank.process_index]]
        _, found = optimizer_step(rank, module, LOSS, CONFIG, batches)
        return rank.averaged_gradient(module), found

    for gradient, found in on_ranks(work):
        assert relative_error(gradient, whole) < TIGHT
        assert found == pytest.approx(metrics, rel=LOOSE * TIGHT)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks("rank_before_step.py", out)
    return out


@pytest.mark.parametrize("name", REFERENCES)
def test_two_ranks_give_the_gradient_of_one(two_ranks, name):
    """Under DDP, whose forward runs twice for one backward."""
    whole, metrics = one_step(name, WHOLE)
    for rank in range(2):
        found = torch.load(two_ranks / f"{name}-{rank}.pt", weights_only=True)
        assert relative_error(found, whole) < TIGHT
        told = json.loads((two_ranks / f"{name}-{rank}.json").read_text("utf-8"))
        assert told == pytest.approx(metrics, rel=LOOSE * TIGHT)
