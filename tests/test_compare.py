"""The comparison study without its trainings: plan, budget, statistics, page. Runs: *_runs.py."""

import html.parser
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import pocket_rows, read, run, write_rows
from tolerances import loose

from benchmarks.compare import make_study, parse
from benchmarks.record import hide
from benchmarks.study.plan import PPO, STAGES, Study, parse_settings
from benchmarks.study.runner import fingerprint, identity
from data.errors import NO_INPUT, InputError
from losses.ppo import PPOConfig
from runtime.cli import parse_args
from runtime.report import peak_memory


def study(*argv) -> Study:
    return make_study(parse([str(part) for part in argv]))


def flags(of: Study, name: str) -> dict[str, str | None]:
    return of.flags(of.stage(name))


# ---------------------------------------------------------------- stages and their commands


def test_every_stage_starts_from_what_the_issue_says():
    needs = {stage.name: (stage.loss, stage.needs) for stage in STAGES}
    assert needs == {
        "sft": ("sft", []),
        "reward": ("reward", []),
        "ppo": ("ppo", ["sft", "reward"]),
        "dpo": ("dpo", []),
        "orpo": ("orpo", []),
        "sft-dpo": ("dpo", ["sft"]),
        "sft-orpo": ("orpo", ["sft"]),
    }
    order = [stage.name for stage in STAGES]
    assert all(order.index(n) < order.index(s.name) for s in STAGES for n in s.needs)


def test_commands_are_ones_that_train_py_takes(tmp_path):
    s = study("--output_dir", tmp_path, "--seeds", 3)
    found = {stage.name: parse_args(s.argv(stage, 3)) for stage in s.stages}
    run_dir = f"{tmp_path}/runs/seed3"
    assert found["ppo"].train.model == f"{run_dir}/sft/final"
    assert found["ppo"].loss_flags["reward"] == f"{run_dir}/reward/final"
    assert found["sft-dpo"].train.model == f"{run_dir}/sft/final"
    assert found["dpo"].train.model == "pocket"
    assert {args.train.seed for args in found.values()} == {3}
    assert len({args.train.output_dir for args in found.values()}) == len(STAGES)


def test_the_same_number_of_pairs_for_every_stage():
    assert (PPO["rollout_size"], PPO["ppo_epochs"]) == (
        PPOConfig().rollout_size,
        PPOConfig().ppo_epochs,
    )
    for s in (study(), study("--pairs", 640), study("--set", "dpo=--batch_size 64")):
        for stage in s.stages:
            args = parse_args(s.argv(stage, 0))
            steps, batch = args.train.max_steps, args.train.batch_size
            passes = args.loss_flags["ppo_epochs"] if stage.loss == "ppo" else 1
            assert steps * batch == s.budget * passes, stage.name
    assert study().budget == 3200
    assert study("--pairs", 640).budget == 640


def test_ppo_samples_the_budget_whatever_its_sizes():
    s = study("--pairs", 256, "--set", "ppo=--rollout_size 128 --batch_size 32 --ppo_epochs 2")
    assert flags(s, "ppo")["max_steps"] == str(2 * 2 * 4)  # rollouts x epochs x minibatches


def test_off_pocket_the_default_is_one_pass_over_the_rows(tmp_path):
    row = '{"prompt": "p", "chosen": " a", "rejected": " b"}\n'
    for name, count in (("train", 200), ("valid", 5)):
        (tmp_path / f"{name}.jsonl").write_text(row * count)
    assert study("--data", tmp_path).budget == 192  # rounded down to whole rollouts of 64
    assert study("--data", tmp_path, "--epochs", 2).budget == 384
    assert flags(study("--data", tmp_path), "dpo")["batch_size"] == "16"
    assert "learning_rate" not in flags(study("--data", tmp_path), "dpo")


def test_settings_reach_the_stages_they_name_and_no_other():
    s = study("--set", "all=--mixed_precision bf16 --beta 0.3", "--set", "reward=--epochs 2",
              "--set", "ppo=--no-whiten_advantages --learning_rate 1e-5")  # fmt: skip
    assert all(flags(s, stage.name)["mixed_precision"] == "bf16" for stage in s.stages)
    assert {stage.name for stage in s.stages if "beta" in flags(s, stage.name)} == {
        "dpo",
        "sft-dpo",
    }
    assert "max_steps" not in flags(s, "reward") and flags(s, "reward")["epochs"] == "2"
    ppo = parse_args(s.argv(s.stage("ppo"), 0))
    assert ppo.train.learning_rate == 1e-5 and ppo.loss_flags["whiten_advantages"] is False


@pytest.mark.parametrize("argv, said", [
    (["--pairs", "100"], "give a multiple of 64, 128 for one"),
    (["--pairs", "0"], "--pairs 0 must be above 0"),
    (["--seeds", "a"], "--seeds a: give whole numbers"),
    (["--seeds", "²"], "--seeds ²: give whole numbers"),
    (["--stages", "dpp"], "--stages dpp: choose from sft, reward"),
    (["--stages", "sft", "ppo"], "ppo needs reward; add it"),
    (["--set", "dpo=--bta 1"], "dpo: unknown flag --bta: did you mean --beta?"),
    (["--set", "all=--bta 1"], "unknown flag --bta"),
    (["--set", "dppo=--beta 1"], "--set dppo: no such stage"),
    (["--set", "dpo"], 'write STAGE="--flag value ..."'),
    (["--set", "dpo=--beta 1 2"], "'2' follows no flag"),
    (["--set", "dpo=--seed 1"], "--set dpo: --seed is the study's own"),
    (["--set", "ppo=--epochs 2"], "give ppo --max_steps, not --epochs"),
    (["--set", "dpo=--learning_rate -1"], "dpo: --learning_rate -1.0 must be above 0"),
    (["--set", "ppo=--batch_size=0"], "ppo: --batch_size 0 must be above 0"),
    (["--set", "ppo=--ppo_epochs=0"], "--set ppo: --ppo_epochs 0 is not a whole number above 0"),
    (["--set", "ppo=--rollout_size=0"], "--set ppo: --rollout_size 0 is not a whole number above"),
    (["--set", "ppo=--ppo_epochs=x"], "ppo: --ppo_epochs: 'x' is not a whole number"),
    (["--set", "ppo=--max_steps=x"], "ppo: --max_steps: 'x' is not valid"),
    (["--set", "sft=--epochs=x"], "sft: --epochs: 'x' is not a number"),
    (["--set", "sft=--batch_size"], "sft: --batch_size"),
])  # fmt: skip
def test_a_wrong_command_line_is_one_line_before_anything_runs(argv, said):
    with pytest.raises(InputError) as error:
        study(*argv)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_a_model_that_is_not_there_is_told_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="--model .*nowhere: no such directory") as error:
        study("--model", tmp_path / "nowhere", "--data", "pocket")
    assert error.value.exit_code == NO_INPUT


@pytest.mark.parametrize("changed", ["train.jsonl", "below/train.jsonl", "train-labels.lst"])
@pytest.mark.parametrize("file", [False, True])
def test_other_data_is_another_fingerprint(tmp_path, changed, file):
    """Wherever `load_data` finds it: beside a file its labels, in a directory one folder below."""
    path = tmp_path / changed
    path.parent.mkdir(exist_ok=True)
    for named in ("train.jsonl", changed):
        (tmp_path / named).write_text("0")
    at = tmp_path / "train.jsonl" if file else tmp_path
    before = fingerprint(at)
    path.write_text("1\n")
    assert (fingerprint(at) == before) == (file and path.parent != tmp_path)


def test_what_is_no_data_below_a_folder_is_not_read(tmp_path):
    """The study's own report, where it is written into the data's directory."""
    (tmp_path / "train.jsonl").write_text("0")
    before = fingerprint(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text("{}")
    assert fingerprint(tmp_path) == before


def test_paths_are_cut_to_two_names():
    told = "--data=/home/me/a/b.jsonl --model '/home/me/my data/m' ~/c/d --set 'all=--x 1' 3/4 a/b"
    cut = "--data=a/b.jsonl --model 'my data/m' c/d --set 'all=--x 1' 3/4 a/b"
    assert hide(told) == cut


def test_files_that_a_setting_names_are_part_of_what_a_stage_is(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("0")
    s = study("--set", f"ppo=--prompts {prompts}")
    s = replace(s, stages=tuple(replace(x, start=None, reward=None) for x in s.stages))
    before = [identity(s, stage, 0) for stage in s.stages]
    prompts.write_text("1\n")
    same = [identity(s, stage, 0) == b for stage, b in zip(s.stages, before, strict=True)]
    assert [stage.name for stage, kept in zip(s.stages, same, strict=True) if not kept] == ["ppo"]


def test_settings_are_split_as_a_shell_does():
    assert parse_settings(["a=--x=1 --y 'b c' --z", "a=--x 2"]) == {
        "a": {"x": "2", "y": "b c", "z": None}
    }


# ---------------------------------------------------------------- statistics


def measured(rows, kl=(0.0, 2.0), **answers):
    return {
        "rows": rows,
        "answers": {"kl": list(kl), "tokens": [3, 5], "finished": [True, False], **answers},
    }


def test_a_models_numbers_are_means_with_their_standard_error():
    from benchmarks.study.collect import describe, over_seeds

    base = measured([[-1.0, -2.0, 1, 0], [-2.0, -1.0, 0, 0]])
    one = describe(measured([[-1.0, -3.0, 1, 1], [-2.0, -3.0, 1, 1]], right=[True, False]), base)
    assert one["acc"] == (1.0, 0.0) and one["logp_rejected"] == (-3.0, 0.0)
    assert one["kl"] == (1.0, 1.0)  # standard deviation sqrt 2, of two
    assert one["truncated"][0] == 0.5 and one["right"][0] == 0.5 and "reward" not in one
    assert one["p_acc"] == {"base_only": 0, "only": 1, "p": 1.0}
    assert one["p_acc_norm"]["p"] == 0.5
    two = describe(measured([[-1.0, -3.0, 0, 1], [-2.0, -3.0, 1, 0]], kl=(3.0, 3.0)), base)
    both = over_seeds([one, two])
    assert both["kl"] == (2.0, pytest.approx(math.sqrt(2)))  # over seeds now
    assert both["p_acc_norm"] == 1.0  # the larger of 0.5 and 1
    assert over_seeds([one])["kl"] == (1.0, 1.0)  # one seed was asked for: over answers
    assert over_seeds([one], several=True)["kl"] == (1.0, None)  # of several one is there


def test_lm_eval_and_the_projects_own_forward_give_the_same_rows(tmp_path, monkeypatch):
    """Rows in PIQA's words go through lm-eval, others through the forward that trains."""
    from benchmarks.study import measure

    def refuse(records):
        raise InputError("not worded as PIQA is")

    rows = pocket_rows(1, 24)[1]
    bench = measure.Bench(Study(data=str(write_rows(tmp_path, rows[:1], rows))), 0, None)
    theirs = bench.accuracy(bench.base)
    monkeypatch.setattr(measure, "piqa_rows", refuse)
    own = bench.accuracy(bench.base)
    assert "lm-eval" in theirs["scored_by"] and "forward" in own["scored_by"]
    assert len(own["rows"]) == 24 and 0 < sum(row[2] for row in own["rows"]) < 24
    for a, b in zip(theirs["rows"], own["rows"], strict=True):
        assert a[:2] == pytest.approx(b[:2], rel=10 * loose(torch.float32)) and a[2:] == b[2:]
        assert a[2] == (a[0] > a[1])  # the chosen response's log-prob comes first


def test_peak_memory_is_in_bytes_and_does_not_fall_again():
    cpu = torch.device("cpu")
    before = peak_memory(cpu)
    block = b"1" * before  # what is held now and as much again as was ever held
    peak = peak_memory(cpu)
    del block
    assert before < peak <= 2.1 * before
    assert peak_memory(cpu) > 0.99 * peak  # Linux counts in batches of pages
    assert before > 50 * 2**20  # torch alone is more than that


def test_a_run_says_its_peak_memory(tmp_path):
    out = tmp_path / "run"
    assert run("--loss", "sft", "--max_steps", 1, "--output_dir", out).code == 0
    assert 50 * 2**20 < read(out, "summary.json")["peak_memory_bytes"] < 8 * 2**30


# ---------------------------------------------------------------- page


class Checked(html.parser.HTMLParser):
    """Every tag is closed in order, and nothing is fetched from anywhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.images = [], "", 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open += [tag] * (tag not in ("meta", "img"))
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attrs:
            self.images += name == "src"
            assert name != "href" and (name != "src" or value.startswith("data:image/png;base64,"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_any_answer_is_shown_as_it_stands():
    from benchmarks.study.page import Table, to_html, to_markdown

    odd = "<script>a|b *c* [d](http://e) & $x$ \\ # ~"
    table = Table(["model", "answer"], [["sft", odd]], "caption", numbers=False)
    assert odd in Checked(to_html([table], "t")).text
    line = to_markdown([table], Path()).splitlines()[2]
    assert "<script>" not in line
    assert line.replace("\\|", "").count("|") == 3  # two cells
    assert "\\[d\\](http" in line and "\\*c\\*" in line


def test_a_code_block_ends_where_its_text_does():
    from benchmarks.study.page import Code, to_markdown

    text = "train.py --data 'a```b'\n````\n# not a title"
    lines = to_markdown([Code(text)], Path()).splitlines()
    assert lines == ["`````", *text.splitlines(), "`````"]
