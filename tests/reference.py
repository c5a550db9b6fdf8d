"""Every loss a second time: plain Python loops on 50-digit numbers, straight from the papers.

No torch in here and no line shared with `losses/`.  Nothing is stabilised: with 50 digits and
no overflow the formula itself is accurate enough, so the code can be as dumb as the paper (one
exception, log1p, because exp(-1000) has 435 zeros).

Gradients come from dual numbers: a `Dual` carries its value and its partial derivatives, and
+ - * / exp log1p ... apply the chain rule.  Chosen over derivatives written by hand (a second
formula per loss, where a slip can agree with a slip) and over mp.diff (a step size, wrong next
to the pole of the log-odds): thirty lines, exact, and checked against mp.diff in
test_reference.py.
"""

from mpmath import mp, mpf

mp.dps = 50


class Dual:
    """v + d_0 e_0 + d_1 e_1 + ...: a number and its derivative by input 0, 1, ..."""

    def __init__(self, v, d=None):
        self.v, self.d = mpf(v), d or {}

    def chain(self, v, slope):
        return Dual(v, {i: slope * p for i, p in self.d.items()})

    def __add__(self, other):
        other = dual(other)
        keys = self.d.keys() | other.d.keys()
        return Dual(self.v + other.v, {i: self.d.get(i, 0) + other.d.get(i, 0) for i in keys})

    def __mul__(self, other):
        other = dual(other)
        v = self.v * other.v
        return Dual(v, (self.chain(0, other.v) + other.chain(0, self.v)).d)

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -dual(other)

    def __rsub__(self, other):
        return dual(other) - self

    def __truediv__(self, other):
        other = dual(other)
        return self * other.chain(1 / other.v, -1 / other.v**2)

    def __rtruediv__(self, other):
        return dual(other) / self

    def __lt__(self, other):  # gives min
        return self.v < dual(other).v

    def __gt__(self, other):  # gives max
        return self.v > dual(other).v

    __radd__, __rmul__ = __add__, __mul__


def dual(x):
    return x if isinstance(x, Dual) else Dual(x)


def exp(x):
    v = mp.exp(dual(x).v)
    return dual(x).chain(v, v)


def log(x):
    return dual(x).chain(mp.log(dual(x).v), 1 / dual(x).v)


def log1p(x):
    return dual(x).chain(mp.log1p(dual(x).v), 1 / (1 + dual(x).v))


def sqrt(x):
    v = mp.sqrt(dual(x).v)
    return dual(x).chain(v, 1 / (2 * v))


def value_and_grad(f, xs, weights):
    """Values of f(xs), and the gradient of sum(weight * value) by every x."""
    out = f([Dual(x, {i: mpf(1)}) for i, x in enumerate(xs)])
    out = [dual(o) for o in out]
    grad = [
        sum(w * o.d.get(i, 0) for w, o in zip(weights, out, strict=True)) for i in range(len(xs))
    ]
    return [o.v for o in out], grad


# ---------------------------------------------------------------- one token, or one pair


def logsigmoid(x):
    return -log1p(exp(-x))


def clamp(x, low, high):
    return min(max(dual(x), dual(low)), dual(high))


def sft(logps, mask):
    return -logps if mask else 0


def reward(chosen_scores, rejected_scores, margin=0, center_coef=0):
    gap, total = chosen_scores - rejected_scores, chosen_scores + rejected_scores
    return -logsigmoid(gap - margin) + center_coef * total * total


def dpo(
    policy_chosen_logps,
    policy_rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    beta=0.1,
    label_smoothing=0,
    variant="sigmoid",
):
    # Rafailov et al. 2023, eq. 7: h = log pi(w)/ref(w) - log pi(l)/ref(l)
    h = (policy_chosen_logps - ref_chosen_logps) - (policy_rejected_logps - ref_rejected_logps)
    e = label_smoothing
    if variant == "sigmoid":
        return -(1 - e) * logsigmoid(beta * h) - e * logsigmoid(-beta * h)
    if variant == "robust":
        return (-(1 - e) * logsigmoid(beta * h) + e * logsigmoid(-beta * h)) / (1 - 2 * e)
    if variant == "ipo":
        off = h - 1 / (2 * beta)
        return off * off
    assert variant == "hinge"
    return max(dual(0), 1 - beta * h)


def log_odds(a):
    return a - log(1 - exp(a))


def orpo(chosen_mean_logps, rejected_mean_logps, lam=0.1):
    odds_ratio = log_odds(chosen_mean_logps) - log_odds(rejected_mean_logps)
    return -chosen_mean_logps - lam * logsigmoid(odds_ratio)


def simpo(chosen_mean_logps, rejected_mean_logps, beta=2, gamma=1):
    # Meng et al. 2024, eq. 6
    return -logsigmoid(beta * chosen_mean_logps - beta * rejected_mean_logps - gamma)


def kl(logps, ref_logps, kind="k1"):
    d = logps - ref_logps
    return {"k1": d, "k2": d * d / 2, "k3": exp(-d) - 1 + d}[kind]


def ppo_policy(logps, old_logps, advantages, mask, clip=0.2):
    if not mask:
        return 0
    ratio = exp(logps - old_logps)
    return -min(ratio * advantages, clamp(ratio, 1 - clip, 1 + clip) * advantages)


def ppo_value(values, old_values, returns, mask, clip=0.2):
    if not mask:
        return 0
    free = values - returns
    held = clamp(values, old_values - clip, old_values + clip) - returns
    return max(free * free, held * held) / 2


# ---------------------------------------------------------------- one row, or the whole batch


def masked_sum(x, mask):
    return sum((a for a, keep in zip(x, mask, strict=True) if keep), start=dual(0))


def masked_mean(x, mask):
    return masked_sum(x, mask) / max(1, sum(mask))


def gae(rewards, values, mask, gamma=1, lam=0.95, last_values=0):
    """A_t = sum_l (gamma lam)^l delta_{t+l}: the definition, not the usual backward recursion."""
    steps = [t for t, keep in enumerate(mask) if keep]
    after = [values[t] for t in steps[1:]] + [last_values]
    delta = [rewards[t] + gamma * nxt - values[t] for t, nxt in zip(steps, after, strict=False)]
    advantages, returns = [dual(0)] * len(mask), [dual(0)] * len(mask)
    for i, t in enumerate(steps):
        weight = dual(1)
        for later in delta[i:]:
            advantages[t] = advantages[t] + weight * later
            weight = weight * gamma * lam
        returns[t] = advantages[t] + values[t]
    return advantages + returns


def whiten(x, mask, shift_mean=True):
    flat = [a for row in x for a in row]
    keep = [k for row in mask for k in row]
    n = max(1, sum(keep))
    mean = masked_sum(flat, keep) / n
    variance = masked_sum([(a - mean) * (a - mean) for a in flat], keep) / n
    back = 0 if shift_mean else mean
    white = [(a - mean) / sqrt(variance + mpf("1e-8")) + back for a in flat]
    return [a if k else dual(0) for a, k in zip(white, keep, strict=True)]


def head_logits(hidden, weight, bias, temperature):
    return [
        (sum(h * w for h, w in zip(hidden, row, strict=True)) + b) / temperature
        for row, b in zip(weight, bias, strict=True)
    ]


def token_logprobs(hidden, weight, bias, target, temperature=1):
    """One position: hidden (d), weight (V, d), bias (V) -> log p(target)."""
    logits = head_logits(hidden, weight, bias, temperature)
    return logits[target] - log(sum(exp(z) for z in logits))


def token_entropy(hidden, weight, bias, temperature=1):
    """One position -> minus the sum of p log p."""
    logits = head_logits(hidden, weight, bias, temperature)
    total = sum(exp(z) for z in logits)
    shares = [exp(z) / total for z in logits]
    return -sum(p * log(p) for p in shares)
