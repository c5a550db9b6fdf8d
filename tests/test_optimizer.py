"""What a run's optimizer does with the gradient, against AdamW in plain tensors: the rate of every
step, the clipping, the weight decay."""

import math
from types import SimpleNamespace

import pytest
import torch
from runs import BASE, metrics, pocket_rows, run, write_rows
from safetensors.torch import load_file
from tolerances import loose
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from runtime.optimizer import make_optimizer

# Transformers' norms compute in float32, in a float64 model too, and AdamW divides gradients by
# their own size, so that small ones have the error of large ones.
TOLERANCE = 10 * loose(torch.float32)

PEAK, DECAY, MAX_NORM = 3e-3, 2.0, 0.5
RATES = [PEAK / 2, PEAK, PEAK * 2 / 3, PEAK / 3]  # one step of warm-up, then linear over three
ROWS, HELDOUT = pocket_rows(4, 4)  # all rows in every step: their order plays no part


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    """Four steps of SFT in float64; returns the run directory."""

    def start(**options):
        folder = tmp_path_factory.mktemp("optimizer")
        data, out = write_rows(folder / "data", ROWS, HELDOUT), folder / "out"
        flags = {"loss": "sft", "data": data, "output_dir": out, "dtype": "float64"}
        flags |= {"max_steps": 4, "batch_size": 4, "learning_rate": PEAK, "weight_decay": DECAY}
        done = run(*(part for k, v in (flags | options).items() for part in (f"--{k}", v)))
        assert done.code == 0 and done.err == "", done.err
        return out

    return start


@pytest.fixture(scope="module")
def out(go):
    return go(schedule="linear", warmup=1, max_grad_norm=MAX_NORM)


def mean_loss(model, tokenizer):
    """Mean over all response tokens, end tokens included, one row at a time."""
    losses = []
    for row in ROWS:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["chosen"])["input_ids"] + [tokenizer.eos_token_id]
        logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-logps[t - 1, ids[t]] for t in range(len(prompt), len(ids))]
    return torch.stack(losses).mean()


def train_by_hand(rates=RATES, max_norm=MAX_NORM, decays=lambda p: p.ndim == 2):
    """Loshchilov & Hutter 2019 (arXiv 1711.05101), algorithm 2, betas (0.9, 0.999), eps 1e-8.

    Returns how far the weights have gone from where they began, and each step's norms.
    """
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    weights = dict(model.named_parameters())
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    start = {name: w.detach().clone() for name, w in weights.items()}
    norms = []
    for t, rate in enumerate(rates, 1):
        gradients = torch.autograd.grad(mean_loss(model, tokenizer), list(weights.values()))
        norms.append(math.sqrt(sum((g**2).sum().item() for g in gradients)))
        shrink = min(1.0, max_norm / norms[-1])
        with torch.no_grad():
            for (name, w), g in zip(weights.items(), gradients, strict=True):
                m, v = first[name], second[name]
                m.copy_(0.9 * m + 0.1 * shrink * g)
                v.copy_(0.999 * v + 0.001 * (shrink * g) ** 2)
                ratio = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
                w.sub_(rate * (ratio + (DECAY * w if decays(w) else 0.0)))
    moved = {name: w.detach() - start[name] for name, w in weights.items()}
    return SimpleNamespace(moved=moved, norms=norms, start=start)


@pytest.fixture(scope="module")
def by_hand():
    return train_by_hand()


def distance(moved, other):
    """Between two movements, relative to the second. The larger of that of the matrices and that of
    the vectors, whose few weights would not be seen beside the others."""
    found = []
    for ndim in (1, 2):
        names = [name for name, w in other.items() if w.ndim == ndim]
        a, b = (torch.cat([m[name].flatten() for name in names]) for m in (moved, other))
        found.append(((a - b).norm() / b.norm()).item())
    return max(found)


def moved_by(out, start):
    final = load_file(out / "final" / "model.safetensors")
    return {name: final[name] - weight for name, weight in start.items()}


def test_the_weights_of_a_run_are_those_of_adamw_by_hand(out, by_hand):
    """Scheduled rates, clipped gradients, and weight decay on matrices alone all arrive."""
    assert distance(moved_by(out, by_hand.start), by_hand.moved) < TOLERANCE


def test_a_cosine_and_no_clipping_arrive_too(go):
    """--max_grad_norm 0 leaves the gradient as it is."""
    rates = [PEAK * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    expected = train_by_hand(rates, max_norm=math.inf)
    out = go(schedule="cosine", warmup=0, max_grad_norm=0)
    assert distance(moved_by(out, expected.start), expected.moved) < TOLERANCE


def test_a_run_tells_the_rates_and_the_norms_before_clipping(out, by_hand):
    steps, _ = metrics(out)
    assert [row["learning_rate"] for row in steps] == pytest.approx(RATES)
    assert [row["grad_norm"] for row in steps] == pytest.approx(by_hand.norms, rel=TOLERANCE)
    assert max(by_hand.norms) > MAX_NORM > min(by_hand.norms)  # some steps are clipped, not all


@pytest.mark.parametrize(
    "wrong",
    [
        {"rates": [PEAK] * 4},
        {"rates": [0.0, *RATES[:-1]]},
        {"max_norm": math.inf},
        {"decays": lambda p: True},
        {"decays": lambda p: False},
    ],
    ids=["no schedule", "a step late", "no clipping", "decay on vectors", "no decay"],
)
def test_these_rows_and_options_tell_a_wrong_optimizer(by_hand, wrong):
    assert distance(train_by_hand(**wrong).moved, by_hand.moved) > 1e4 * TOLERANCE


def test_a_group_with_a_rate_of_its_own_keeps_the_same_decay():
    """--critic_learning_rate: by the names that PPO's module has."""
    module = nn.ModuleDict({name: nn.Linear(2, 3) for name in ("policy", "critic")})
    module["policy"].register_parameter("frozen", nn.Parameter(torch.ones(1), requires_grad=False))
    optimizer = make_optimizer(module, 0.5, 0.1, learning_rates={"critic.": 0.25})
    groups = optimizer.param_groups
    assert optimizer.defaults["fused"] is True
    found = {
        (group["lr"], group["initial_lr"], group["weight_decay"]): group["params"]
        for group in groups
    }
    policy, critic = module["policy"], module["critic"]
    expected = {
        (0.5, 0.5, 0.1): policy.weight,
        (0.5, 0.5, 0.0): policy.bias,
        (0.25, 0.25, 0.1): critic.weight,
        (0.25, 0.25, 0.0): critic.bias,
    }
    assert found.keys() == expected.keys() and len(groups) == 4
    assert all(len(params) == 1 and params[0] is expected[key] for key, params in found.items())
