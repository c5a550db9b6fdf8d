"""examples/: each does what its first lines say."""

import ast
import contextlib
import io
import json
import math
import re
import runpy
import sys

import pytest
import torch
from ppo_runs import QUICK, few_samples
from runs import ROOT, run
from tolerances import assert_close

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NAMES = [path.stem for path in EXAMPLES]


def start(name):
    """`python -m examples.NAME`: its globals."""
    return runpy.run_module(f"examples.{name}", run_name="__main__")


def test_each_says_how_it_is_run_and_stands_in_the_readme():
    assert NAMES == ["dpo_in_40_lines", "my_reward", "verify_my_loss"]
    readme = (ROOT / "README.md").read_text("utf-8")
    for path in EXAMPLES:
        text = path.read_text("utf-8")
        doc = ast.get_docstring(ast.parse(text))
        assert f"python -m examples.{path.stem}\n" in doc or f"--reward {path.stem}:" in doc
        assert f"(examples/{path.name})" in readme


# ------------------------------------------------------------------------------ dpo_in_40_lines


@pytest.fixture(scope="module")
def loop():
    """Its globals when it is done, and what it printed under "printed"."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        return start("dpo_in_40_lines") | {"printed": out.getvalue()}


def test_dpo_starts_at_ln_2_and_falls(loop):
    printed = re.findall(r"^step +(\d+)  loss (\d\.\d{4})$", loop["printed"], re.M)
    assert [int(step) for step, _ in printed] == list(range(loop["STEPS"]))
    losses = [float(loss) for _, loss in printed]
    assert printed[0][1] == f"{math.log(2):.4f}"
    assert losses == sorted(set(losses), reverse=True) and losses[-1] < math.log(2) / 10


def test_its_log_probs_are_those_of_the_whole_text(loop):
    """Prompt and response tokenized as one, and the log-softmax of the model's own logits."""
    policy, tokenizer = loop["policy"].double(), loop["tokenizer"]
    for prompt, *responses in loop["PAIRS"]:
        for response in responses:
            ids = tokenizer(prompt + response + tokenizer.eos_token, return_tensors="pt").input_ids
            logps = policy(ids).logits[0, :-1].log_softmax(-1)
            logps = logps.gather(1, ids[0, 1:, None])[:, 0]
            start = len(tokenizer(prompt).input_ids) - 1
            expected = logps[start:].sum()
            actual = loop["response_logp"](prompt, response)
            assert_close(actual, expected.detach(), scale=logps[start:].abs().sum().detach())


def test_it_is_40_lines_on_losses_torch_and_transformers():
    text = (ROOT / "examples" / "dpo_in_40_lines.py").read_text("utf-8")
    tree = ast.parse(text)
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert modules - sys.stdlib_module_names == {"losses", "torch", "transformers"}
    prose = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = [line.strip() for line in text.splitlines()]
    code = [x for n, x in enumerate(lines, 1) if x and x[0] != "#" and n not in prose]
    assert len(code) <= 40


# ------------------------------------------------------------------------------ my_reward


def test_a_reward_of_ones_own(tmp_path):
    """From examples/, as its first lines say: a sample has the score that the function gives."""
    flags = ("--loss", "ppo", "--reward", "my_reward:brevity", "--output_dir", tmp_path / "run")
    done = run(*flags, *QUICK, cwd=ROOT / "examples", before=few_samples)
    assert done.code == 0 and done.err == "", done.err
    assert "reward my_reward:brevity" in done.out
    brevity = runpy.run_path(str(ROOT / "examples" / "my_reward.py"))["brevity"]
    samples = (tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()
    scores = set()
    for sample in map(json.loads, samples):
        assert sample["score"] == brevity([sample["prompt"]], [sample["response"]])[0]
        scores.add(sample["score"])
    assert len(scores) > 1


def test_brevity_counts_words_above_four():
    brevity = runpy.run_path(str(ROOT / "examples" / "my_reward.py"))["brevity"]
    responses = ["", " Use a brick.", " a b c d", " a b c d e", "a b c d\ne f g h"]
    assert brevity(["?"] * 5, responses) == [0, 0, 0, -0.25, -1]


def test_field_40_a_gold_answer_as_the_page_on_ppo_has_it(tmp_path):
    """Its file and its function, by its command: a sample's score is whether it is the answer."""
    page = (ROOT / "docs" / "ppo.md").read_text("utf-8")
    (rows,) = re.findall(r"^```json\n(.*?)^```$", page, re.M | re.S)
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert "`train.py --loss ppo --prompts sums.jsonl --reward gold:exact`" in page
    (tmp_path / "sums.jsonl").write_text(rows, "utf-8")
    (tmp_path / "gold.py").write_text(code, "utf-8")
    flags = ("--loss", "ppo", "--prompts", "sums.jsonl", "--reward", "gold:exact")
    done = run(*flags, *QUICK, "--output_dir", "run", cwd=tmp_path, before=few_samples)
    assert done.code == 0 and done.err == "", done.err
    gold = {row["prompt"]: row["answer"] for row in map(json.loads, rows.splitlines())}
    exact = runpy.run_path(str(tmp_path / "gold.py"))["exact"]
    samples = (tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()
    for sample in map(json.loads, samples):
        answer = gold[sample["prompt"]]
        assert sample["score"] == float(sample["response"].strip() == answer)
        assert exact([sample["prompt"]], [f" {answer}\n"], answer=[answer], other=[1]) == [1]


# ------------------------------------------------------------------------------ verify_my_loss


@pytest.fixture(scope="module")
def verifier():
    return runpy.run_module("examples.verify_my_loss", run_name="verify_my_loss")


def test_verify_tells_the_right_loss_from_the_nearly_right(capsys):
    with pytest.raises(SystemExit) as end:
        start("verify_my_loss")
    assert end.value.code == 0
    out = capsys.readouterr().out
    counts = re.findall(r"^(\w+): (\d+) of (\d+) passed$", out, re.M)
    (nearly, some, all_of), (right, *both) = counts
    assert (nearly, right) == ("cross_entropy_dpo_loss", "my_dpo_loss")
    assert int(some) < int(all_of) and both == [all_of, all_of]
    # what its docstring says: the value is right, the gradient of a confident model is gone
    wrong = re.findall(r"^  (dpo/\S+) in (\w+): (.*)$", out, re.M)
    assert wrong and all(message.startswith("gradient of ") for *_, message in wrong)
    assert len(wrong) == int(all_of) - int(some)


def test_verify_fails_a_wrong_loss_and_one_that_judges_nothing(verifier, capsys):
    def twice_beta(beta=0.1, **options):
        return verifier["my_dpo_loss"](**options, beta=2 * beta)

    def nothing(**options):
        raise NotImplementedError("nothing yet")

    assert verifier["verify"](verifier["my_dpo_loss"])
    assert not verifier["verify"](twice_beta)
    assert not verifier["verify"](nothing)
    assert "nothing: 0 of " in capsys.readouterr().out


def test_both_of_its_losses_are_equal_where_nothing_is_lost(verifier):
    x = torch.tensor([-10.0, -12.0, -30.0], dtype=torch.float64)
    arguments = (x, x - 1, x + 2, x)
    names = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps")
    inputs = dict(zip((*names, "ref_rejected_logps"), arguments, strict=True))
    one, other = (verifier[n](**inputs) for n in ("my_dpo_loss", "cross_entropy_dpo_loss"))
    assert_close(one, other)
