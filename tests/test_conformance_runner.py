"""The runner: it fails what is wrong, skips what is not there, and says which and why."""

import hashlib
import json
import math
import resource
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import ROOT
from torch.nn.functional import logsigmoid

import losses
from benchmarks.conformance.__main__ import main
from benchmarks.conformance.implementations import numpy_four, ours
from benchmarks.conformance.load import VECTORS, functions, load
from benchmarks.conformance.runner import run


def judged(family, **functions):
    """Results by id, of the short cases in float64."""
    results = run(SimpleNamespace(**functions), load([family], long=False), ["float64"])
    return {r.case.id: r for r in results}


def failed(results):
    return {id.split("/")[1] for id, r in results.items() if r.status == "failed"}


# --------------------------------------------------------------------- it fails what is wrong


def odds_loss(log1mexp):
    def orpo_loss(chosen_mean_logps, rejected_mean_logps, *, lam=0.1):
        w, lose = (a - log1mexp(a) for a in (chosen_mean_logps, rejected_mean_logps))
        return -chosen_mean_logps - lam * logsigmoid(w - lose)

    return orpo_loss


def test_a_branch_that_is_not_taken_sends_nan_back():
    def log1mexp(a):
        return torch.where(a > -math.log(2), (-torch.expm1(a)).log(), torch.log1p(-a.exp()))

    found = judged("orpo", orpo_loss=odds_loss(log1mexp))
    assert {"certain-chosen-60", "certain-rejected-60"} <= failed(found)
    worst = found["orpo/certain-chosen-60"]
    assert math.isnan(worst.gradient) and "nan, expected" in worst.message and worst.value < 1


def test_digits_lost_near_certainty():
    found = judged("orpo", orpo_loss=odds_loss(lambda a: torch.log(1 - a.exp())))
    assert {"certain-chosen-20", "certain-rejected-30", "extremes"} <= failed(found)


def test_digits_lost_by_a_difference_of_squares():
    def masked_whiten(x, mask, *, shift_mean=True):
        n, x = mask.sum().clamp(min=1), torch.where(mask, x, 0.0)
        mean = x.sum() / n
        scaled = (x - mean) * torch.rsqrt((x**2).sum() / n - mean**2 + 1e-8)
        return torch.where(mask, scaled if shift_mean else scaled + mean, 0.0)

    found = failed(judged("whiten", masked_whiten=masked_whiten))
    assert "offset" in found and "ordinary" not in found


def test_digits_lost_by_k3_as_it_is_written():
    def kl_estimate(logps, ref_logps, *, kind="k1"):
        d = logps - ref_logps
        return {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}[kind]

    assert failed(judged("kl", kl_estimate=kl_estimate)) == {"k3-near"}


def test_a_mean_of_micro_batch_means():
    def reduce(losses, mask, *, micro_batches, unit="token"):
        if unit == "row":
            raise NotImplementedError("rows")
        parts = zip(losses.split(micro_batches), mask.split(micro_batches), strict=True)
        means = [torch.where(m, x, 0.0).sum() / m.sum().clamp(min=1) for x, m in parts]
        return torch.stack(means).mean()

    found = judged("reduce", reduce=reduce)
    assert "mean-of-means" in failed(found) and "one-batch" not in failed(found)
    assert found["reduce/rows"].status == "skipped" and found["reduce/rows"].message == "rows"


@pytest.mark.parametrize(
    "sft_loss, message",
    [
        (lambda logps, mask: -logps * mask, "nan, expected 0"),
        (lambda logps, mask: losses.sft_loss(logps, mask).sum(), "has shape (), expected (3, 4)"),
        (lambda logps, mask: torch.where(mask, -logps.detach(), 0.0), "no gradient reaches logps"),
        (lambda logps: -logps, "TypeError: "),
        (lambda logps, mask: (logps, mask), "returned 2 results, expected loss"),
        (lambda logps, mask: losses.sft_loss(logps, mask.logical_not_()), "changed its argument"),
        (lambda logps, mask: sys.exit(0), "SystemExit: 0"),
    ],
)
def test_wrong_answers(sft_loss, message):
    found = judged("sft", sft_loss=sft_loss)
    assert any(message in r.message for r in found.values() if r.status == "failed")


def test_a_few_epsilons_too_many():
    found = judged("sft", sft_loss=lambda logps, mask: losses.sft_loss(logps, mask) * (1 + 2e-15))
    off = found["sft/ordinary"]
    assert off.status == "failed" and 8 < off.value < 10 and off.bound == 4
    # told apart, though they agree in what one would print
    shown = off.message.removeprefix("loss[0, 0] is ").split(", expected ")
    assert shown[0] != shown[1] and len(shown[0]) > 14


def test_an_input_that_is_constant_in_training_needs_no_gradient():
    def constant(factor):
        """DPO with a detached reference, and `factor` times it for a gradient that is wrong."""

        def dpo_loss(ref_chosen_logps, ref_rejected_logps, **rest):
            held = ref_chosen_logps.detach(), ref_rejected_logps.detach()
            loss = losses.dpo_loss(ref_chosen_logps=held[0], ref_rejected_logps=held[1], **rest)
            return loss if factor is None else loss + factor * ref_chosen_logps

        return dpo_loss

    found = judged("dpo", dpo_loss=constant(None))
    assert not failed(found) and all(r.gradient is not None for r in found.values())
    assert len(failed(judged("dpo", dpo_loss=constant(0.0)))) == len(found)


def test_values_alone_where_there_is_no_gradient():
    cases = load(["gae"])[:3]
    cut = SimpleNamespace(gae=lambda **x: tuple(out.detach() for out in losses.gae(**x)))
    assert all(r.status == "passed" and r.gradient is None for r in run(cut, cases))
    assert all(r.gradient is not None for r in run(ours, cases))


def test_a_convention_is_named_and_still_a_difference():
    wrong = {"sft_loss": lambda logps, mask: torch.where(mask, logps, 0.0)}
    found = judged("sft", **wrong, CONVENTIONS={"sft": "log-likelihood, not its negative"})
    assert found["sft/ragged"].status == "failed"
    assert found["sft/ragged"].convention == "log-likelihood, not its negative"
    assert found["sft/all-masked"].convention == ""  # nothing differs there


def test_what_is_not_there_is_skipped():
    assert {r.status for r in judged("orpo", sft_loss=losses.sft_loss).values()} == {"skipped"}


# -------------------------------------------------------------------------------- in NumPy


def test_numpy_gradients_are_judged():
    def wrong(cotangent, logps, mask):
        return {"logps": np.where(mask, cotangent, 0)}

    right = judged("sft", ARRAYS="numpy", sft_loss=numpy_four.sft_loss)
    assert not failed(right) and all(r.gradient is None for r in right.values())
    found = judged("sft", ARRAYS="numpy", sft_loss=numpy_four.sft_loss, sft_loss_grad=wrong)
    assert "ordinary" in failed(found)


def test_the_example_runs_without_torch_and_mpmath():
    code = (
        "import sys; sys.modules.update(torch=None, mpmath=None)\n"
        "from benchmarks.conformance.__main__ import main\n"
        f"sys.exit(main(['--implementation', {numpy_four.__file__!r}]))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "bfloat16" not in shown and "skipped: orpo, 50 times: has no orpo_loss" in shown
    # the processor's seconds: the wall's depend on who else is on the machine
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 10


# -------------------------------------------------------------------------- the command line


def test_the_command(tmp_path, capsys):
    output = tmp_path / "ours.json"
    assert main(["--implementation", "ours", "--family", "sft", "kl", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "sft           15/15       0      0 " in shown and "orpo" not in shown
    assert max(map(len, shown.splitlines())) <= 100
    report = json.loads(output.read_text("utf-8"))
    assert report["implementation"] == "ours" and "torch" in report["versions"]
    assert report["failed"] == report["skipped"] == 0 and report["not_passed"] == []
    assert {row["family"] for row in report["families"]} == {"sft", "kl"}
    of_both = b"".join((VECTORS / f"{name}.json").read_bytes() for name in ("sft", "kl"))
    assert report["vectors"]["sha256"] == hashlib.sha256(of_both).hexdigest()


def test_a_wrong_file(tmp_path, capsys):
    file, output = tmp_path / "mine.py", tmp_path / "mine.json"
    file.write_text("def sft_loss(logps, mask):\n    return logps\n")
    command = ["--implementation", str(file), "--family", "sft", "reward", "--output", str(output)]
    assert main(command) == 1
    shown = capsys.readouterr().out
    assert "first sft/ordinary in float64" in shown
    assert "skipped: reward, 48 times: has no reward_loss" in shown
    report = json.loads(output.read_text("utf-8"))
    assert report["failed"] > 0 and report["not_passed"][0]["id"] == "sft/ordinary"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trl_9"], "trl_9 is no implementation; take a Python file or one of "),
        (["nowhere/mine.py"], "nowhere/mine.py: no such file"),
        (["ours", "--family", "ppo"], "no family ppo; take some of sft, reward"),
        (["EMPTY"], "has none of sft_loss"),
        (["BROKEN"], "SyntaxError"),
        (["MISSING"], "needs what is not installed here: No module named 'nobody_has_this'"),
        (["CUPY"], 'ARRAYS = \'cupy\' must be "torch" or "numpy"'),
        (["LISTED"], "CONVENTIONS = ['sft'] must be a dict of strings"),
        (["NUMBERED"], "VERSIONS = {'mine': 1} must be a dict of strings"),
        (["EXITS"], "exits.py: calls sys.exit(0) when it is imported"),
        (["LATER"], "later: nothing was judged: each of the CASES cases was skipped"),
        (["SFT", "--family", "dpo"], "sft: nothing was judged: each of the "),
        (
            ["numpy_four", "--dtype", "bfloat16"],
            "numpy_four: nothing was judged: no case is asked in bfloat16",
        ),
        (
            ["ours", "--family", "sft", "--output", "/nowhere/x.json"],
            "cannot write /nowhere/x.json",
        ),
    ],
)
def test_what_cannot_be_run(arguments, message, tmp_path, capsys):
    files = {
        "EMPTY": "",
        "BROKEN": "def",
        "MISSING": "import nobody_has_this",
        "CUPY": "ARRAYS = 'cupy'\ndef sft_loss(logps, mask): pass",
        "LISTED": "CONVENTIONS = ['sft']\ndef sft_loss(logps, mask): pass",
        "NUMBERED": "VERSIONS = {'mine': 1}\ndef sft_loss(logps, mask): pass",
        "EXITS": "def sft_loss(logps, mask): pass\nimport sys; sys.exit(0)",
        "LATER": "def sft_loss(logps, mask): raise NotImplementedError('later')",
        "SFT": "def sft_loss(logps, mask): pass",
    }
    first, *rest = arguments
    if first in files:
        first = str(tmp_path / f"{first.lower()}.py")
        (tmp_path / first).write_text(files[arguments[0]])
    assert main(["--implementation", first, *rest]) == 2
    error = capsys.readouterr().err
    message = message.replace("CASES", str(len(load())))
    assert message in error and error.count("\n") == 1


def test_a_file_with_a_dataclass_and_a_neighbour_shadows_nothing(tmp_path, monkeypatch):
    (tmp_path / "neighbour_of_losses.py").write_text("SIGN = -1\n")
    (tmp_path / "losses.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import torch\n"
        "from neighbour_of_losses import SIGN\n"
        "@dataclass\n"
        "class Term:\n"
        "    sign: int = SIGN\n"
        "def sft_loss(logps, mask):\n"
        "    return torch.where(mask, Term().sign * logps, 0)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert main(["--implementation", "losses.py", "--family", "sft"]) == 0
    assert sys.modules["losses"] is losses and sys.path[-1] == str(tmp_path)


def test_every_function_is_asked_for_once():
    asked = functions()
    assert {case.function for case in load()} == set(asked) and len(set(asked)) == len(asked)
