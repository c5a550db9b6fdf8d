"""Rewards: a user's function, checked row by row. A trained reward model: test_score_model.py."""

import os
import sys
from functools import partial

import numpy as np
import pytest
import torch

from data.errors import NO_INPUT, USAGE, InputError
from rollout.score import load_reward, score

PROMPTS = [f"prompt {i}" for i in range(10)]
RESPONSES = [f"response {'x' * i}" for i in range(10)]
LENGTHS = [float(len(response)) for response in RESPONSES]


def lengths(prompts, responses):
    return [len(response) for response in responses]


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    return text


# --- the checks around a function


@pytest.mark.parametrize(
    "form",
    [list, tuple, np.array, torch.tensor, partial(torch.tensor, dtype=torch.bfloat16)]
    + [lambda x: np.array(x, dtype=np.float32), lambda x: [torch.tensor(v) for v in x]]
    + [
        lambda x: [np.float64(v) for v in x],
        lambda x: torch.tensor(x) * torch.ones(1, requires_grad=True),
    ],
)
def test_all_usual_forms_of_a_list_of_numbers_are_taken(form):
    scores = score(lambda p, r: form(lengths(p, r)), PROMPTS, RESPONSES)
    assert scores == LENGTHS
    assert all(type(value) is float for value in scores)


def test_truth_values_and_zero_are_scores():
    """E12: 0.0 is a score like others, not a missing one."""
    assert score(lambda p, r: [x.endswith("xx") for x in r], PROMPTS[:3], RESPONSES[:3]) == [
        0,
        0,
        1,
    ]
    assert score(lambda p, r: [0.0] * len(r), PROMPTS, RESPONSES) == [0.0] * 10
    assert score(lambda p, r: np.zeros(len(r), dtype=bool), PROMPTS, RESPONSES) == [0.0] * 10


@pytest.mark.parametrize("size, calls", [(4, [4, 4, 2]), (5, [5, 5]), (1, [1] * 10), (64, [10])])
def test_calls_are_made_in_batches_and_in_order(size, calls):
    seen = []

    def reward(prompts, responses):
        assert [p[-1] for p in prompts] == [str(len(r) - 9) for r in responses]
        seen.append(len(prompts))
        scores = lengths(prompts, responses)
        prompts.clear()  # what it does to its lists must not reach ours
        responses.reverse()
        return scores

    prompts, responses = list(PROMPTS), list(RESPONSES)
    assert score(reward, prompts, responses, batch_size=size) == LENGTHS
    assert seen == calls
    assert (prompts, responses) == (PROMPTS, RESPONSES)
    assert score(reward, [], []) == [] and seen == calls


def put(value, at):
    """A reward that gives `value` where the response has `at` x's."""
    return lambda p, r: [value if len(x) == 9 + at else 1.0 for x in r]


@pytest.mark.parametrize(
    "value, reason",
    [
        (float("nan"), "its score nan is not finite"),
        (float("inf"), "its score inf is not finite"),
        (-float("inf"), "its score -inf is not finite"),
        (10**400, "is not finite"),
        (np.float32("nan"), "its score nan is not finite"),
        (torch.tensor(float("nan")), "its score nan is not finite"),
        (None, "its score None is not a number"),
        ("0.5", "its score '0.5' is not a number"),
        (1j, "its score 1j is not a number"),
        ([0.5], "its score [0.5] is not a number"),
        (torch.tensor([0.5]), "its score tensor([0.5000]) is not a number"),
    ],
    ids=str,
)
def test_a_score_that_is_none_names_its_row(value, reason):
    with pytest.raises(InputError) as error:
        score(put(value, 6), PROMPTS, RESPONSES, batch_size=4)
    line = one_line(error)
    assert reason in line
    assert "row 7 (prompt 'prompt 6', response 'response xxxxxx'): " in line
    assert "put.<locals>.<lambda>" in line


@pytest.mark.parametrize(
    "returned, reason",
    [
        ([1.0, 2.0, 3.0], "it returns 3 scores for 4 rows"),
        ([1.0] * 5, "it returns 5 scores for 4 rows"),
        (np.ones(3), "it returns 3 scores for 4 rows"),
        ([], "it returns 0 scores for 4 rows"),
        (torch.ones(4, 1), "it returns shape (4, 1); a score a row is shape (4,)"),
        (np.ones((1, 4)), "it returns shape (1, 4)"),
        (torch.tensor(1.0), "it returns a Tensor, not a list"),
        (1.0, "it returns a float, not a list"),
        (None, "it returns a NoneType, not a list"),
        ("1234", "it returns a str, not a list"),
        ({0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}, "it returns a dict, not a list"),
        ((x for x in [1.0] * 4), "it returns a generator, not a list"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_another_shape_names_the_rows_of_the_call(returned, reason):
    seen = []

    def reward(prompts, responses):
        seen.append(len(prompts))
        return [1.0] * 4 if len(seen) == 1 else returned

    with pytest.raises(InputError) as error:
        score(reward, PROMPTS, RESPONSES, batch_size=4)
    line = one_line(error)
    assert reason in line and "rows 5 to 8 (prompt 'prompt 4', response 'response xxxx'): " in line
    assert "test_another_shape_names_the_rows_of_the_call.<locals>.reward" in line


def test_an_exception_names_the_row_that_raises_it():
    def reward(prompts, responses):
        return [1 / (len(response) - 14) for response in responses]

    with pytest.raises(InputError) as error:
        score(reward, PROMPTS, RESPONSES, batch_size=4)
    line = one_line(error)
    assert (
        "row 6 (prompt 'prompt 5', response 'response xxxxx'): it raises ZeroDivisionError" in line
    )
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_an_exception_of_a_whole_batch_names_its_rows():
    def reward(prompts, responses):
        if len(prompts) > 1:
            raise MemoryError
        return [1.0]

    with pytest.raises(InputError) as error:
        score(reward, PROMPTS, RESPONSES)
    assert "rows 1 to 10 (prompt 'prompt 0', response 'response '): it raises" in one_line(error)
    assert one_line(error).endswith("MemoryError")


def test_messages_stay_short_and_on_one_line():
    def reward(prompts, responses):
        raise RuntimeError("first\nsecond   line " + "and so on " * 100)

    with pytest.raises(InputError) as error:
        score(reward, ["p\n" * 500], ["r\n" * 500])
    assert "it raises RuntimeError: first second line and so on" in one_line(error)


@pytest.mark.parametrize("more", [0, 1])
def test_a_reason_is_cut_where_it_is_longer_than_160_characters(more):
    told = "RuntimeError: " + "x" * 100
    told += "y" * (160 + more - len(told))

    def reward(prompts, responses):
        raise RuntimeError(told.removeprefix("RuntimeError: "))

    with pytest.raises(InputError) as error:
        score(reward, PROMPTS[:1], RESPONSES[:1])
    assert one_line(error).endswith(f": it raises {told[:157] + '...' if more else told}")


def test_only_the_colon_of_an_error_without_a_message_is_left_out():
    def reward(prompts, responses):
        raise KeyError if len(prompts) > 1 else RuntimeError("no X")

    with pytest.raises(InputError) as error:
        score(reward, PROMPTS[:1], RESPONSES[:1])
    assert one_line(error).endswith("it raises RuntimeError: no X")


def test_an_async_function_is_refused_without_a_warning(recwarn):
    async def reward(prompts, responses):
        return [1.0] * len(prompts)

    with pytest.raises(InputError, match="it is an async function; give one that returns the scor"):
        score(reward, ["a"], ["b"])
    assert not recwarn.list


def test_what_cannot_become_a_list_is_one_line():
    class Odd:
        def tolist(self):
            raise RuntimeError("not now")

    with pytest.raises(InputError, match="what it returns cannot be a list: RuntimeError: not now"):
        score(lambda prompts, responses: Odd(), ["a"], ["b"])


def test_a_child_that_a_function_forks_does_not_go_on(tmp_path):
    def reward(prompts, responses):
        if os.fork() != 0:
            os.wait()
        return [1.0] * len(prompts)

    assert score(reward, ["a"], ["b"]) == [1.0]
    with open(tmp_path / "who", "a", encoding="utf-8") as file:
        file.write("one\n")
    assert (tmp_path / "who").read_text("utf-8") == "one\n"


@pytest.mark.parametrize("enabled", [True, False])
def test_a_function_that_switches_gradients_switches_its_own(enabled):
    def reward(prompts, responses):
        torch.set_grad_enabled(not enabled)
        return [1.0] * len(prompts)

    with torch.set_grad_enabled(enabled):
        score(reward, ["a"], ["b"])
        assert torch.is_grad_enabled() == enabled


def test_an_object_that_can_be_called_goes_by_its_class():
    class Reward:
        def __call__(self, prompts, responses):
            return None

    with pytest.raises(InputError, match="reward Reward, row 1 "):
        score(Reward(), PROMPTS[:1], RESPONSES[:1])
    with pytest.raises(InputError, match="reward partial, row 1 "):
        score(partial(Reward()), PROMPTS[:1], RESPONSES[:1])


def test_an_interrupt_is_not_an_error_of_the_function():
    def reward(prompts, responses):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(reward, PROMPTS, RESPONSES)


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        score(lengths, PROMPTS, RESPONSES[:-1])
    with pytest.raises(ValueError, match="do not fit"):
        score(lengths, PROMPTS, RESPONSES, batch_size=0)


# --- module:function


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the current directory, which is not on sys.path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    known = set(sys.modules)

    def write(text, name="my_rewards"):
        (tmp_path / f"{name}.py").write_text(text, "utf-8")

    yield write
    for name in set(sys.modules) - known:
        if name.startswith("my_"):
            del sys.modules[name]


def test_a_function_in_a_file_of_the_current_directory(module):
    body = "def longer(prompts, responses):\n    return [scale * len(r) for r in responses]\n"
    module(f"from my_other import scale\n{body}")
    module("scale = 2\n", "my_other")
    reward = load_reward("my_rewards:longer")
    assert score(reward, PROMPTS, RESPONSES) == [2 * n for n in LENGTHS]
    with pytest.raises(InputError, match="reward my_rewards:longer, row 2 "):
        score(reward, ["p", "q"], ["r", None])


def test_installed_modules_go_before_files_of_the_same_name(module):
    module("", "colorsys")
    sys.modules.pop("colorsys", None)
    assert load_reward("colorsys:rgb_to_hsv")(0, 0, 0) == (0, 0, 0)  # type: ignore[call-arg]
    assert load_reward("os.path:join") is os.path.join


@pytest.mark.parametrize(
    "spec, code, reason",
    [
        ("my_rewards", USAGE, "is not of the form module:function"),
        ("my_rewards:", USAGE, "is not of the form module:function"),
        (":f", USAGE, "is not of the form module:function"),
        ("my_rewards.py:f", USAGE, "no path, no .py"),
        ("./my_rewards:f", USAGE, "is not of the form module:function"),
        ("my_rewards:f:g", USAGE, "is not of the form module:function"),
        ("my_missing:f", NO_INPUT, "no module my_missing, neither installed nor in this directory"),
        ("my_missing.deep:f", NO_INPUT, "no module my_missing, neither installed"),
        ("my_rewards:lenght", NO_INPUT, "my_rewards has no lenght; did you mean length?"),
        ("my_rewards:zzzzzz", NO_INPUT, "my_rewards has no zzzzzz"),
        ("my_rewards:WEIGHT", USAGE, "WEIGHT is of type float, not a function"),
        ("my_nested:f", NO_INPUT, "raises ModuleNotFoundError: No module named 'my'"),
        ("my_importer:f", NO_INPUT, "raises ModuleNotFoundError: No module named 'my_absent'"),
        ("my_broken:f", NO_INPUT, "importing my_broken raises SyntaxError"),
        ("my_raising:f", NO_INPUT, "importing my_raising raises ValueError: two lines"),
    ],
)
def test_what_cannot_be_loaded_says_why_in_one_line(module, spec, code, reason):
    module("WEIGHT = 2.0\ndef length(prompts, responses):\n    return [1.0]\n")
    module("import my_absent\n", "my_importer")
    module("import my\n", "my_nested")
    module("def f(:\n", "my_broken")
    module("raise ValueError('two\\nlines')\n", "my_raising")
    with pytest.raises(InputError) as error:
        load_reward(spec)
    assert reason in one_line(error) and spec in one_line(error)
    assert error.value.exit_code == code
    if "zzzzzz" in spec:  # nothing is like it
        assert one_line(error).endswith(reason)
