"""train(): what it asks of plan, models, feed and optimizer, in which order, and what it logs.

Plan, models and feed are stand-ins that write down what they were asked; directory, checkpoints and
Accelerator are real. A clock moves only where the stand-ins say.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tolerances import LOOSE

import train
from losses import LOSSES
from runtime.config import Run, TrainConfig
from runtime.directory import RunDirectory
from runtime.guards import outputs
from runtime.process.signals import SIGNALLED, Interrupted
from runtime.session import finish as finish_module
from runtime.session import session as session_module
from runtime.sources.base import Evaluation


class Stage:
    """A run whose plan has 5 steps of 4 rows; how many of them the feed has is for the test."""

    def __init__(self, monkeypatch, path, steps=5, *, loss="sft", **flags):
        self.seen, self.now, self.fed, self.path = [], 1000.0, steps, path
        config = TrainConfig(
            **{"loss": loss, "batch_size": 4, "learning_rate": 0.5, "warmup": 0} | flags
        )
        self.run = Run(config, LOSSES[loss].config(), {"beta": "command line"})
        self.accelerator, self.module = Accelerator(cpu=True), torch.nn.Linear(2, 1)
        self.evaluations = iter(range(100))
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        replaced = {
            (train, "set_seed"): lambda seed: self.note("seed", seed),
            (train, "plan_rows"): lambda *given: self.plan("rows", *given),
            (train, "plan_prompts"): lambda *given: self.plan("prompts", *given),
            (train, "optimizer_step"): self.optimizer_step,
            (train, "update"): self.update,
            (session_module, "check_start"): lambda *given: self.note("check_start", *given),
            (session_module, "time"): clock,
            (session_module, "final_of"): self.final_of,
            (finish_module, "final_of"): self.final_of,
            (finish_module, "draw_curves"): lambda *given: self.note("draw", *given),
        }
        for (module, name), stand_in in replaced.items():
            monkeypatch.setattr(module, name, stand_in)

    def note(self, *what):
        self.seen.append(what)

    def go(self):
        directory = RunDirectory(self.path, overwrite=False)
        try:
            train.train(self.run, self.accelerator, directory)
        finally:
            directory.close()
            SIGNALLED.close(0)
        return self.seen

    def lines(self):
        return [json.loads(line) for line in (self.path / "metrics.jsonl").open()]

    # --- plan, models, feed

    def plan(self, kind, run, loss, accelerator):
        assert (run, loss) == (self.run, LOSSES[self.run.train.loss])
        self.note("plan", kind)
        return SimpleNamespace(
            summary=["one line", "another"],
            preview=lambda: "two examples",
            initial_rollout_state=lambda: None,
            load=self.load,
            steps=5,
            data="48 rows",
            identity={"data": "a hash"},
            tokenizer="tokenizer",
            end_tokens={7},
        )

    def final_of(self, model, name, *rest):
        def save(folder):
            folder.mkdir()
            (folder / "weights").write_text(f"{model} after {self.seen.count(('update',))}")

        return SimpleNamespace(save=save, description="the model")

    def load(self):
        self.note("load")
        return SimpleNamespace(
            trained=self.module,
            saved="saved part",
            beside={"critic": "the critic"},
            layout="tree",
            description="a small model",
            learning_rates={"weight": 0.25},
            feed=self.feed,
        )

    def feed(self, trained, state, directory):
        assert directory == self.path
        self.state = state
        return SimpleNamespace(
            evaluate=self.evaluate,
            steps=self.steps,
            after_step=lambda metrics: {"of the rollout": metrics["loss"] + 0.5},
            epoch=lambda step: step / 4,
        )

    def evaluate(self):
        self.now += 100
        self.note("evaluate", self.state.step)
        return Evaluation(
            {"loss": 10.0 - self.state.step, "worse": float(self.state.step)},
            [{"sample after": self.state.step}],
        )

    def steps(self, start):
        batch, dummy = (SimpleNamespace(num_tokens=n, dummy=d) for n, d in ((7, False), (9, True)))
        for step in range(start + 1, self.fed + 1):
            self.now += 2
            self.note("step", step)
            yield SimpleNamespace(batches=lambda most, device: [batch, batch, dummy])

    def optimizer_step(self, accelerator, trained, loss, config, batches):
        assert len(batches) == 3 and (loss, config) == (LOSSES[loss.name], self.run.loss)
        self.now += 3
        return {"tokens": 28}, {"loss": 1 / (self.state.step + 1)}

    def update(self, accelerator, trained, optimizer, metrics, state, config, rows):
        assert (state, config) == (self.state, self.run.train)
        self.seen.append(("update",))
        self.rates = [group["lr"] for group in optimizer.param_groups]
        return 0.125


@pytest.fixture
def stage(monkeypatch, tmp_path):
    made = []

    def make(*given, **flags):
        made.append(Stage(monkeypatch, tmp_path / "out", *given, **flags))
        return made[-1]

    return make


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


def held_out(step):
    return {"step": step, "eval/loss": 10.0 - step, "eval/worse": float(step)}


def test_a_whole_run_in_order(stage, capsys):
    """Five steps, evaluated before the first, after the second, the fourth and the last."""
    s = stage(seed=3, eval_every=2, weight_decay=0.1, max_steps=5)
    seen = s.go()
    expected = [("seed", 3), ("plan", "rows"), ("load",), ("evaluate", 0)]
    before = {"loss": 10.0, "worse": 0.0}
    expected.append(("check_start", before, {}, s.run.train))
    lines, seconds = [held_out(0)], 100
    for step in range(1, 6):
        seconds += 5  # two for the batches, three for the gradient
        expected += [("step", step), ("seed", 3 + step - 1), ("update",)]
        lines.append(line(step, seconds))
        if step in (2, 4, 5):
            seconds += 100
            expected.append(("evaluate", step))
            lines.append(held_out(step))
    title = "sft, pocket, 48 rows"
    expected.append(("draw", s.path / "metrics.jsonl", s.path / "curves.png", title))
    assert seen == expected
    assert s.lines() == [pytest.approx(one, rel=LOOSE * 1e-16) for one in lines]
    assert [list(one) for one in s.lines()] == [list(one) for one in lines]
    assert s.rates == pytest.approx([0.25 / 5, 0.5 / 5])  # each group by its own peak

    summary = json.loads((s.path / "summary.json").read_text())
    versions = summary.pop("versions")
    assert summary.pop("peak_memory_bytes") > 0 and "torch" in versions
    assert summary == {
        "loss": "sft",
        "model": "pocket",
        "before": before,
        "after": {"loss": 5.0, "worse": 5.0},
        "steps": 5,
        "skipped_steps": 0,
        "rows": 20,
        "unit": "rows",
        "tokens": 5 * 14,
        "rows_per_second": 20 / 25,
        "data": "48 rows",
        "seconds": pytest.approx(100 + 25 + 200),  # the last lap ends with the last step
    }
    assert (s.path / "final" / "weights").read_text() == "saved part after 5"
    assert (s.path / "critic" / "weights").read_text() == "the critic after 5"
    config = json.loads((s.path / "config.json").read_text())
    assert config["train"]["seed"] == 3 and config["identity"] == {"data": "a hash"}
    assert (config["steps"], config["processes"], config["data"]) == (5, 1, "48 rows")
    samples = [json.loads(one) for one in (s.path / "samples.jsonl").open()]
    assert [one["step"] for one in samples] == [0, 2, 4, 5]
    assert json.loads((s.path / "status.json").read_text())["state"] == "finished"
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["one line", "another"] and "model: a small model" in out
    assert out[-1].endswith("final/ (the model), metrics.jsonl, summary.json, curves.png")


def evaluated(seen):
    return [what[1] for what in seen if what[0] == "evaluate"]


def test_without_eval_every_only_before_and_after(stage):
    assert evaluated(stage().go()) == [0, 5]


@pytest.mark.parametrize("fed, expected", [(3, [0, 2, 3]), (2, [0, 2])])
def test_fewer_steps_than_planned_end_in_an_evaluation_of_their_own(stage, fed, expected):
    """PPO's --target_kl. What stood after the last one is not evaluated twice."""
    assert evaluated(stage(fed, eval_every=2).go()) == expected


def test_a_dry_run_ends_with_the_preview(stage, capsys, monkeypatch):
    s = stage(dry_run=True)
    monkeypatch.setattr(train, "preflight", lambda run: [f"checked {run is s.run}"])
    assert ("load",) not in s.go()
    assert capsys.readouterr().out.endswith("two examples\nchecked True\n")


@pytest.mark.parametrize("loss, kind", [("sft", "rows"), ("dpo", "rows"), ("ppo", "prompts")])
def test_a_loss_with_rollouts_takes_prompts(stage, loss, kind):
    s = stage(loss=loss)
    seen = s.go()
    assert ("plan", kind) in seen
    (checked,) = (what for what in seen if what[0] == "check_start")
    assert checked[2] == LOSSES[loss].expected_initial_metrics(s.run.loss)
    summary = json.loads((s.path / "summary.json").read_text())
    assert summary["unit"] == ("pairs" if loss == "dpo" else "rows")


def test_only_the_first_rank_prints(monkeypatch, capsys):
    outputs.say("a line")
    monkeypatch.setenv("RANK", "1")  # left over from somewhere, or one of several
    outputs.say("one more")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outputs.say("another")
    outputs.say("an error", error=True)
    assert capsys.readouterr() == ("a line\none more\n", "")


# ---------------------------------------------------------------- ends before the end


@pytest.mark.parametrize("at", [1, 3])
def test_a_signal_ends_the_run_between_two_steps_and_it_goes_on_there(stage, capsys, at):
    s = stage(eval_every=2)
    real = s.update

    def update(*given):
        if len(s.seen) and s.state.step == at:
            SIGNALLED.requested = "SIGTERM"
        return real(*given)

    train.update = update  # the fixture's monkeypatch brings the real one back
    directory = RunDirectory(s.path, overwrite=False)
    with pytest.raises(Interrupted):
        train.train(s.run, s.accelerator, directory)
    SIGNALLED.close(0)
    assert directory.rescue() == f"saved after step {at}; the same command goes on from there"
    directory.fail("stopped by SIGTERM", 75, "stopped")

    again = stage(eval_every=2)
    seen = again.go()
    assert [what[1] for what in seen if what[0] == "step"] == list(range(at + 1, 6))
    # an evaluation that was due after the step is made up for
    assert evaluated(seen) == [step for step in (2, 4, 5) if step >= at]
    found = [(one["step"], "loss" in one) for one in again.lines()]
    assert found == [
        *((0, False), (1, True), (2, True), (2, False)),
        *((3, True), (4, True), (4, False), (5, True), (5, False)),
    ]
    assert f"goes on after step {at} of 5 (stopped: stopped by SIGTERM)" in (
        capsys.readouterr().out
    )


def test_the_best_model_is_kept_and_patience_ends_the_run(stage, capsys):
    """`worse` grows: the first evaluation is the lowest, but higher is better."""
    s = stage(eval_every=1, keep_best="worse")
    s.go()
    assert (s.path / "best" / "weights").read_text() == "saved part after 5"
    assert json.loads((s.path / "summary.json").read_text())["best"] == {"worse": 5.0, "step": 5}


def test_patience_counts_evaluations_that_were_not_better(stage, monkeypatch, capsys):
    s = stage(eval_every=1, keep_best="kl", patience=2)
    found = iter([3.0, 2.0, 2.0, 4.0, 1.0])  # the lower the better; a tie is not better
    monkeypatch.setattr(s, "evaluate", lambda: Evaluation({"kl": next(found)}, []))
    s.go()
    assert [one["step"] for one in s.lines() if "loss" in one] == [1, 2, 3]
    assert (s.path / "best" / "weights").read_text() == "saved part after 1"
    assert (s.path / "final" / "weights").read_text() == "saved part after 3"
    assert "stopped after step 3: kl has not been better than 2.0 (step 1) for 2 evaluations" in (
        capsys.readouterr().out
    )


def test_main_launches_train(monkeypatch):
    monkeypatch.setattr(train, "launch", lambda *given: given)
    assert train.main("arguments") == (train.train, "arguments")
