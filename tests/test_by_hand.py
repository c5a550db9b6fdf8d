"""One optimizer step against the same step by hand: each response alone through the model, no mask,
no padding, one division.

The model has absolute positions and the rows stand packed behind one another: whatever is masked,
shifted, padded or divided wrongly changes the loss and its gradient.
"""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from rollouts import logps_alone, make_policy, make_rollouts, prompts_of, ragged
from thread_ranks import on_ranks
from tiny_models import flat_grad, make_head, make_model, relative_error
from tolerances import TIGHT
from torch.nn.functional import logsigmoid

from data.row_table import Row
from data.splits import Split
from losses import LOSSES
from models.forward import ActorCritic, Policy
from models.load import load_causal_lm
from rollout import experience
from runtime.sources.reference import cache_key, reference_logps, training_batches
from train import optimizer_step

END = 2
PAIRS = [  # (prompt, chosen, rejected) with token 0, and the end token in mid-response
    ([5, 6, 7], [4, 0, 3, END], [4, 8, END]),
    ([8], [9, END], [3, 0, 5, 6, END]),
    ([3, 4], [7, END, 6, 5, 8, END], [7, 4, END]),
    ([6, 9, 3, 4], [0, 8, END], [END, 5, END]),
    ([5], [10, 3, 9, 7, 11, 4, END], [11, END]),
]
REFERENCE = torch.tensor([[-9, -6], [-5, -11], [-14, -8], [-7, -6], [-16, -4]]).double()
NEAR = dict(rel=100 * TIGHT, abs=100 * TIGHT)


def make_rows(responses):
    return [
        Row(i, prompt, answers[:responses], [True] * responses, [1] * responses)
        for i, (prompt, *answers) in enumerate(PAIRS)
    ]


def sharp_model():
    """Far from uniform, so that every token and position matters."""
    model = make_model("gpt2")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1)
    return model


def alone(model, prompt, response):
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def by_hand(name, model, members, **options):
    """The loss over the pairs `members` at the losses' own defaults: a scalar with its graph."""
    logps = [[alone(model, prompt, r) for r in rest] for prompt, *rest in PAIRS]
    chosen, rejected = zip(*[logps[i] for i in members], strict=True)
    if name == "sft":
        return -torch.cat(chosen).mean()
    if name == "dpo":
        ref = REFERENCE[list(members)]
        sums = [torch.stack([x.sum() for x in side]) for side in (chosen, rejected)]
        return -logsigmoid(0.1 * (sums[0] - sums[1] - ref[:, 0] + ref[:, 1])).mean()
    a, b = (torch.stack([x.mean() for x in side]) for side in (chosen, rejected))
    if name == "simpo":
        return -logsigmoid(2 * a - 2 * b - 1).mean()
    odds = (a - torch.log1p(-a.exp())) - (b - torch.log1p(-b.exp()))
    nll = -torch.cat(chosen).mean() if options else -a.mean()
    return nll - 0.1 * logsigmoid(odds).mean()


def batches_of(name, split):
    reference = {"ref_seq_logps": REFERENCE.flatten()} if name == "dpo" else {}
    data = Split(make_rows(LOSSES[name].responses_per_row), columns=reference)
    return [data.batch(part, torch.device("cpu")) for part in split]


def said(loss, gradient):
    return {"loss in the log": loss, "length of the gradient": gradient.norm().item()}


STEPS = {  # sizes of the micro-batches
    "sft-5": ("sft", {}, [[0, 1, 2, 3, 4]]),
    "sft-1+1+1+1+1": ("sft", {}, [[0], [1], [2], [3], [4]]),
    "sft-2+3": ("sft", {}, [[0, 1], [2, 3, 4]]),
    "sft-1": ("sft", {}, [[3]]),
    "dpo-1+1+1+1": ("dpo", {}, [[0], [1], [2], [3]]),
    "dpo-3+2": ("dpo", {}, [[0, 1, 2], [3, 4]]),
    "orpo-1+1+1+1": ("orpo", {}, [[0], [1], [2], [3]]),
    "simpo-3+2": ("simpo", {}, [[0, 1, 2], [3, 4]]),
    "orpo_by_token-4+1": ("orpo", {"nll_reduction": "token"}, [[0, 1, 2, 3], [4]]),
}


@pytest.mark.parametrize("name, options, split", STEPS.values(), ids=STEPS)
def test_a_step_is_that_of_each_response_alone(name, options, split):
    """Micro-batches of any size: one loss, one gradient."""
    twin, policy, loss = sharp_model(), Policy(sharp_model()), LOSSES[name]
    expected = by_hand(name, twin, [i for part in split for i in part], **options)
    expected.backward()
    config = loss.config(**options)
    accelerator = Accelerator(cpu=True)
    _, metrics = optimizer_step(accelerator, policy, loss, config, batches_of(name, split))
    found, right = flat_grad(policy), flat_grad(twin)
    assert said(metrics["loss"], found) == pytest.approx(said(expected.item(), right), **NEAR)
    assert relative_error(found, right) < 100 * TIGHT


def test_a_step_of_several_ranks_is_that_of_each_response_alone():
    """Four rows on one rank, one on the other: the gradient after DDP's mean, and the log."""
    twin, policies, loss = sharp_model(), [Policy(sharp_model()) for _ in range(2)], LOSSES["sft"]
    expected = by_hand("sft", twin, range(5))
    expected.backward()

    def work(rank):
        policy = policies[rank.process_index]
        batches = batches_of("sft", [[[0, 1, 2, 3], [4]][rank.process_index]])
        _, metrics = optimizer_step(rank, policy, loss, loss.config(), batches)
        return said(metrics["loss"], rank.averaged_gradient(policy))

    found = on_ranks(work)
    assert None not in found, "a rank waits for the other in a collective"
    for rank in found:
        assert rank == pytest.approx(said(expected.item(), flat_grad(twin)), **NEAR)


# --- DPO and its reference -----------------------------------------------------------------------


def test_two_steps_of_dpo(tmp_path):
    """The reference is what the policy was: ln 2 at the first step, and not at the second.

    The model has dropout in its configuration, which no forward may have.
    """
    sharp_model().save_pretrained(tmp_path)
    accelerator, loss, rate = Accelerator(cpu=True), LOSSES["dpo"], 0.05
    policy = Policy(load_causal_lm(str(tmp_path), dtype="float64"))
    data = Split(make_rows(2))
    batches = training_batches(accelerator, data, [[2, 0], [4, 1, 3]], 1000)
    reference = reference_logps(accelerator, policy, data, batches)
    data = data.with_columns({"ref_seq_logps": reference})
    optimizer, found = torch.optim.SGD(policy.parameters(), lr=rate), []
    for _ in range(2):
        batches = [data.batch(range(5), torch.device("cpu"))]
        found.append(optimizer_step(accelerator, policy, loss, loss.config(), batches)[1]["loss"])
        optimizer.step()
        optimizer.zero_grad()

    twin = sharp_model()
    optimizer, expected = torch.optim.SGD(twin.parameters(), lr=rate), []
    start = None
    for _ in range(2):
        each = [[alone(twin, prompt, r).sum() for r in rest] for prompt, *rest in PAIRS]
        sums = torch.stack([torch.stack(pair) for pair in each])
        start = sums.detach() if start is None else start
        h = (sums - start)[:, 0] - (sums - start)[:, 1]
        by_now = -logsigmoid(0.1 * h).mean()
        optimizer.zero_grad()
        by_now.backward()
        optimizer.step()
        expected.append(by_now.item())
    assert expected[1] < expected[0] - 1e-3
    assert found == pytest.approx(expected, **NEAR)


def test_reference_log_probs_are_kept_for_these_tokens_alone():
    """J3: another tokenizer or template makes other tokens of the same text."""
    model, rows = make_model("gpt2"), make_rows(2)
    other = [replace(rows[0], prompt=[5, 6, 8]), *rows[1:]]
    keys = [cache_key(model, [Split(part)], 4096) for part in (rows, make_rows(2), other)]
    assert keys[0] == keys[1] != keys[2]


# --- PPO and the policy that sampled -------------------------------------------------------------


def test_old_log_probs_have_no_dropout_in_them():
    """F1: from the training forward, in eval mode."""
    model = make_policy(family="gpt2")  # dropout 0.1 in its config
    module = ActorCritic(Policy(model), make_head("token", "gpt_neox"), temperature=1.0)
    made = replace(make_rollouts(), model=model, actor_critic=module)
    responses = experience.respond(made, prompts_of(4), range(4), 0)
    old = ragged(responses.rows, experience.evaluate_responses(made, responses).logps)
    for found, row in zip(old, responses.rows, strict=True):
        assert found == pytest.approx(logps_alone(model, row, 1.0), **NEAR)
