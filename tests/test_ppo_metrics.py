"""What a PPO step says of itself, and settings that are easy to lose."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rollouts import THROUGH_A_MODEL, PositionCritic, make_policy, near
from tiny_models import flat_grad, make_rows, relative_error
from tolerances import assert_close
from torch import nn

from data.row_table import Row
from data.trees import pack
from losses.ppo import LOSS, PPOConfig, step
from models.forward import ActorCriticOutput, Policy
from runtime.metrics import ratio_variance
from runtime.optimizer import make_optimizer


def told(ratios, lengths, *, config=None, values=None, entropies=None):
    """What a step says of responses with these ratios to the old policy; NaN is under the mask."""
    rows = make_rows(len(lengths), responses=1)
    rows = [replace(r, responses=[[3] * n]) for r, n in zip(rows, lengths, strict=True)]
    batch = pack(rows)

    def table(per_row, else_=float("nan")):
        found = torch.full(batch.mask.shape, else_, dtype=torch.float64)
        for i, row in enumerate(per_row):
            found[i, : len(row)] = torch.as_tensor(row, dtype=torch.float64)
        return found

    old = torch.where(batch.mask, -1.0, torch.nan).double()
    ones = table([[1.0] * n for n in lengths])
    columns = dict(old_logps=old, old_values=0 * ones, advantages=ones, returns=ones, ref_logps=old)
    columns["policy_weight"] = torch.ones(len(lengths))
    logps = (old + table(ratios).log()).requires_grad_()
    outputs = ActorCriticOutput(
        torch.where(batch.mask, logps, 0.0),
        table(values, 0.0) if values else torch.where(batch.mask, ones, 0.0),
        torch.zeros(len(lengths)),
        table(entropies, 0.0) if entropies else torch.zeros(batch.mask.shape),
    )
    output = step(outputs, batch.with_columns(columns), config or PPOConfig())
    for total, count in output.metrics.values():  # H11: no graph is kept alive by a number
        assert not total.requires_grad and not count.requires_grad
    return {name: (total / count).item() for name, (total, count) in output.metrics.items()}


def test_ratios_vary_over_tokens_not_over_micro_batches():
    """I5: two tokens with ratios .8 and 1.2, together or apart: variance .04."""
    for low, high in ((0.8, 1.2), (1.1, 1.5)):
        for found in (told([[low, high]], [2]), told([[low], [high]], [1, 1])):
            assert ratio_variance(found) == near(0.04)
    assert ratio_variance(told([[1.0, 1.0, 1.0]], [3])) == 0


def test_all_parts_of_the_loss_are_means_over_tokens():
    """H14, D7: responses of 1 and 4 tokens: every metric divides by 5, not by rows of means."""
    config = PPOConfig(entropy_coef=0.5, value_clip=10)
    values, entropies = [[3.0], [1.0] * 4], [[2.0], [0.5] * 4]
    found = told([[1.1], [1.0] * 4], [1, 4], config=config, values=values, entropies=entropies)
    assert found["loss/policy_avg"] == near(-(1.1 + 4) / 5)
    assert found["loss/value_avg"] == near(0.5 * (3 - 1) ** 2 / 5)
    assert found["policy/entropy_avg"] == near((2.0 + 4 * 0.5) / 5)
    assert found["val/ratio"] == near(5.1 / 5)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("layout", ["tree", "rectangle"])
def test_the_entropy_is_that_of_the_distribution_each_token_was_drawn_from(layout, fused):
    """-Σ p log p at the sampling temperature, in value and gradient, against each row alone."""
    model, rows = make_policy(), [replace(r, prompt=[3, 4, 5]) for r in make_rows(3, responses=1)]
    rows = [replace(r, responses=[[t % 8 for t in r.responses[0]]]) for r in rows]
    batch = pack(rows, layout=layout)
    entropies = Policy(model, fused=fused).with_entropy(batch, 0.7)[1]
    assert bool((entropies[~batch.mask] == 0).all())
    entropies.pow(2).sum().backward()
    gradient = flat_grad(model)
    model.zero_grad()
    for row, found in zip(rows, entropies, strict=True):
        logits = model(torch.tensor([row.prompt + row.responses[0]])).logits[0] / 0.7
        alone = torch.distributions.Categorical(logits=logits).entropy()[2:-1]
        assert found[: len(alone)].tolist() == near(alone.tolist())
        alone.pow(2).sum().backward()
    assert relative_error(gradient, flat_grad(model)) < THROUGH_A_MODEL


class Memorised(nn.Module):
    """Says 4, 5, 6, 7 after 3, each for certain, and before and after that anything at all."""

    def __init__(self):
        super().__init__()
        self.config = make_policy().config
        self.head = nn.Linear(8, 8, bias=False).double()
        nn.init.eye_(self.head.weight)

    def base_model(self, input_ids, **_):
        sure = (input_ids >= 3) & (input_ids < 7)
        hidden = nn.functional.one_hot((input_ids + 1) % 8, 8) * sure[..., None] * 1e4
        return SimpleNamespace(last_hidden_state=hidden.double())

    def get_output_embeddings(self):
        return self.head


@pytest.mark.parametrize("layout", ["tree", "rectangle"])
def test_a_memorised_response_is_certain_at_every_token(layout):
    """I6: one position off, and a token of the prompt or what follows the end would be seen."""
    rows = [Row(0, [1, 2, 3], [[4, 5, 6, 7]], [True], [1]), Row(1, [0, 4], [[5, 6]], [True], [1])]
    batch = pack(rows, layout=layout)
    logps, entropies = Policy(Memorised()).with_entropy(batch, 1.0)
    assert not logps.any() and not entropies.any()
    assert batch.mask.tolist() == [[True] * 4, [True, True, False, False]]


def test_metrics_are_masked():
    """I2: two tokens of four moved; what stands in the other row's padding is not read."""
    found = told([[1.1, 1.1, 1.0, 1.0], [1.0]], [4, 1])
    log = torch.tensor(1.1, dtype=torch.float64).log().item()
    assert found["policy/approxkl_avg"] == near(2 * 0.5 * log**2 / 5)
    assert found["policy/clipfrac_avg"] == 0
    assert told([[1.5, 1.1, 0.5, 1.0], [1.0]], [4, 1])["policy/clipfrac_avg"] == near(0.4)
    assert found["val/clipfrac_avg"] == 1  # every value moved from 0 to 1


def test_a_log_ratio_of_25_nats_is_logged_as_it_is():
    """H8: clamped for the loss it may be, not for the log."""
    assert_close(torch.tensor(told([[2.718281828459045**25]], [1])["policy/approxkl_avg"]), 312.5)


def test_the_kl_of_the_loss_pulls_as_the_kl_does():
    """H5: of ten tokens drawn from p = (.8, .2) eight and two, and a reference of (.5, .5), the
    KL's gradient by the first logit is .16 ln 4. With k1 it would be 0, and with k3 be .3."""
    logit = torch.tensor(4.0, dtype=torch.float64).log().requires_grad_()
    drawn = torch.tensor([0] * 8 + [1] * 2)
    logps = torch.stack([logit, 0 * logit]).log_softmax(0)[drawn][:, None]
    batch, zeros = pack([Row(i, [5], [[3]], [True], [1]) for i in range(10)]), 0 * logps.detach()
    columns = dict.fromkeys(("old_values", "advantages", "returns"), zeros)
    columns |= {"old_logps": logps.detach(), "policy_weight": torch.ones(10)}
    columns["ref_logps"] = zeros + torch.tensor(0.5).double().log()
    outputs = ActorCriticOutput(logps, zeros, zeros[:, 0], zeros)
    config = PPOConfig(kl_coef=0.0, kl_loss_coef=1.0)
    step(outputs, batch.with_columns(columns), config).totals["tokens"].backward()
    assert logit.grad.item() / 10 == near(0.16 * 1.3862943611198906)


# --- settings that are easy to lose --------------------------------------------------------------


def test_adams_epsilon_is_pytorchs():
    """H12: 1e-8, outside the bias correction; N+ (2403.17031) took 1e-5."""
    optimizer = make_optimizer(PositionCriticWithWeights(), 1.0, 0.0)
    assert (optimizer.defaults["eps"], optimizer.defaults["betas"]) == (1e-8, (0.9, 0.999))


class PositionCriticWithWeights(PositionCritic):
    def __init__(self):
        super().__init__(make_policy())
        self.scale = torch.nn.Parameter(torch.ones(1))


def test_a_bootstrapped_batch_computes_the_last_token_too():
    assert LOSS.packing(PPOConfig(truncation="bootstrap")) == {"include_last_token": True}
    assert LOSS.packing(PPOConfig()) == {"include_last_token": False}
