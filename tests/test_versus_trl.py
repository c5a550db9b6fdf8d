"""The comparison with TRL without TRL: its cells, orders, void rule, statistics, floor and page."""

import ast
import json
import sys

import pytest
from runs import ROOT

from benchmarks.versus.cells import ALL, ROWS, cell_named
from benchmarks.versus.floor import Shape, floor_flops
from benchmarks.versus.inputs import Pair, write_files
from benchmarks.versus.orders import as_trained, cycled, grouped_by_length, placed
from benchmarks.versus.page import draw, table
from benchmarks.versus.processes import Failed, environment, launcher, watch
from benchmarks.versus.summary import check, interval, pairs_of, summarize
from benchmarks.versus_trl import _turns
from data.batches import step_rows
from data.row_table import Row
from runtime.config import TrainConfig


def run(side, pair=0, *, step=1.0, losses=(0.7, 0.6, 0.5, 0.4, 0.3), **more):
    ends = [step * n for n in range(1, len(losses) + 1)]
    return {
        "side": side,
        "pair": pair,
        "ends": ends,
        "losses": list(losses),
        "metrics": {"logps/chosen": -50.0, "logps/rejected": -60.0},
        "precision": "float32",
        "peak_bytes": 3e9 if side == "ours" else 5e9,
        "imports_bytes": 1e9,
        "first_step": 10.0,
        "finished": 20.0,
    } | more


# ------------------------------------------------------------------------------ cells


@pytest.mark.parametrize("name", [*ALL, "sft/1/best", "orpo/32/default", "launch/sft"])
def test_every_cell_sets_both_sides_alike(name):
    cell = cell_named(name)
    rows, made = cell.size(20, 400)
    flags = cell.our_flags(made, seed=3)
    given = dict(zip([f.removeprefix("--") for f in flags[::2]], flags[1::2], strict=True))
    arguments = cell.trl_arguments(made, seed=3)
    assert float(given["learning_rate"]) == arguments["learning_rate"]
    assert given["schedule"] == arguments["lr_scheduler_type"] == "constant"
    assert int(given["batch_size"]) == arguments["per_device_train_batch_size"]
    assert int(given["seed"]) == arguments["seed"] == 3
    clip = float(given.get("max_grad_norm", TrainConfig.max_grad_norm))
    assert clip == (0 if cell.kind == "ppo" else arguments["max_grad_norm"])
    if cell.kind == "ppo":
        assert int(given["max_steps"]) == 4 * made
        assert arguments["total_episodes"] == rows == 8 * made == 8 * (1 + 5)
    else:
        assert int(given["max_steps"]) == arguments["max_steps"] == made
        assert rows == (16384 if cell.kind == "launch" else made * cell.batch_size)
    default = cell.row == "default"
    assert (arguments.get("bf16"), arguments.get("gradient_checkpointing")) == (
        (None, None) if default else (False, False)
    )
    assert ("mixed_precision" in given) == (cell.row == "bf16")
    assert cell.trl_arguments(made, 3, "bf16")["bf16"] is True


def test_the_default_cells_are_of_the_rows_there_are():
    assert len(set(ALL)) == len(ALL)
    assert {cell_named(name).row for name in ALL} == set(ROWS)
    assert cell_named("dpo/8/tuned").size(20, 9) == (184, 23)
    assert cell_named("epoch").size(20, 400) == (400, 25)
    assert cell_named("epoch").size(20, 5000) == (800, 50)


@pytest.mark.parametrize("name", ["", "dpo", "dpo/8", "dpo/0/tuned", "dpo/x/tuned", "kto/8/tuned"])
def test_a_cell_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="no cell"):
        cell_named(name)


def test_the_tolerance_is_loose_where_a_side_rounds_to_bfloat16():
    tuned, best, bf16 = (cell_named(f"dpo/8/{row}") for row in ("tuned", "best", "bf16"))
    assert tuned.tolerance("float32") == best.tolerance("float32") == 1e-4
    assert best.tolerance("bf16") == bf16.tolerance("float32") == 1e-1


# ------------------------------------------------------------------------------ orders


@pytest.mark.parametrize("rows, batch_size, seed", [(8, 8, 0), (12, 4, 1), (15, 3, 7), (5, 1, 2)])
def test_trls_file_is_ours_in_the_order_of_its_steps(rows, batch_size, seed):
    file = [f"row {i}" for i in range(rows)]
    trained = as_trained(file, batch_size, seed)
    for step in range(1, rows // batch_size + 1):
        took = [file[i] for i in step_rows(step, rows, batch_size, seed)]
        assert trained[(step - 1) * batch_size : step * batch_size] == took
    assert sorted(trained) == sorted(file)
    assert placed(trained, batch_size, seed) == file


def test_an_epoch_of_no_whole_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="no whole number"):
        as_trained([1, 2, 3], 2, 0)


def test_rows_are_repeated_where_there_are_too_few():
    assert cycled("abc", 7) == list("abcabca") and cycled("abc", 2) == list("ab")


def test_grouping_pads_least_and_leaves_the_warm_up():
    rows = [5, 1, 9, 2, 8, 3, 7, 4]
    grouped = grouped_by_length(rows, rows, 2, warm_up=1, seed=0)
    assert grouped[:2] == [5, 1]
    batches = {tuple(grouped[i : i + 2]) for i in range(2, 8, 2)}
    assert batches == {(2, 3), (4, 7), (8, 9)}


def pairs(count):
    return [
        Pair(
            {"prompt": f"p{i}", "chosen": f" c{i}", "rejected": f" r{i}"},
            Row(i, [1] * (i + 1), [[2, 3], [4]], [True, True], [2, 2]),
        )
        for i in range(count)
    ]


@pytest.fixture
def llama(tmp_path):
    names = "num_attention_heads hidden_size num_hidden_layers intermediate_size vocab_size"
    config = dict(zip(names.split(), (2, 8, 1, 16, 32), strict=True))
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    return str(tmp_path)


PAIR = {"prompt", "chosen", "rejected"}


@pytest.mark.parametrize("name, columns", [
    ("dpo/2/tuned", PAIR), ("dpo/2/best", PAIR), ("reward/4/tuned", PAIR),
    ("sft/2/tuned", {"prompt", "completion"}), ("ppo", {"prompt"}),
])  # fmt: skip
def test_the_files_of_a_cell_are_the_same_rows(tmp_path, llama, name, columns):
    cell = cell_named(name)
    files, made, flops = write_files(
        cell, tmp_path / "cell", pairs(40), [], model=llama, scorer="scorer", steps=3, seed=5
    )
    ours, trl = (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in (files.ours, files.trl)
    )
    trained = as_trained(ours, cell.batch_size, 5)
    assert [row["prompt"] for row in trained] == [row["prompt"] for row in trl]
    assert len(trl) == made * cell.batch_size and set(trl[0]) == columns
    assert (flops > 0) == (cell.kind == "steps")
    if cell.grouped:
        numbers = [int(row["prompt"][1:]) for row in trl[cell.warm_up * 2 :]]
        gaps = [abs(b - a) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
        assert sum(gaps) <= len(numbers)


# ------------------------------------------------------------------------------ the void rule


def test_the_same_losses_count_and_others_are_void_with_their_numbers():
    cell = cell_named("dpo/8/tuned")
    near = run("trl", losses=(0.7, 0.60005, 0.5, 0.4, 0.3))
    assert check(cell, run("ours"), near)["void"] is False
    far = check(cell, run("ours"), run("trl", losses=(0.7, 0.6001, 0.5, 0.4, 0.3)))
    assert far["void"] is True and far["losses"][1] == (0.6, 0.6001)
    assert far["largest relative difference"] == pytest.approx(1e-4 / 0.6001)
    for none in (None, float("nan")):
        broken = run("trl", losses=(0.7, none, 0.5, 0.4, 0.3))
        assert check(cell, run("ours"), broken)["void"] is True


def test_other_tokens_are_void_though_dpo_starts_at_ln_2():
    other = run("trl", metrics={"logps/chosen": -50.0, "logps/rejected": -60.1})
    assert check(cell_named("dpo/8/tuned"), run("ours"), other)["void"] is True
    assert check(cell_named("reward/8/tuned"), run("ours"), other)["void"] is False


def test_where_trl_is_in_bfloat16_its_losses_in_float32_are_compared_too():
    cell = cell_named("sft/8/best")
    rounded = run("trl", precision="bf16", losses=(0.71, 0.61, 0.51, 0.41, 0.31))
    same, other = (0.7, 0.6), (0.7, 0.6002)
    assert summarize(cell, [run("ours"), rounded], same)["check"]["in float32"] == 0
    assert summarize(cell, [run("ours"), rounded], other)["void"] is True
    bf16 = [run("ours", precision="bf16"), rounded]
    assert "void" not in summarize(cell_named("sft/8/bf16"), bf16, other)


def test_a_cell_with_one_void_pair_has_no_ratio():
    cell = cell_named("sft/8/tuned")
    good = [run("ours"), run("trl", step=3.0)]
    bad = [run("trl", 1, losses=(0.7,) * 5), run("ours", 1)]
    found = summarize(cell, good + bad)
    assert found["void"] and found["pairs"] == 2 and "TRL / ours" not in found


# ------------------------------------------------------------------------------ statistics


def test_the_ratio_is_the_median_of_the_pairs_own():
    cell = cell_named("dpo/8/tuned")
    runs = [run("ours", 0, step=1), run("trl", 0, step=3)]
    runs += [run("trl", 1, step=8), run("ours", 1, step=2), run("ours", 2), run("trl", 2, step=5)]
    found = summarize(cell, [*runs, run("ours", 3, step=100)])  # its pair is not whole
    assert found["TRL / ours"]["each"] == [3, 4, 5] and found["TRL / ours"]["median"] == 4
    assert found["seconds"] == {"of": "median step", "ours": 1, "trl": 5}
    assert found["peak bytes above imports"] == {"ours": 2e9, "trl": 4e9, "ours / TRL": 0.5}
    assert [pair[0]["pair"] for pair in pairs_of(runs)] == [0, 1, 2]


def test_warm_up_steps_do_not_count():
    slow = run("trl", ends=[50.0, 100.0, 150.0, 152.0, 154.0])
    assert summarize(cell_named("dpo/8/tuned"), [run("ours"), slow])["TRL / ours"]["median"] == 2
    grouped = run("trl", ends=[50.0, 100.0, 150.0, 151.0, 154.0])
    assert summarize(cell_named("dpo/8/best"), [run("ours"), grouped])["TRL / ours"]["median"] == 2


def test_other_clocks_and_samples():
    whole = [run("ours"), run("trl", finished=60.0, first_step=25.0)]
    assert summarize(cell_named("epoch"), whole)["TRL / ours"]["median"] == 3
    assert summarize(cell_named("launch"), whole)["TRL / ours"]["median"] == 2.5
    sampled = summarize(
        cell_named("ppo"), [run("ours", step=2), run("trl", step=4, losses=[0] * 5)]
    )
    assert sampled["samples a second"] == {"ours": 4, "trl": 2}


def test_the_interval_holds_the_median_and_is_the_same_again():
    ratios = [2.0, 2.1, 2.2, 2.6, 3.0]
    low, high = interval(ratios)
    assert 2.0 <= low < 2.2 < high <= 3.0 and interval(ratios) == (low, high)
    assert interval([2.0]) == (2.0, 2.0)


def test_runs_take_turns():
    order = "".join(side[0] for _, side in _turns(4))
    assert order == "ottootto" and [pair for pair, _ in _turns(2)] == [0, 0, 1, 1]


# ------------------------------------------------------------------------------ the floor

SHAPE = Shape(layers=2, width=4, query=4, key=2, hidden=8, vocabulary=10)
BODY = 2 * (4 * 4 * 2 + 4 * 2 * 2 + 3 * 4 * 8)


@pytest.mark.parametrize("loss, responses, tokens, predicted, seen", [
    # prompt of 2; responses 5 6 E and 5 7 8 E: one token shared, the last of each only predicted
    ("dpo", [[5, 6, 9], [5, 7, 8, 9]], 2 + 1 + 1 + 2, 2 + 3 - 1, 1 + 2 + 3 + 4 + 4 + 5),
    ("orpo", [[5, 6, 9], [5, 7, 8, 9]], 6, 1 + 1 + 2 + 3 - 1, 19),
    ("reward", [[5, 6, 9], [5, 7, 8, 9]], 8, 0, 19 + 5 + 6),
    ("sft", [[5, 6, 9]], 4, 3, 1 + 2 + 3 + 4),
])  # fmt: skip
def test_the_floor_by_hand(loss, responses, tokens, predicted, seen):
    row = Row(0, [1, 2], responses, [True] * len(responses), [1] * len(responses))
    assert SHAPE.body == BODY and SHAPE.head == 40
    forward = 2 * tokens * BODY + 2 * predicted * 40 + 4 * 2 * 4 * seen
    assert floor_flops(loss, row, SHAPE) == 3 * forward


def test_the_share_of_the_peak_is_of_the_counted_steps():
    ours = run("ours", step=2.0, sgemm=100.0, floor_flops=120)
    found = summarize(cell_named("dpo/8/tuned"), [ours, run("trl")])
    assert found["share of the sgemm peak"] == 120 / (2 * 2 * 100)


# ------------------------------------------------------------------------------ around it


def test_the_childs_environment_has_no_settings_of_threads(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    env = environment(tmp_path, None)
    assert {n: v for n, v in env.items() if n.startswith(("OMP", "MKL"))} == {
        "OMP_WAIT_POLICY": "PASSIVE"
    }
    assert environment(tmp_path, 2)["OMP_NUM_THREADS"] == "2"


def test_only_the_start_goes_through_the_launcher():
    assert launcher(cell_named("epoch"), "python", 2) == ["python"]
    flags = launcher(cell_named("launch"), "python", 2)
    assert flags[flags.index("--num_cpu_threads_per_process") + 1] == "2"


def test_a_run_is_timed_to_its_first_line_and_its_end(tmp_path):
    code = "import time; open('x', 'w').write('mark'); time.sleep(0.3)"
    clock = watch([sys.executable, "-c", code], {}, tmp_path, tmp_path / "x", "mark")
    assert 0 < clock["first_step"] <= clock["finished"] - 0.2
    with pytest.raises(Failed, match="(?s)ZeroDivisionError.*ended with 1$"):
        watch([sys.executable, "-c", "1 / 0"], {}, tmp_path, tmp_path / "y", "mark")


def test_the_child_needs_nothing_of_this_project():
    tree = ast.parse((ROOT / "benchmarks/versus/trl_child.py").read_text("utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    assert found <= {"trl", "torch", "transformers", "datasets", *sys.stdlib_module_names}


def test_the_page(tmp_path):
    cells = {
        "dpo/8/tuned": [run("ours"), run("trl", step=3.0)],
        "sft/8/tuned": [run("ours"), run("trl", losses=(1.4,) * 5)],
    }
    results = {
        "cells": {n: {"summary": summarize(cell_named(n), runs)} for n, runs in cells.items()}
    }
    results["cells"]["ppo"] = {}
    lines = table(results).splitlines()
    assert (
        lines[2]
        == "| dpo/8/tuned | float32 | 1 | 3 | 3.00 [3.00, 3.00] | 1.86 against 3.73 | 0.50 |"
    )
    assert "void: differs by 7.9e-01" in lines[3] and "not run" in lines[4]
    assert draw(results, tmp_path / "x.png") and (tmp_path / "x.png").stat().st_size > 1000
    assert not draw({"cells": {}}, tmp_path / "y.png")
