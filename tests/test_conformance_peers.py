"""Peers' adapters and results, as far as they can be checked where no peer is installed."""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.conformance import load, peer_code, peers_table

ROOT = Path(peers_table.__file__).parent
PEERS = sorted(p.stem for p in (ROOT / "implementations").glob("*_[0-9]*.py"))
REPORTS = {report["implementation"]: report for report in peers_table.reports()}
PAGE = (ROOT / "PEERS.md").read_text("utf-8")
README = (ROOT.parents[1] / "README.md").read_text("utf-8")


def test_every_peer_has_results_and_a_line_in_the_script():
    script = (ROOT / "peers.sh").read_text("utf-8")
    (listed,) = re.findall(r"^all=\((.*)\)$", script, re.M)
    assert sorted(listed.split()) == PEERS == sorted(REPORTS)
    for peer in PEERS:
        assert re.search(rf"^    {peer}\)", script, re.M), peer


def test_the_page_has_the_tables_of_the_results():
    reports = list(REPORTS.values())
    assert "\n".join(peers_table.by_family(reports)) in PAGE
    assert "\n".join(peers_table.by_family(reports)) in README
    assert "\n".join(peers_table.in_all(reports)) in PAGE


@pytest.mark.parametrize("peer", PEERS)
def test_results_are_of_the_pinned_version_and_of_these_vectors(peer):
    report = REPORTS[peer]
    source = (ROOT / "implementations" / f"{peer}.py").read_text("utf-8")
    (package, version) = re.search(r'versions\(\s*"(\w+)==([\d.]+)"', source).groups()
    assert report["versions"][package] == version
    asked = {row["family"] for row in report["families"]}
    assert report["vectors"]["sha256"] == load.fingerprint(asked), "run peers.sh again"
    cases = {case.id: case for case in load.load()}
    for row in report["families"]:
        assert row["passed"] + row["failed"] + row["skipped"] == row["cases"]
    assert {entry["id"] for entry in report["not_passed"]} <= set(cases)


@pytest.mark.parametrize("peer", PEERS)
def test_every_difference_is_named_on_the_page(peer):
    """By convention, or by its id (or family/*) in a paragraph that names the peer."""
    name = peers_table.title(REPORTS[peer]).replace("_", "-").split()[0].lower()
    about = [part for part in PAGE.lower().split("\n\n") if name in part.replace("\n", " ")]
    patterns = {p for part in about for p in re.findall(r"`([a-z]+/[^`]+|-\d+)`", part)}
    patterns |= {f"orpo/certain-*{p}" for p in patterns if p.startswith("-")}
    for entry in REPORTS[peer]["not_passed"]:
        if entry["status"] == "failed" and not entry["convention"]:
            assert any(fnmatch(entry["id"], p) for p in patterns), (peer, entry["id"])


@pytest.mark.parametrize("peer", PEERS)
def test_an_adapter_imports_its_peer_late(peer):
    tree = ast.parse((ROOT / "implementations" / f"{peer}.py").read_text("utf-8"))
    outside = {alias.name for n in tree.body if isinstance(n, ast.Import) for alias in n.names}
    outside |= {str(n.module) for n in tree.body if isinstance(n, ast.ImportFrom) and not n.level}
    roots = {name.partition(".")[0] for name in outside}
    assert roots <= {*sys.stdlib_module_names, "numpy"}


def test_without_the_peer_the_runner_says_so_in_one_line():
    command = [sys.executable, "-m", "benchmarks.conformance", "--implementation", "verl_0_9_1"]
    done = subprocess.run(command, cwd=ROOT.parents[1], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("verl_0_9_1 needs what is not installed here")
    assert done.stderr.count("\n") == 1


def test_another_version_than_the_pinned_is_refused():
    with pytest.raises(ImportError, match="torch==0.1, and .* is"):
        peer_code.versions("torch==0.1")
    here = torch.__version__.partition("+")[0]
    assert peer_code.versions(f"torch=={here}", "numpy").keys() == {"torch", "numpy"}


SOURCE = """
class Trainer:
    def step(self, x):
        for t in range(2):
            y = x * self.beta
            z = y + t
        return z

    def loss(self, a):
        return self.scale * twice(a)

def twice(a):
    return 2 * a
"""


def test_statements_are_cut_from_the_middle_of_a_method(tmp_path):
    file = tmp_path / "trainer.py"
    file.write_text(SOURCE)
    given = {"x": 3, "t": 10, "self": SimpleNamespace(beta=5)}
    assert peer_code.run_block(file, "y = ", "z = ", given)["z"] == 25
    assert "y" not in given
    for first, last in (("y = ", "w = "), ("w = ", "z = "), ("z = ", "y = ")):
        with pytest.raises(LookupError, match="no block"):
            peer_code.run_block(file, first, last, given)


def test_functions_are_cut_without_importing_their_module(tmp_path):
    file = tmp_path / "losses.py"
    file.write_text("import package_that_is_not_there\n" + SOURCE)
    code = peer_code.functions(file, ["twice", "loss"], {})
    assert code.twice(4) == 8
    assert code.loss(SimpleNamespace(scale=3), 4) == 24
    with pytest.raises(LookupError, match="thrice"):
        peer_code.functions(file, ["twice", "thrice"], {})


def test_tokens_are_asked_one_at_a_time_and_only_where_the_mask_is():
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, float("nan")]], requires_grad=True)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    asked = []

    def mean(token):
        asked.append(token.shape)
        return (2 * token).mean()

    out = peer_code.tokens(mean, x, only=mask)
    assert out.tolist() == [[2, 0, 6], [8, 10, 0]] and asked == [(1, 1)] * 4
    out.sum().backward()
    assert x.grad.tolist() == [[2, 0, 2], [2, 2, 0]]
    none = peer_code.tokens(mean, x, only=mask & False)
    none.sum().backward()  # zeros are an answer too: a gradient reaches what is not asked
    assert none.tolist() == [[0] * 3] * 2
    with pytest.raises(NotImplementedError):
        peer_code.right_padded(torch.tensor([[True, False, True]]))
    assert peer_code.right_padded(torch.tensor([[True, False], [False, False]])).tolist() == [1, 0]
