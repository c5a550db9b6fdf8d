"""train(): what it asks of plan, models, feed, optimizer, directory and trackers, in which order.

All of these are stand-ins that write down what they were asked; a clock moves only where they say.
"""

from types import SimpleNamespace

import pytest
import torch

import train
from losses import LOSSES
from runtime.config import Run, TrainConfig
from runtime.sources.base import Evaluation
from runtime.state import TrainState

RUN_FILES = "final/ (the model), metrics.jsonl, summary.json, curves.png"


class Ranks:
    """What train() uses of an Accelerator, as the first of two ranks that have the same numbers."""

    device, num_processes, is_main_process = torch.device("cpu"), 2, True

    def __init__(self, seen):
        self.seen = seen

    def print(self, *lines, sep=" "):
        self.seen.append(("print", sep.join(lines)))

    def prepare(self, module, optimizer):
        return ("prepared", module), optimizer

    def log(self, values, step):
        self.seen.append(("log", dict(values), step))

    def reduce(self, tensor, how):
        assert how == "sum" and tensor.device == self.device
        return 2 * tensor

    def wait_for_everyone(self):
        self.seen.append("wait")

    def end_training(self):
        self.seen.append("end_training")


class Stage:
    """A run whose plan has 5 steps of 4 rows; how many of them the feed has is for the test."""

    def __init__(self, monkeypatch, steps, *, loss="sft", **flags):
        self.seen, self.now, self.fed, self.monkeypatch = [], 1000.0, steps, monkeypatch
        config = TrainConfig(
            **{"loss": loss, "batch_size": 4, "learning_rate": 0.5, "warmup": 0} | flags
        )
        self.run = Run(config, LOSSES[loss].config(), {"beta": "command line"})
        self.accelerator, self.optimizer = Ranks(self.seen), SimpleNamespace()
        self.optimizer.param_groups = [{"initial_lr": 0.5}, {"initial_lr": 0.25}]
        replaced = {
            "set_seed": lambda seed: self.note("seed", seed),
            "plan_rows": lambda *given: self.plan("rows", *given),
            "plan_prompts": lambda *given: self.plan("prompts", *given),
            "settings": lambda run, n: f"{n} processes of {run.train.loss}",
            "make_optimizer": self.make_optimizer,
            "check_start": lambda *given: self.note("check_start", *given),
            "check_finite": lambda *given: self.note("check_finite", *given),
            "start_trackers": lambda *given: self.note("trackers", *given),
            "Progress": self.progress,
            "optimizer_step": self.optimizer_step,
            "update": self.update,
            "versions": lambda: {"torch": "2"},
            "command": lambda: "python train.py",
            "peak_memory": lambda device: {"cpu": 77}[device.type],
            "model_card": lambda *given: ("card", *given),
            "table": lambda summary: f"table of {summary['steps']} steps",
            "time": SimpleNamespace(perf_counter=lambda: self.now),
        }
        for name, stand_in in replaced.items():
            monkeypatch.setattr(train, name, stand_in)
        self.directory = SimpleNamespace(
            path="the/path",
            begin=lambda config: self.note("begin", config),
            log=lambda record: self.note("line", dict(record)),
            log_samples=lambda step, samples: self.note("samples", step, samples),
            finish=self.finish,
        )

    def note(self, *what):
        self.seen.append(what)

    def go(self):
        train.train(self.run, self.accelerator, self.directory)
        return self.seen

    # --- plan, models, feed

    def plan(self, kind, run, loss, accelerator):
        assert (run, loss) == (self.run, LOSSES[self.run.train.loss])
        assert accelerator is self.accelerator
        self.note("plan", kind)
        self.now += 1
        return SimpleNamespace(
            summary=["one line", "another"],
            preview=lambda: "two examples",
            initial_rollout_state=lambda: "rollout state",
            load=self.load,
            steps=5,
            data="48 rows",
            tokenizer="tokenizer",
        )

    def load(self):
        self.seen.append("load")
        self.now += 10
        return SimpleNamespace(
            trained="module",
            saved="saved part",
            layout="tree",
            description="a small model",
            learning_rates={"critic.": 0.25},
            feed=self.feed,
        )

    def make_optimizer(self, module, rate, decay, *, learning_rates):
        self.note("optimizer", module, rate, decay, learning_rates)
        return self.optimizer

    def feed(self, trained, state, directory):
        self.note("feed", trained, directory, state.rollout)
        self.state = state
        return SimpleNamespace(
            evaluate=self.evaluate,
            steps=self.steps,
            after_step=lambda metrics: {"of the rollout": metrics["loss"] + 0.5},
            epoch=lambda step: step / 4,
        )

    def evaluate(self):
        self.now += 100
        step = self.state.step
        return Evaluation({"loss": 10.0 - step}, [{"sample after": step}])

    def steps(self, start):
        assert start == 0
        batch, dummy = (SimpleNamespace(num_tokens=n, dummy=d) for n, d in ((7, False), (9, True)))
        for _ in range(self.fed):
            self.now += 2
            yield [batch, batch, dummy]

    def optimizer_step(self, accelerator, trained, loss, config, batches):
        assert accelerator is self.accelerator and len(batches) == 3
        assert trained == ("prepared", "module")
        assert (loss, config) == (LOSSES[self.run.train.loss], self.run.loss)
        self.now += 3
        return {"tokens": 28}, {"loss": 1 / self.state.step}

    def update(self, accelerator, trained, optimizer, loss, state, config):
        assert (accelerator, trained) == (self.accelerator, ("prepared", "module"))
        assert (optimizer, state, config) == (self.optimizer, self.state, self.run.train)
        self.note("update", loss, [group["lr"] for group in optimizer.param_groups])
        return 0.125

    # --- what is left behind

    def progress(self, steps, loss, *, enabled):
        self.note("progress", steps, loss, enabled)
        return SimpleNamespace(
            show=lambda step, record: self.note("show", step, dict(record)),
            close=lambda: self.note("close"),
        )

    def finish(self, summary, saved, tokenizer, *, card, draw):
        assert draw is train.draw_curves
        self.note("finish", dict(summary), saved, tokenizer, card)


def line(step, seconds):
    """Rates fall from the peak in fifths."""
    return {
        "step": step,
        "epoch": step / 4,
        "loss": 1 / step,
        "of the rollout": 1 / step + 0.5,
        "grad_norm": 0.125,
        "learning_rate": 0.5 * (6 - step) / 5,
        "tokens": 28,
        "seconds": seconds,
    }


def test_a_whole_run_in_order(monkeypatch):
    """Five steps, evaluated after the second, the fourth and the last."""
    stage = Stage(monkeypatch, 5, seed=3, eval_every=2, weight_decay=0.1, max_steps=5)
    seen, run, accelerator = stage.go(), stage.run, stage.accelerator
    expected = [
        ("seed", 3),
        ("plan", "rows"),
        ("print", "one line\nanother\n2 processes of sft"),
        "load",
        ("print", "model: a small model"),
        ("optimizer", "module", 0.5, 0.1, {"critic.": 0.25}),
        ("feed", ("prepared", "module"), "the/path", "rollout state"),
        ("check_start", {"loss": 10.0}, {}, run.train),
        ("begin", begun(run)),
        ("trackers", accelerator, run.train),
        ("line", {"step": 0, "eval/loss": 10.0}),
        ("samples", 0, [{"sample after": 0}]),
        ("progress", 5, "sft", True),
    ]
    seconds = 1 + 10 + 100
    for step in range(1, 6):
        seconds += 5  # two for the batches, three for the gradient
        record = line(step, seconds)
        rates = [peak * (6 - step) / 5 for peak in (0.5, 0.25)]
        expected += [
            ("update", 1 / step, pytest.approx(rates)),
            ("line", pytest.approx(dict(record))),
        ]
        expected += [("log", pytest.approx(dict(record)), step)]
        if step in (2, 4, 5):
            seconds += 100
            found = {"eval/loss": 10.0 - step}
            expected += [("line", {"step": step} | found)]
            expected += [("samples", step, [{"sample after": step}]), ("log", found, step)]
            record |= found
        expected += [("show", step, pytest.approx(dict(record)))]
    summary = {
        "loss": "sft",
        "model": "pocket",
        "before": {"loss": 10.0},
        "after": {"loss": 5.0},
        "steps": 5,
        "rows": 20,
        "unit": "rows",
        "tokens": 2 * 5 * 14,
        "rows_per_second": 20 / 25,
        "peak_memory_bytes": 77,
        "data": "48 rows",
        "versions": {"torch": "2"},
        "seconds": seconds,
    }
    expected += [
        ("close",),
        ("check_finite", {"loss": 5.0}, "after step 5; try a lower --learning_rate"),
        "wait",
        ("finish", summary, "saved part", "tokenizer", ("card", "sft", "pocket", summary)),
        "end_training",
        ("print", "table of 5 steps"),
        ("print", f"the/path: {RUN_FILES}"),
    ]
    for mine, theirs in zip(seen, expected, strict=True):
        assert mine == theirs
    made = [what for what in seen if what[0] == "finish"][0]
    assert list(made[1]) == list(summary)
    assert list(next(what for what in seen if what[0] == "log")[1]) == list(line(1, 0))


def begun(run):
    return {
        "command": "python train.py",
        "train": vars(run.train),
        "loss": vars(run.loss),
        "origin": {"beta": "command line"},
        "data": "48 rows",
        "steps": 5,
        "model": "a small model",
        "layout": "tree",
        "processes": 2,
        "versions": {"torch": "2"},
    }


def test_without_eval_every_only_before_and_after(monkeypatch):
    seen = Stage(monkeypatch, 5).go()
    assert [what[1] for what in seen if what[0] == "samples"] == [0, 5]


def test_fewer_steps_than_planned_end_in_an_evaluation_of_their_own(monkeypatch):
    """PPO's --target_kl. What stood after the last one is not evaluated twice."""
    seen = Stage(monkeypatch, 3, eval_every=2).go()
    assert [what[1] for what in seen if what[0] == "samples"] == [0, 2, 3]
    assert ("log", {"eval/loss": 7.0}, 3) in seen
    assert seen.index(("log", {"eval/loss": 7.0}, 3)) > seen.index(("close",))
    seen = Stage(monkeypatch, 2, eval_every=2).go()
    assert [what[1] for what in seen if what[0] == "samples"] == [0, 2]


def test_a_dry_run_ends_with_the_preview(monkeypatch):
    seen = Stage(monkeypatch, 5, dry_run=True).go()
    assert seen[-2:] == [
        ("print", "one line\nanother\n2 processes of sft"),
        ("print", "two examples"),
    ]
    assert "load" not in seen


@pytest.mark.parametrize("loss, kind", [("sft", "rows"), ("dpo", "rows"), ("ppo", "prompts")])
def test_a_loss_with_rollouts_takes_prompts(monkeypatch, loss, kind):
    stage = Stage(monkeypatch, 5, loss=loss)
    seen = stage.go()
    assert ("plan", kind) in seen
    expected = LOSSES[loss].expected_initial_metrics(stage.run.loss)
    assert ("check_start", {"loss": 10.0}, expected, stage.run.train) in seen
    (summary,) = (what[1] for what in seen if what[0] == "finish")
    assert summary["unit"] == ("pairs" if loss == "dpo" else "rows")


def test_only_the_first_rank_shows_progress(monkeypatch):
    stage = Stage(monkeypatch, 5)
    stage.accelerator.is_main_process = False
    assert ("progress", 5, "sft", False) in stage.go()


# ---------------------------------------------------------------- the rest


def test_an_evaluation_is_remembered_with_its_step():
    lines = []
    directory = SimpleNamespace(log=lines.append, log_samples=lambda *given: lines.append(given))
    state = TrainState(step=3)
    found = train.record_evaluation(state, directory, Evaluation({"a": 1.0}, ["b"]))
    assert found == {"eval/a": 1.0}
    assert lines == [{"step": 3, "eval/a": 1.0}, (3, ["b"])]
    assert (state.evaluated, state.heldout) == (3, {"a": 1.0})


def test_tokens_are_counted_where_the_ranks_meet(monkeypatch):
    """On the device whose collectives add them up."""
    monkeypatch.setattr(train, "peak_memory", lambda device: device.type)

    def reduce(tensor, how):
        assert (tensor.device.type, how) == ("meta", "sum")
        return torch.tensor(12)

    accelerator = SimpleNamespace(device=torch.device("meta"), reduce=reduce)
    run = Run(TrainConfig(loss="sft"), LOSSES["sft"].config(), {})
    summary = train.summarize(run, accelerator, TrainState(step=1, seconds=1.0), {}, "data")
    assert (summary["tokens"], summary["peak_memory_bytes"]) == (12, "meta")


def test_main_launches_train(monkeypatch):
    monkeypatch.setattr(train, "launch", lambda *given: given)
    assert train.main("arguments") == (train.train, "arguments")
