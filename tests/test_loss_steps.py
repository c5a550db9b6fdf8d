"""What every step sums, and what it says of itself, from log-probs and scores made up here."""

from dataclasses import replace
from math import exp, inf, log, log1p, nan

import pytest
import torch
from compare import column
from tolerances import TIGHT

from data.row_table import Row
from data.trees import pack
from losses import LOSSES
from losses.dpo import DPOConfig, expected_initial_metrics
from losses.dpo import step as dpo_step
from losses.orpo import ORPOConfig
from losses.orpo import step as orpo_step
from losses.ppo import PPOConfig
from losses.ppo import step as ppo_step
from losses.reward import RewardConfig
from losses.reward import step as reward_step
from losses.sft import SFTConfig
from losses.sft import step as sft_step
from models.forward import ActorCriticOutput

# Three pairs: one won, one lost, one tied. Lengths 2 and 1, 1 and 3, 1 and 1.
LOGPS = [[-1, -2], [-4], [-5], [-1, -1, -4], [-1], [-1]]
REFERENCE = column(-2, -6, -4, -3, -1, -1)  # of each response, summed


def near(expected):
    return pytest.approx(expected, rel=8 * TIGHT, abs=TIGHT)


def batch_of(logps, responses=2, margins=(0.0, 0.0, 0.0)):
    """A batch of such responses, and their log-probs as a table; NaN stands under the mask."""
    rows = [
        Row(i, [5, 6], [[7] * len(r) for r in group], [True] * responses, [1] * responses, margin)
        for i, (group, margin) in enumerate(
            zip(zip(*[iter(logps)] * responses, strict=True), margins, strict=False)
        )
    ]
    batch = pack(rows)
    batch = batch.with_columns({"margin": torch.tensor(margins).repeat_interleave(responses)})
    table = torch.full(batch.mask.shape, nan, dtype=torch.float64)
    table[batch.mask] = column(*(x for row in logps for x in row))
    return batch, table


def told(output):
    """{metric: (sum, count)}"""
    return {name: (total.item(), n.item()) for name, (total, n) in output.metrics.items()}


def wins(x):
    """-log σ(x)"""
    return log1p(exp(-x))


def test_sft_sums_over_tokens_and_says_no_more():
    batch, logps = batch_of(LOGPS[:3], responses=1)
    output = sft_step(logps, batch, SFTConfig())
    assert {k: v.item() for k, v in output.totals.items()} == {"tokens": 1 + 2 + 4 + 5}
    assert output.metrics == {}
    assert LOSSES["sft"].units(batch, SFTConfig()) == {"tokens": 4}


def test_reward_says_who_wins_and_by_how_much():
    """A tie is not won."""
    batch, _ = batch_of(LOGPS, margins=(0.5, 0.0, 0.25))
    scores = column(2, 1, 0, 4, 1, 1)
    output = reward_step(scores, batch, RewardConfig(center_coef=0.5))
    losses = wins(1 - 0.5) + wins(-4) + wins(-0.25) + 0.5 * (3**2 + 4**2 + 2**2)
    assert {k: v.item() for k, v in output.totals.items()} == {"pairs": near(losses)}
    assert told(output) == {
        "accuracy": (1, 3),
        "margin": (-3, 3),
        "mean_reward": (9, 6),
        "mean_squared_reward": (23, 6),
        "rewards/chosen": (3, 3),
        "rewards/rejected": (6, 3),
    }
    assert LOSSES["reward"].units(batch, RewardConfig()) == {"pairs": 3}


def test_a_margin_does_not_change_the_dtype_of_the_loss():
    batch, _ = batch_of(LOGPS, margins=(0.5, 0.0, 0.25))
    scores = column(2, 1, 0, 3, 1, 1).bfloat16()
    assert reward_step(scores, batch, RewardConfig()).totals["pairs"].dtype == torch.bfloat16


DPO = {  # the log-probs of each response, and of the reference
    "sum": ([-3, -4, -5, -6, -1, -1], [-2, -6, -4, -3, -1, -1]),
    "mean": ([-1.5, -4, -5, -2, -1, -1], [-1, -6, -4, -1, -1, -1]),
}


@pytest.mark.parametrize("reduction", DPO)
def test_dpo_says_what_the_policy_prefers_to_its_reference(reduction):
    batch, logps = batch_of(LOGPS)
    batch = batch.with_columns({"ref_seq_logps": REFERENCE})
    config = DPOConfig(beta=0.5, label_smoothing=0.1, logp_reduction=reduction)
    output = dpo_step(logps, batch, config)
    policy, reference = DPO[reduction]
    r = [0.5 * (a - b) for a, b in zip(policy, reference, strict=True)]  # implicit rewards
    margins = [r[0] - r[1], r[2] - r[3], r[4] - r[5]]
    losses = sum(0.9 * wins(m) + 0.1 * wins(-m) for m in margins)
    assert {k: v.item() for k, v in output.totals.items()} == {"pairs": near(losses)}
    assert told(output) == {
        "rewards/chosen": near((r[0] + r[2] + r[4], 3)),
        "rewards/rejected": near((r[1] + r[3] + r[5], 3)),
        "rewards/margins": near((sum(margins), 3)),
        "rewards/accuracies": (sum(m > 0 for m in margins), 3),
        "logps/chosen": (policy[0] + policy[2] + policy[4], 3),
        "logps/rejected": (policy[1] + policy[3] + policy[5], 3),
    }


def test_dpo_hands_its_variant_on():
    batch, logps = batch_of(LOGPS)
    batch = batch.with_columns({"ref_seq_logps": REFERENCE})  # h is -3, 2 and 0
    (loss,) = dpo_step(logps, batch, DPOConfig(beta=0.5, variant="ipo")).totals.values()
    assert loss.item() == near((-3 - 1) ** 2 + (2 - 1) ** 2 + (0 - 1) ** 2)


def test_dpo_at_the_start():
    """C1: h = 0. Of another reference nothing is known."""
    assert expected_initial_metrics(DPOConfig()) == {"loss": near(log(2)), "rewards/margins": 0.0}
    assert expected_initial_metrics(DPOConfig(ref_model="another")) == {}
    robust = DPOConfig(variant="robust", label_smoothing=0.1)
    assert expected_initial_metrics(robust)["loss"] == near(log(2))
    assert expected_initial_metrics(DPOConfig(beta=0.5, variant="ipo"))["loss"] == near(1)


def test_orpo_says_odds_and_likelihood():
    batch, logps = batch_of(LOGPS)
    chosen, rejected = [-1.5, -5, -1], [-4, -2, -1]
    output = orpo_step(logps, batch, ORPOConfig(lam=0.5))

    def log_odds(logp):
        return logp - log1p(-exp(logp))

    ratios = [log_odds(a) - log_odds(b) for a, b in zip(chosen, rejected, strict=True)]
    penalty, nll = sum(map(wins, ratios)), -sum(chosen)
    assert {k: v.item() for k, v in output.totals.items()} == {"pairs": near(nll + 0.5 * penalty)}
    assert told(output) == {
        "nll_loss": near((nll, 3)),
        "odds_ratio_loss": near((penalty, 3)),
        "log_odds_ratio": near((sum(ratios), 3)),
        "rewards/chosen": near((0.5 * sum(chosen), 3)),
        "rewards/rejected": near((0.5 * sum(rejected), 3)),
        "rewards/margins": near((0.5 * (sum(chosen) - sum(rejected)), 3)),
        "rewards/accuracies": (1, 3),
        "mean_logps/chosen": near((sum(chosen), 3)),
        "mean_logps/rejected": near((sum(rejected), 3)),
    }


def test_orpo_by_token_has_two_units():
    batch, logps = batch_of(LOGPS)
    by_token = ORPOConfig(lam=0.5, nll_reduction="token")
    output, by_pair = orpo_step(logps, batch, by_token), orpo_step(logps, batch, ORPOConfig())
    penalty = told(by_pair)["odds_ratio_loss"][0]
    assert {k: v.item() for k, v in output.totals.items()} == {
        "pairs": near(0.5 * penalty),
        "tokens": 1 + 2 + 5 + 1,
    }
    assert told(output)["nll_loss"] == (1 + 2 + 5 + 1, 4)
    assert LOSSES["orpo"].units(batch, by_token) == {"pairs": 3, "tokens": 4}
    assert LOSSES["orpo"].units(batch, ORPOConfig()) == {"pairs": 3}


LN2 = log(2)  # exp(LN2) is 2 in float64, to the last bit


@pytest.mark.parametrize("critic_only", [False, True])
def test_ppo_adds_policy_value_kl_and_entropy(critic_only):
    """Ratios 2, 1 | 1/2; a ratio and a value exactly as far off as the clip are not beyond it."""
    rows = [Row(i, [5], [[7] * n], [True], [1]) for i, n in enumerate((2, 1))]
    batch = pack(rows)

    def table(*numbers, under=nan):
        return torch.full((2, 2), under).double().masked_scatter(batch.mask, column(*numbers))

    columns = dict(
        old_logps=table(-2, -2, -2),
        old_values=table(8, 8, 8),
        advantages=table(1, -1, 1),
        returns=table(9, 9, 9),
        ref_logps=table(-1, -2, -4),
        policy_weight=torch.full((2,), 0.0 if critic_only else 1.0),
    )
    batch = batch.with_columns(columns)
    values, entropies = table(8.25, 8.5, 6, under=0.0), table(1, 2, 4, under=0.0)
    logps = table(LN2 - 2, -2, -LN2 - 2, under=0.0)
    config = PPOConfig(
        clip=1.0, value_clip=0.25, value_coef=0.5, kl_loss_coef=0.25, entropy_coef=0.125
    )
    outputs = ActorCriticOutput(logps, values, values[:, 0], entropies)
    output = ppo_step(outputs, batch, config)
    policy = -2 + 1 - 0.5
    value = 0.5 * (0.75**2 + 0.75**2 + 3**2)  # the clipped 8.25 is further off than 8.5
    kl = 0.5 * ((LN2 - 1) ** 2 + 0 + (2 - LN2) ** 2)
    of_policy = 0.0 if critic_only else policy + 0.25 * kl - 0.125 * (1 + 2 + 4)
    totals = {k: v.item() for k, v in output.totals.items()}
    assert totals == {"tokens": near(of_policy + 0.5 * value)}
    assert told(output) == {
        "loss/policy_avg": near((policy, 3)),
        "loss/value_avg": near((value, 3)),
        "policy/approxkl_avg": near((0.5 * 2 * LN2**2, 3)),
        "policy/clipfrac_avg": (0, 3),
        "val/clipfrac_avg": (2, 3),
        "val/ratio": near((3.5, 3)),
        "val/ratio_minus_1_squared": near((1.25, 3)),
        "policy/entropy_avg": near((7, 3)),
    }
    quiet = ppo_step(outputs, batch, replace(config, entropy_coef=0.0))
    assert "policy/entropy_avg" not in quiet.metrics


# --- what a step cannot do without, and settings at the edge --------------------------------------


def test_a_column_that_the_batch_lacks_is_refused_by_name():
    batch, _ = batch_of(LOGPS)
    lacking = "^loss dpo reads the column ref_seq_logps; the batch has margin$"
    with pytest.raises(ValueError, match=lacking):
        LOSSES["dpo"].check_columns(batch)
    with pytest.raises(
        ValueError, match="^loss ppo reads the column old_logps; the batch has none$"
    ):
        LOSSES["ppo"].check_columns(replace(batch, columns={}))
    two = replace(batch, columns={"margin": torch.zeros(6), "old_values": torch.zeros(6)})
    with pytest.raises(ValueError, match="; the batch has margin, old_values$"):
        LOSSES["ppo"].check_columns(two)
    LOSSES["sft"].check_columns(batch)


REFUSED = [
    *((DPOConfig, {"beta": beta}) for beta in (0.0, -1.0, inf, nan)),
    *((DPOConfig, {"label_smoothing": eps}) for eps in (-0.1, 0.5, nan)),
    *((DPOConfig, {"label_smoothing": 0.1, "variant": v}) for v in ("ipo", "hinge")),
    *((RewardConfig, {"center_coef": c}) for c in (-0.1, inf, nan)),
    *((ORPOConfig, {"lam": lam}) for lam in (-0.1, inf, nan)),
]
ALLOWED = [
    *((DPOConfig, {"beta": beta}) for beta in (1e-3, 1.0, 20.0)),
    *((DPOConfig, {"label_smoothing": eps}) for eps in (0.0, 0.49)),
    *((DPOConfig, {"label_smoothing": 0.1, "variant": v}) for v in ("sigmoid", "robust")),
    *((RewardConfig, {"center_coef": c}) for c in (0.0, 0.5, 2.0)),
    *((ORPOConfig, {"lam": lam}) for lam in (0.0, 0.5, 2.0)),
    *((PPOConfig, {name: 0}) for name in ("kl_loss_coef", "value_coef", "gamma", "lam", "top_k")),
    *((PPOConfig, {name: 1}) for name in ("gamma", "lam", "top_p", "critic_warmup")),
    *((PPOConfig, {name: 0.5}) for name in ("clip", "value_clip", "score_clip", "kl_target")),
]


@pytest.mark.parametrize("config, options", REFUSED)
def test_a_value_without_a_meaning_is_refused(config, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        config(**options)


@pytest.mark.parametrize("config, options", ALLOWED)
def test_a_value_with_a_meaning_is_taken(config, options):
    assert vars(config(**options)).items() >= options.items()
