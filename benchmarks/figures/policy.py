"""Pictures of what PPO is made of: the clips, GAE's weights, the KL estimators."""

from __future__ import annotations

from functools import partial

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.figures.style import grid, line, panels, with_gradient, words
from losses import gae, kl_estimate, ppo_policy_loss, ppo_value_loss
from losses.advantages import KLKind

CLIP = 0.2
RATIO = r"ratio $\pi / \pi_{\mathrm{old}}$"
KINDS: tuple[KLKind, ...] = ("k1", "k2", "k3")


def everywhere(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def shade(axis: Axes, centre: float) -> None:
    """Where nothing is clipped."""
    axis.axvspan(centre - CLIP, centre + CLIP, color="grey", alpha=0.12, linewidth=0)
    axis.axvline(centre, color="grey", linewidth=0.8)


def surrogate(ratio: Tensor, advantage: float) -> tuple[Tensor, Tensor]:
    """The clipped objective (minus the loss) and its gradient by log π, at these ratios."""
    old = torch.full_like(ratio, -1.0)
    advantages = torch.full_like(ratio, advantage)

    def objective(logps: Tensor) -> Tensor:
        inputs = (x[None] for x in (logps, old, advantages, everywhere(logps)))  # one response
        return -ppo_policy_loss(*inputs, clip=CLIP)[0]

    return with_gradient(objective, ratio.log() + old)


def ppo() -> Figure:
    """Objective and gradient against the ratio, for an advantage of +1 and of -1."""
    figure, axes = panels(2)
    ratio = grid((0.01, 2.0), 1991)
    for (value, push), (sign, advantage) in zip(
        (axes[:2], axes[2:]), (("A = +1", 1.0), ("A = −1", -1.0)), strict=True
    ):
        objective, slopes = surrogate(ratio, advantage)
        unclipped = ratio * advantage
        line(value, ratio, unclipped, "ratio · A, without the clip", 1, linewidth=1.2)
        line(value, ratio, objective, "clipped objective", 0)
        line(push, ratio, unclipped, "without the clip", 1, linewidth=1.2)
        line(push, ratio, slopes, "clipped", 0)
        for axis in (value, push):
            shade(axis, 1)
        words(value, f"Objective of one token, {sign}", RATIO, "objective")
        words(push, f"Its gradient by log π, {sign}", RATIO, "gradient")
    return figure


def value_loss(values: Tensor, *, old: Tensor, returns: Tensor) -> Tensor:
    """The clipped error of each value, all as one response."""
    inputs = (x[None] for x in (values, old, returns, everywhere(values)))
    return ppo_value_loss(*inputs, clip=CLIP)[0]


def ppo_value() -> Figure:
    """Value loss and gradient against the new value; the old one is 0."""
    figure, (value, slope) = panels()
    values = grid((-0.6, 1.4))
    old = torch.zeros_like(values)
    for number, target in enumerate((0.1, 0.8)):
        returns = torch.full_like(values, target)
        loss = partial(value_loss, old=old, returns=returns)
        losses, slopes = with_gradient(loss, values)
        line(value, values, losses, f"return R = {target:g}", number)
        line(slope, values, slopes, f"return R = {target:g}", number)
    for axis in (value, slope):
        shade(axis, 0)
    new = "new value V; the old one is 0"
    words(value, "Value loss of one token", new, "½ of the larger squared error")
    words(slope, "Its gradient by V", new, "dL / dV")
    return figure


def weights(lam: float, length: int, gamma: float = 1.0) -> tuple[Tensor, Tensor]:
    """How much A_0 takes from the reward of each later token, and from each value: dA_0/dr_l and
    dA_0/dV_l, (length,) both. δ_l holds r_l once, so the first is the weight of δ_l as well."""
    rewards = torch.zeros(1, length, dtype=torch.float64, requires_grad=True)
    values = torch.zeros_like(rewards, requires_grad=True)
    advantages, _ = gae(rewards, values, everywhere(values), gamma=gamma, lam=lam)
    of_rewards, of_values = torch.autograd.grad(advantages[0, 0], (rewards, values))
    return of_rewards[0], of_values[0]


def gae_weights() -> Figure:
    """The weights of A_t on what comes l tokens later, for several λ, at γ = 1."""
    figure, (surprise, critic) = panels()
    lags = torch.arange(41)
    for number, lam in enumerate((1.0, 0.95, 0.9, 0.5, 0.0)):
        of_rewards, of_values = weights(lam, len(lags))
        line(surprise, lags, of_rewards, f"λ = {lam:g}", number)
        line(critic, lags[1:], of_values[1:], f"λ = {lam:g}", number, marker="o", markersize=3)
    critic.set_yscale("log", nonpositive="mask")
    critic.set_ylim(1e-3, 1.5)
    critic.annotate("λ = 0: all of it at l = 1", (1, 1), (2.5, 0.9))
    critic.annotate("λ = 1: none, at any l", (20, 0.3), (2.5, 0.55))
    later = "l: tokens after the one judged"
    words(surprise, "Weight of δ, and of the reward, in A", later, "weight of δ at t + l")
    words(critic, "Weight of the critic's later values in A", later, "weight of V at t + l", None)
    return figure


def kl() -> Figure:
    """The three estimators and their gradients against the log-ratio of one sample."""
    figure, (value, slope) = panels()
    d = grid((-3.0, 3.0))
    for number, kind in enumerate(KINDS):
        estimate = partial(kl_estimate, ref_logps=torch.zeros_like(d), kind=kind)
        estimates, slopes = with_gradient(estimate, d)
        line(value, d, estimates, kind, number)
        line(slope, d, slopes, kind, number)
    for axis in (value, slope):
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set_ylim(-4, 6)
    ratio = r"d = log π − log $\pi_{\mathrm{ref}}$ of one sampled token (nats)"
    words(value, "Estimate of the KL", ratio, "nats")
    words(slope, "Its gradient by log π", ratio, "gradient")
    return figure
