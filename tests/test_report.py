"""What a person reads of a run, to the letter: settings, progress, the table."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from losses.dpo import DPOConfig
from runtime import report
from runtime.config import Run, TrainConfig

BEFORE = {
    "loss": 1.0,
    "accuracy": 0.5,
    "accuracy_norm": 0.51,
    "lm_eval/acc": 0.52,
    "lm_eval/acc_norm": 0.53,
    "rewards/margins": 0.25,
    "logps/chosen": -10.5,
    "logps/rejected": -20.25,
    "reward": 0.125,
    "success": 0.54,
    "kl": 0.0,
    "response_length": 12.5,
    "a name that the table has no row for": 3.0,
}
AFTER = {name: value + 0.125 for name, value in BEFORE.items()}
SUMMARY = {
    "before": BEFORE,
    "after": AFTER,
    "seconds": 12.34,
    "steps": 30,
    "rows_per_second": 45.678,
    "unit": "pairs",
    "data": "train: 48 rows of here",
    "versions": {"torch": "2.0", "transformers": "5.0"},
}
TABLE = """\
                                      before     after
held-out loss                         1.0000    1.1250
held-out accuracy                     50.0 %    62.5 %
held-out accuracy, per character      51.0 %    63.5 %
lm-eval piqa acc                      52.0 %    64.5 %
lm-eval piqa acc_norm                 53.0 %    65.5 %
reward margin                         0.2500    0.3750
log-prob of the chosen response     -10.5000  -10.3750
log-prob of the rejected response   -20.2500  -20.1250
reward of sampled answers             0.1250    0.2500
right answers among them              54.0 %    66.5 %
KL to the start, per answer           0.0000    0.1250
tokens per answer                    12.5000   12.6250
12.3 s, 30 steps, 45.7 pairs/s while training"""


def test_the_table_has_a_row_for_each_metric_that_was_measured():
    assert report.table(SUMMARY) == TABLE
    few = SUMMARY | {"before": {"loss": 1.0}, "unit": "rows"}
    lines = TABLE.splitlines()
    assert report.table(few).splitlines() == lines[:2] + [lines[-1].replace("pairs", "rows")]


def test_the_settings_name_the_rate_and_what_was_set_of_the_loss():
    config = TrainConfig(loss="dpo", learning_rate=1e-6, schedule="cosine")
    run = Run(config, DPOConfig(), {"batch_size": "command line"})
    assert report.settings(run, 1) == "learning rate 1e-06 cosine, 1 process"
    origin = {"label_smoothing": "command line", "beta": "default for pocket"}
    run = replace(run, loss=DPOConfig(beta=0.5, label_smoothing=0.25), origin=origin)
    said = "learning rate 1e-06 cosine, beta 0.5, label_smoothing 0.25, 2 processes"
    assert report.settings(run, 2) == said


@pytest.fixture
def started(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--loss", "dpo", "--data", "a file"])


def test_the_command_can_be_given_to_a_shell_again(started):
    assert report.command() == "python train.py --loss dpo --data 'a file'"


def test_the_command_has_no_password(monkeypatch):
    url = "https://user:hf_s3cret@huggingface.co/datasets/x"
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", url])
    assert report.command() == "python train.py --data 'https://***@huggingface.co/datasets/x'"


# ---------------------------------------------------------------- memory


def test_a_gpu_is_asked_for_its_own_peak(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: (device.index, 12345))
    assert report.peak_memory(torch.device("cuda", 1)) == (1, 12345)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_linux_says_what_this_process_held():
    found = report.peak_memory(torch.device("cpu"))
    (said,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found == pytest.approx(1024 * int(said), rel=0.1) and found % 1024 == 0


def test_the_peak_is_read_in_kilobytes(monkeypatch):
    status = "VmPeak:\t  99 kB\nVmHWM:\t  77 kB\nVmRSS:\t  55 kB\n"
    monkeypatch.setattr(Path, "exists", lambda path: True)
    texts = {Path("/proc/self/status"): status}
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: texts[path])
    assert report.peak_memory(torch.device("cpu")) == 77 * 1024


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
@pytest.mark.parametrize("platform, factor", [("darwin", 1), ("freebsd", 1024)])
def test_without_proc_the_peak_is_that_of_getrusage(monkeypatch, platform, factor):
    """In bytes on macOS, in kilobytes elsewhere."""
    import resource

    class Usage:
        ru_maxrss = 7

    asked = []
    monkeypatch.setattr(resource, "getrusage", lambda who: asked.append(who) or Usage)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr(sys, "platform", platform)
    assert report.peak_memory(torch.device("cpu")) == 7 * factor
    assert asked == [resource.RUSAGE_SELF]


# ---------------------------------------------------------------- progress


RECORD = {"loss": 0.5, "grad_norm": 9.0, "rewards/margins": 1 / 3, "eval/accuracy": 0.75}


def steps_shown(capsys, steps, **options):
    progress = report.Progress(steps, "dpo", **({"enabled": True} | options))
    for step in range(1, steps + 1):
        progress.show(step, {"loss": 1 / step})
    progress.close()
    out, err = capsys.readouterr()
    assert err == ""
    return [int(line.split()[1].split("/")[0]) for line in out.splitlines()]


def test_without_a_terminal_there_is_a_line_now_and_then(capsys):
    assert steps_shown(capsys, 40) == [1, *range(4, 41, 4)]
    assert steps_shown(capsys, 25) == [1, *range(2, 25, 2), 25]
    assert steps_shown(capsys, 5) == [1, 2, 3, 4, 5]
    assert steps_shown(capsys, 40, enabled=False) == []


def test_a_line_has_the_numbers_worth_watching(capsys):
    report.Progress(40, "dpo", enabled=True).show(40, RECORD)
    out = "step 40/40  loss 0.5000  rewards/margins 0.3333  eval/accuracy 0.7500\n"
    assert capsys.readouterr().out == out


class Bar:
    """What Progress uses of tqdm."""

    def __init__(self, **options):
        self.seen = [options]

    def set_postfix(self, shown, refresh):
        self.seen.append((shown, refresh))

    def update(self):
        self.seen.append("update")

    def close(self):
        self.seen.append("close")


@pytest.mark.parametrize("enabled, tty", [(True, True), (True, False), (False, True)])
def test_a_terminal_has_a_bar(monkeypatch, capsys, enabled, tty):
    monkeypatch.setattr(report, "tqdm", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
    progress = report.Progress(40, "dpo", enabled=enabled)
    progress.show(2, RECORD)
    progress.close()
    assert capsys.readouterr().out == ""
    if not (enabled and tty):
        assert progress.bar is None
        return
    assert progress.bar.seen == [
        {"total": 40, "desc": "dpo", "dynamic_ncols": True},
        ({"loss": "0.5000", "rewards/margins": "0.3333", "eval/accuracy": "0.7500"}, False),
        *("update", "close"),
    ]


def test_versions_are_those_of_what_is_installed():
    versions = report.versions()
    assert list(versions) == ["torch", "transformers", "accelerate", "datasets"]
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
