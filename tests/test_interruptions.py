"""A sample of tests/interruptions.py: one kill of each kind, every loss at least twice."""

import pytest
from interruptions import LOSSES, OF_PPO, POINTS, interrupted, left, start
from runs import pocket_rows, write_rows

SAMPLE = [
    ("sft", "data", 1),
    ("reward", "forward", 8),
    ("dpo", "accumulation", 14),
    ("orpo", "gradient", 5),
    ("ppo", "update", 7),  # the second pass over the second rollout
    ("dpo", "optimizer", 1),
    ("ppo", "updated", 8),
    ("reward", "log", 4),
    ("orpo", "logged", 10),
    ("sft", "evaluation", 3),
    ("ppo", "evaluated", 4),
    ("dpo", "save", 3),
    ("reward", "file", 5),
    ("sft", "sync", 30),
    ("orpo", "rename", 12),
    ("dpo", "renamed", 9),
    ("ppo", "prune", 1),
    ("sft", "pruned", 2),
    ("ppo", "rollout", 3),
    ("ppo", "sampled", 3),
    ("ppo", "rolled out", 2),
    ("dpo", "final", 1),
    ("reward", "summary", 1),
    ("sft", "finished", 1),
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """{loss: (data, what the run leaves)}, made when it is first asked for."""
    made = {}

    def get(loss):
        if loss not in made:
            folder = tmp_path_factory.mktemp(loss)
            data = write_rows(folder / "data", *pocket_rows(24, 8))
            done = start(loss, data, folder / "out")
            assert done.code == 0, done.err
            made[loss] = data, left(folder / "out")
        return made[loss]

    return get


@pytest.mark.parametrize("loss, point, number", SAMPLE)
def test_a_killed_run_goes_on_to_the_same_bits(unbroken, tmp_path, loss, point, number):
    data, whole = unbroken(loss)
    assert interrupted(loss, data, tmp_path / "out", point, number, whole) is None


def test_the_sample_has_every_point_and_every_loss():
    assert {point for _, point, _ in SAMPLE} == {*POINTS, *OF_PPO}
    assert {loss for loss, _, _ in SAMPLE} == set(LOSSES)
