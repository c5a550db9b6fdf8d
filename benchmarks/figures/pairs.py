"""Pictures of the losses on given text: sft, reward, dpo, orpo, simpo."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.figures.style import grid, line, panels, with_gradient, words
from losses import (
    dpo_loss,
    log_odds,
    orpo_loss,
    reward_loss,
    sft_loss,
    simpo_loss,
    token_logprobs,
)
from losses.orpo import odds_ratio_loss


def sft() -> Figure:
    """Loss of one token against its probability; how hard it pulls at log-prob and logit."""
    figure, (value, push) = panels()
    logits = grid((-7.0, 7.0))  # of the token, the only other one standing at 0
    p = logits.sigmoid()

    def loss_of_logit(logit: Tensor) -> Tensor:
        hidden = torch.stack([logit, torch.zeros_like(logit)], dim=-1)
        target = torch.zeros(len(logit), dtype=torch.long)
        logps = token_logprobs(hidden, torch.eye(2, dtype=logit.dtype), target)
        return loss_of_logp(logps)

    def loss_of_logp(logps: Tensor) -> Tensor:
        return sft_loss(logps[:, None], torch.ones(len(logps), 1, dtype=torch.bool))[:, 0]

    losses, by_logit = with_gradient(loss_of_logit, logits)
    _, by_logp = with_gradient(loss_of_logp, p.log())
    line(value, p, losses, "−log p", 0)
    line(push, p, -by_logp, "on log p", 0)
    line(push, p, -by_logit, "on the token's logit: 1 − p", 1)
    words(value, "Loss of one token", "probability p of the token", "loss (nats)", None)
    words(push, "How hard it is pushed up", "probability p of the token", "−gradient of the loss")
    return figure


def reward() -> Figure:
    """Loss and gradient against the difference of scores, for three margins."""
    figure, (value, push) = panels()
    gaps = grid((-4.0, 6.0))
    for number, m in enumerate((0.0, 1.0, 3.0)):
        margin = torch.full_like(gaps, m)
        loss = partial(reward_loss, rejected_scores=torch.zeros_like(gaps), margin=margin)
        losses, slopes = with_gradient(loss, gaps)
        line(value, gaps, losses, f"margin {m:g}", number)
        line(push, gaps, -slopes, f"margin {m:g}", number)
    value.axhline(math.log(2), color="grey", linewidth=0.8)
    value.annotate("ln 2", (5.5, math.log(2)), (5.5, math.log(2) + 0.1), color="grey")
    score = "difference of scores, chosen − rejected"
    words(value, "Loss of one pair", score, "loss (nats)")
    words(push, "Push up on the chosen score", score, "−gradient of the loss", None)
    return figure


def of_h(h: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """dpo_loss and its gradient weight -dL/dh against h: the other three log-probs are 0."""
    zero = torch.zeros_like(h)
    losses, slopes = with_gradient(lambda x: dpo_loss(x, zero, zero, zero, **options), h)
    return losses, -slopes


def dpo_beta() -> Figure:
    """Loss and gradient weight against h, for several β."""
    figure, (value, weight) = panels()
    h = grid((-20.0, 40.0))
    for number, beta in enumerate((0.05, 0.1, 0.2, 0.5)):
        losses, weights = of_h(h, beta=beta)
        line(value, h, losses, f"β = {beta:g}", number)
        line(weight, h, weights, f"β = {beta:g}", number)
    value.set_ylim(-0.15, 5)
    for axis in (value, weight):
        axis.axvline(0, color="grey", linewidth=0.8)
    value.annotate("start of training", (0, 4.6), (1, 4.6), color="grey")
    margin = "h: gain of chosen over rejected (nats)"
    words(value, "DPO loss of one pair", margin, "loss (nats)", None)
    words(weight, "Its gradient weight, β σ(−βh)", margin, "weight −dL/dh")
    return figure


VARIANTS: dict[str, dict[str, Any]] = {
    "sigmoid (DPO)": {},
    "sigmoid, ε = 0.1 (cDPO)": {"label_smoothing": 0.1},
    "robust, ε = 0.1": {"label_smoothing": 0.1, "variant": "robust"},
    "ipo": {"variant": "ipo"},
    "hinge": {"variant": "hinge"},
}


def dpo_variants() -> Figure:
    """Every variant at β = 0.1, each divided by what it is at h = 0: their scales differ 100-fold,
    and an optimizer that normalises, as Adam does, sees the shape alone."""
    figure, (value, weight) = panels()
    h = grid((-10.0, 40.0))
    for number, (name, options) in enumerate(VARIANTS.items()):
        (start,), (start_weight,) = of_h(torch.zeros(1, dtype=torch.float64), **options)
        losses, weights = of_h(h, **options)
        line(value, h, losses / start, name, number)
        line(weight, h, weights / start_weight, name, number)
    value.set_ylim(-0.7, 2.5)
    weight.set_ylim(-1.2, 2.2)
    weight.axhline(0, color="grey", linewidth=0.8)
    margin = "h: gain of chosen over rejected (nats)"
    words(value, "Loss, β = 0.1", margin, "share of its value at h = 0", None)
    words(weight, "Gradient weight −dL/dh, β = 0.1", margin, "share of its value at h = 0", None)
    figure.legend(*value.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def orpo() -> Figure:
    """Log-odds; the odds term; what the whole loss does to a chosen and to a rejected response."""
    figure, (odds, term, chosen, rejected) = panels(2)
    p = grid((0.001, 0.999))
    line(odds, p, p.log(), "log p", 1)
    line(odds, p, log_odds(p.log()), "log odds(p)", 0)
    words(odds, "Odds tell p = 0.9 from 0.99", "probability p, per token", "nats", "lower right")

    other = torch.full_like(p, math.log(0.5))  # odds 1, so that z is the chosen response's log-odds
    z = log_odds(p.log())
    penalty, by_logp = with_gradient(partial(odds_ratio_loss, rejected_mean_logps=other), p.log())
    _, z_by_logp = with_gradient(log_odds, p.log())
    line(term, z, penalty, "−log σ(z)", 0)
    line(term, z, -by_logp / z_by_logp, "its weight −d/dz = σ(−z)", 1)
    words(term, "The odds-ratio term", r"z = log odds($p_w$) − log odds($p_l$)", "nats")

    for number, fixed in enumerate((0.1, 0.5, 0.9)):
        given = torch.full_like(p, math.log(fixed))
        _, up = with_gradient(partial(orpo_loss, rejected_mean_logps=given, lam=0.1), p.log())
        _, down = with_gradient(partial(orpo_loss, given, lam=0.1), p.log())
        line(chosen, p, -up, rf"$p_l$ = {fixed:g}", number)
        line(rejected, p, down, rf"$p_w$ = {fixed:g}", number)
    chosen.axhline(1, color="grey", linewidth=0.8)
    chosen.annotate("the likelihood term alone: 1", (0, 1), (0, 0.93), color="grey")
    chosen.set_ylim(0.85, 2.0)
    rejected.set_ylim(0.0, 1.0)
    words(
        chosen, r"Push up on log $p_w$, λ = 0.1", r"chosen $p_w$, per token", r"−dL / d log $p_w$"
    )
    words(
        rejected,
        r"Push down on log $p_l$, λ = 0.1",
        r"rejected $p_l$, per token",
        r"dL / d log $p_l$",
    )
    return figure


def simpo() -> Figure:
    """Loss and gradient weight against the difference of mean log-probs, for β and γ."""
    figure, (value, weight) = panels()
    d = grid((-1.0, 2.0))
    for number, (beta, gamma) in enumerate(((2.0, 0.0), (2.0, 1.0), (10.0, 0.0), (10.0, 5.0))):
        rejected = torch.zeros_like(d)
        loss = partial(simpo_loss, rejected_mean_logps=rejected, beta=beta, gamma=gamma)
        losses, slopes = with_gradient(loss, d)
        line(value, d, losses, f"β = {beta:g}, γ = {gamma:g}", number)
        line(weight, d, -slopes, f"β = {beta:g}, γ = {gamma:g}", number)
    value.set_ylim(-0.15, 5)
    value.axhline(math.log(2), color="grey", linewidth=0.8)
    value.annotate("ln 2, at d = γ/β", (1.1, math.log(2)), (1.1, math.log(2) + 0.1), color="grey")
    gap = "d: mean log-probs, chosen − rejected (nats)"
    words(value, "SimPO loss of one pair", gap, "loss (nats)")
    words(weight, "Its gradient weight, β σ(γ − βd)", gap, "weight −dL/dd", None)
    return figure
