"""Is my own loss right? Hold it against the conformance vectors, from a few lines of Python.

    python -m examples.verify_my_loss

Both functions below are DPO, -log σ(βh), and on paper they are equal. Only one is right to the last
digits: the other computes σ(βh) - 1 as a difference in its gradient, and where the model is
confident nothing of it is left. `python -m benchmarks.conformance --implementation FILE.py` prints
a table for a file with such functions; benchmarks/conformance/README.md has their signatures.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.conformance.load import load
from benchmarks.conformance.runner import run


def my_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    variant: str = "sigmoid",
) -> Tensor:
    """-log σ(βh) = log(e^0 + e^(-βh)), with h = (log-ratio of chosen) - (log-ratio of rejected)."""
    if variant != "sigmoid" or label_smoothing:
        raise NotImplementedError("only plain DPO")  # such cases are skipped, not passed
    h = (policy_chosen_logps - ref_chosen_logps) - (policy_rejected_logps - ref_rejected_logps)
    return torch.logaddexp(torch.zeros_like(h), -beta * h)


def cross_entropy_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    variant: str = "sigmoid",
) -> Tensor:
    """The binary cross-entropy of the logit βh with the label 1: "chosen is the better one"."""
    if variant != "sigmoid" or label_smoothing:
        raise NotImplementedError("only plain DPO")
    h = (policy_chosen_logps - ref_chosen_logps) - (policy_rejected_logps - ref_rejected_logps)
    return binary_cross_entropy_with_logits(beta * h, torch.ones_like(h), reduction="none")


def verify(dpo_loss: Callable[..., Tensor]) -> bool:
    """Print how many cases pass, and each one that does not: where, by how much, what it is for."""
    results = run(SimpleNamespace(dpo_loss=dpo_loss), load(["dpo"]))
    failed = [result for result in results if result.status == "failed"]
    passed = sum(result.status == "passed" for result in results)
    print(f"{dpo_loss.__name__}: {passed} of {len(results)} passed")
    for result in failed:
        print(f"  {result.case.id} in {result.dtype}: {result.message}")
        print(f"    the case: {result.case.story}")
    return bool(passed) and not failed


if __name__ == "__main__":
    verify(cross_entropy_dpo_loss)
    sys.exit(0 if verify(my_dpo_loss) else 1)
