"""The cost curves and the rollout's speed, on models of a few rows: what is measured, and how."""

import json
import sys

import pytest
import torch
from runs import BASE, pocket_rows, write_rows

from benchmarks import rollout_speed, scaling
from models.load import load_causal_lm, load_tokenizer
from rollout.sample import Sampling


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data"), *pocket_rows(20, 4))


def call(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def test_every_curve_is_filled_point_by_point_and_drawn(data, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "STEPS", 1)
    monkeypatch.setattr(scaling, "WARM_UP", 1)
    monkeypatch.setattr(scaling, "TOKENS", 128)
    few = {"batch": (1, 2), "length": (32, 64), "vocabulary": (2000,), "rows": (30,)}
    monkeypatch.setattr(scaling, "CURVES", few)
    results = tmp_path / "scaling.json"
    given = (results, "--model", BASE, "--data", data)
    call(scaling, monkeypatch, *given, "--curves", "batch,length,vocabulary,rows")
    found = json.loads(results.read_text("utf-8"))
    assert {name: [p["x"] for p in points] for name, points in found["curves"].items()} == {
        name: list(points) for name, points in few.items()
    }
    for name in ("batch", "length", "vocabulary"):
        assert all(p["seconds"] > 0 and p["bytes"] > 1e8 for p in found["curves"][name])
    (start,) = found["curves"]["rows"]
    assert start["first"]["digests"] == start["second"]["digests"]
    assert start["first"]["tokens"] > 30 and start["second"]["first step seconds"] > 0
    assert {"command", "commit", "versions", "machine", "notes"} <= found.keys()
    assert all(point["commit"] for points in found["curves"].values() for point in points)

    def never(*given):
        raise AssertionError("measured again")

    for name in few:
        monkeypatch.setattr(scaling.Bench, name, never)
    call(scaling, monkeypatch, *given, "--curves", ",".join(few))
    call(scaling, monkeypatch, results, "--draw")
    assert results.with_suffix(".png").stat().st_size > 5_000


def test_the_curves_of_ranks_and_of_a_busy_machine_start_what_they_say(data, tmp_path, monkeypatch):
    asked = []

    def steps(self, rows, *, busy=False, ranks=1, **flags):
        asked.append((busy, ranks, flags["batch_size"]))
        return {}

    monkeypatch.setattr(scaling.Bench, "steps", steps)
    bench = scaling.Bench(str(BASE), str(data), tmp_path)
    bench.batch(4), bench.busy(4), bench.ranks(2)
    assert asked == [(False, 1, 4), (True, 1, 4), (False, 2, 16)]


def test_long_rows_fill_their_length():
    tokenizer = load_tokenizer(str(BASE))
    pairs = pocket_rows(20, 4)[0]
    rows = scaling.long_rows(pairs, 200)
    texts = [next(rows) for _ in range(5)]
    assert len({row["completion"] for row in texts}) == 5
    for row in texts:
        assert len(tokenizer(row["completion"])["input_ids"]) >= 200


@pytest.mark.parametrize("tokens, length", [([5, 1, 5, 5], 2), ([1, 1], 1), ([5, 5], 2)])
def test_a_padded_response_ends_with_its_stop_token(tokens, length):
    assert rollout_speed.length_of(tokens, [0, 1]) == length


def test_both_sides_draw_responses_of_the_same_kind(data, tmp_path, monkeypatch):
    """The same mean length within the noise of 300 draws, and a result for every cell."""
    tokenizer, model = load_tokenizer(str(BASE)), load_causal_lm(str(BASE), dtype="float32")
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in pocket_rows(20, 4)[0]] * 15
    sampling = Sampling(8, (tokenizer.eos_token_id,))
    means = []
    for side in rollout_speed.SIDES.values():
        lengths = torch.tensor(side(model, prompts, sampling, 0), dtype=torch.float64)
        assert len(lengths) == 300 and lengths.max() <= 8 and lengths.min() >= 1
        means.append(lengths.mean())
    assert abs(means[0] - means[1]) < 0.6
    flags = ("--model", BASE, "--data", data, "--rounds", 2, "--max_new_tokens", 4)
    call(rollout_speed, monkeypatch, tmp_path / "r.json", *flags, "--batches", "2,3")
    found = json.loads((tmp_path / "r.json").read_text("utf-8"))["found"]
    assert list(found) == [f"{n} prompts, {kind}" for n in (2, 3) for kind in ("ragged", "equal")]
    for cell in found.values():
        assert len(cell["rounds"]) == 2
        low, high = cell["95 %"]
        assert 0 < low <= cell["ours / generate"] <= high
