"""What couples the numbers of a row or a batch: GAE, whitening, the head, the step's mean.

Values and gradients are written out, each as a sum of terms; the scale of a sum is the sum of its
terms' absolute values, and errors of what goes into a term are carried through it. `c` is the
cotangent of an output: gradients are those of sum(c x output).
"""

from __future__ import annotations

from collections.abc import Sequence

from mpmath import mp, mpf  # type: ignore[import-untyped]

from .arithmetic import ZERO, Rounded

Numbers = Sequence[float]
Row = list[Rounded]
NOTHING = Rounded(ZERO)


def gae(
    rewards: Numbers,
    values: Numbers,
    mask: Sequence[bool],
    last_value: float | None,
    c_advantages: Numbers,
    c_returns: Numbers,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Row, Row, Row, Row, Rounded]:
    """One row of 1506.02438 eq. 11 and 16: A_t = δ_t + γλ A_{t+1}, R_t = A_t + V_t.

    Returns:
        advantages, returns; then the gradient by rewards, values and the last value.
    """
    steps = [t for t, keep in enumerate(mask) if keep]
    g, decay = mpf(gamma), mpf(gamma) * mpf(lam)
    width = len(mask)
    advantages, returns, by_reward, by_value = ([NOTHING] * width for _ in range(4))

    after, advantage = mpf(last_value or 0), Rounded(ZERO)
    for t in reversed(steps):
        r, v = mpf(rewards[t]), mpf(values[t])
        advantage = Rounded(
            r + g * after - v + decay * advantage.v,
            abs(r) + abs(g * after) + abs(v) + decay * advantage.s,
        )
        advantages[t] = advantage
        returns[t] = Rounded(advantage.v + v, advantage.s + abs(v))
        after = v

    # b_t = dL/dδ_t gathers, decayed, what earlier advantages are worth; δ_t holds r_t, γ V_{t+1}
    # and -V_t, and a return holds its own value once more
    b = Rounded(ZERO)
    for t in steps:
        ca, cr = mpf(c_advantages[t]), mpf(c_returns[t])
        before, b = b, Rounded(ca + cr + decay * b.v, abs(ca) + abs(cr) + decay * b.s)
        by_reward[t] = b
        by_value[t] = Rounded(cr - b.v + g * before.v, abs(cr) + b.s + g * before.s)
    return advantages, returns, by_reward, by_value, Rounded(g * b.v, g * b.s)


def whiten(
    x: Numbers, mask: Sequence[bool], c: Numbers, *, shift_mean: bool = True
) -> tuple[Row, Row]:
    """y = (x - mean) / sqrt(variance + 1e-8) [+ mean], moments over the mask (population).

    lm-human-preferences' `whiten`. Returns y and the gradient by x.
    """
    kept = [i for i, keep in enumerate(mask) if keep]
    n = max(1, len(kept))

    def mean(of: list[mpf]) -> mpf:
        return mp.fsum(of) / n

    size = mean([abs(mpf(x[i])) for i in kept])
    middle = mean([mpf(x[i]) for i in kept])
    off = {i: mpf(x[i]) - middle for i in kept}
    off_s = {i: abs(mpf(x[i])) + size for i in kept}
    sd = mp.sqrt(mean([o * o for o in off.values()]) + mpf(1e-8))
    sd_s = mean([abs(off[i]) * off_s[i] for i in kept]) / sd**2 + 1  # relative
    y = {i: off[i] / sd for i in kept}
    y_s = {i: off_s[i] / sd + abs(y[i]) * sd_s for i in kept}

    # dy_j/dx_i = (1[i=j] - 1/n - y_i y_j / n) / sd
    cs = {i: mpf(c[i]) for i in kept}
    c_mean, c_size = mean(list(cs.values())), mean([abs(a) for a in cs.values()])
    along = mean([cs[i] * y[i] for i in kept])
    along_s = mean([abs(cs[i]) * (abs(y[i]) + y_s[i]) for i in kept])
    out, grad = [NOTHING] * len(mask), [NOTHING] * len(mask)
    for i in kept:
        back, back_s = (ZERO, ZERO) if shift_mean else (middle, size)
        out[i] = Rounded(y[i] + back, y_s[i] + abs(y[i]) + back_s)
        slope = (cs[i] - c_mean - y[i] * along) / sd
        terms = abs(cs[i]) + c_size + abs(y[i]) * along_s + y_s[i] * abs(along)
        back, back_s = (ZERO, ZERO) if shift_mean else (c_mean, c_size)
        grad[i] = Rounded(slope + back, terms / sd + abs(slope) * sd_s + back_s)
    return out, grad


def head(
    hidden: Sequence[Numbers],
    weight: Sequence[Numbers],
    targets: Sequence[int],
    bias: Numbers | None,
    c: Numbers,
    *,
    temperature: float = 1.0,
) -> tuple[Row, list[Row], list[Row], Row]:
    """log softmax((W h + b) / T)[target], and its gradient by hidden, weight and bias."""
    cold, vocabulary, d = 1 / mpf(temperature), range(len(weight)), range(len(weight[0]))
    w = [[mpf(a) for a in row] for row in weight]
    b = [mpf(a) for a in bias] if bias else [ZERO] * len(w)
    logps: Row = []
    by_hidden: list[Row] = []
    by_weight = [[[ZERO, ZERO] for _ in d] for _ in vocabulary]
    by_bias = [[ZERO, ZERO] for _ in vocabulary]
    for row, target, c_n in zip(hidden, targets, c, strict=True):
        h, up = [mpf(a) for a in row], mpf(c_n) * cold
        products = [[h[k] * w[v][k] for k in d] for v in vocabulary]
        z = [(mp.fsum(products[v]) + b[v]) * cold for v in vocabulary]
        z_s = [(mp.fsum(map(abs, products[v])) + abs(b[v])) * cold + abs(z[v]) for v in vocabulary]
        top = max(z)
        log_z = top + mp.log(mp.fsum(mp.exp(a - top) for a in z))
        p = [mp.exp(a - log_z) for a in z]
        logp = z[target] - log_z
        log_z_s = mp.fsum(p[v] * z_s[v] for v in vocabulary) + abs(log_z)
        logps.append(Rounded(logp, z_s[target] + log_z_s + abs(logp)))
        # δ = 1[v = target] - p, whose p is the exponential of a rounded z - log_z
        delta = [(v == target) - p[v] for v in vocabulary]
        others = [log_z_s - p[v] * z_s[v] + (1 - p[v]) * z_s[v] for v in vocabulary]
        delta_s = [(v == target) + p[v] * (1 + others[v]) for v in vocabulary]
        by_hidden.append(
            [
                Rounded(
                    up * mp.fsum(delta[v] * w[v][k] for v in vocabulary),
                    abs(up) * mp.fsum(delta_s[v] * abs(w[v][k]) for v in vocabulary),
                )
                for k in d
            ]
        )
        for v in vocabulary:
            by_bias[v][0] += up * delta[v]
            by_bias[v][1] += abs(up) * delta_s[v]
            for k in d:
                by_weight[v][k][0] += up * delta[v] * h[k]
                by_weight[v][k][1] += abs(up) * delta_s[v] * abs(h[k])
    return (
        logps,
        by_hidden,
        [[Rounded(*pair) for pair in row] for row in by_weight],
        [Rounded(*pair) for pair in by_bias],
    )


def reduce(
    losses: Sequence[Numbers], mask: Sequence[Sequence[bool]], c: float, *, unit: str = "token"
) -> tuple[Rounded, list[Row]]:
    """The loss of one optimizer step, however its rows are cut into micro-batches.

    token: mean over all tokens of the step (2203.02155; trl#2175). row: mean over each row's own
    tokens, then over rows (2403.07691 eq. 3); a row without a token counts as 0.
    """
    count = max(1, sum(sum(row) for row in mask))
    weights = [
        [mpf(keep) / (count if unit == "token" else max(1, sum(row)) * len(mask)) for keep in row]
        for row in mask
    ]
    terms = [
        w * mpf(a)
        for row, ws in zip(losses, weights, strict=True)
        for a, w in zip(row, ws, strict=True)
        if w
    ]
    grad = [[Rounded(mpf(c) * w, abs(mpf(c) * w)) for w in ws] for ws in weights]
    return Rounded(mp.fsum(terms), mp.fsum(map(abs, terms))), grad
