"""Columns of a prompt's row reach the reward function that takes them, each with its own prompt."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from datafiles import USER, lines, write
from ppo_runs import QUICK, few_samples, starter
from ranks import run_on_two_ranks
from rollouts import SMALL, by_numbers, make_rollouts, prompts_of
from runs import no_model, random_llama, run
from small_tokenizers import chatml
from test_score import PROMPTS, RESPONSES

from data.errors import BAD_DATA, USAGE, InputError
from data.options import read_options
from data.pocket import pocket_reward
from data.prompts import TakenColumns, load_prompts
from rollout.score import score, taken_columns
from rollout.state import RolloutState
from rollout.steps import rollout_steps
from runtime.sources.heldout import evaluate_prompts

BY = "--reward my:f"
ANSWERS = [f"answer {i}" for i in range(10)]


# ------------------------------------------------------------------------------ what is taken


class Callable_:
    def __call__(self, prompts, responses, answer): ...


@pytest.mark.parametrize(
    "function, required, optional, everything",
    [
        (lambda prompts, responses: 0, "", "", False),
        (lambda p, r, answer: 0, "answer", "", False),
        (lambda p, r, answer, hint=None, **kwargs: 0, "answer", "hint", True),
        (lambda p, r, *, answer, hint="": 0, "answer", "hint", False),
        (lambda *both, answer: 0, "answer", "", False),
        (lambda p, r, *more: 0, "", "", False),
        (lambda p, r, /, answer: 0, "answer", "", False),
        (lambda *both, **everything: 0, "", "", True),
        (Callable_(), "answer", "", False),
        (partial(lambda weight, p, r, answer: 0, 2.0), "answer", "", False),
        (pocket_reward, "", "", False),
        (min, "", "", False),  # tells nothing of itself
        (print, "", "sep end file flush", False),
    ],
)
def test_field_40_what_a_function_takes_is_read_from_its_parameters(
    function, required, optional, everything
):
    found = taken_columns(function, BY)
    assert found.by == BY and found.everything == everything
    assert found.required == set(required.split()) and found.optional == set(optional.split())
    assert {"prompts", "responses"} <= found.reserved


def test_field_40_the_names_of_its_first_two_parameters_are_taken_too():
    assert {"questions", "texts"} <= taken_columns(lambda questions, texts, a: 0, BY).reserved


@pytest.mark.parametrize(
    "function, parameters",
    [
        (lambda completions, **kwargs: 0, "(completions, **kwargs)"),
        (lambda **kwargs: 0, "(**kwargs)"),
        (lambda *, prompts, responses: 0, "(*, prompts, responses)"),
        (lambda completions, prompts: 0, "(completions, prompts)"),
        (lambda completions, weight=1: 0, "(completions, weight=1)"),
        (lambda texts, prompts, answer: 0, "(texts, prompts, answer)"),
    ],
)
def test_field_40_a_function_that_cannot_be_given_two_lists_is_refused(function, parameters):
    with pytest.raises(InputError) as error:
        taken_columns(function, BY)
    line = str(error.value)
    assert line.startswith(f"{BY}: the function is called with a list of prompts and a list of")
    assert f"its parameters are {parameters};" in line and error.value.exit_code == USAGE


# ------------------------------------------------------------------------------ score


@pytest.mark.parametrize("size", [1, 4, 64])
def test_field_40_score_gives_every_row_its_own_values(size):
    rows = []

    def reward(prompts, responses, answer, **kwargs):
        assert type(answer) is list and kwargs.keys() == {"hint"}
        rows.extend(zip(prompts, responses, answer, kwargs["hint"], strict=True))
        answer.clear()  # its own lists, to do with as it likes
        return [0.0] * len(prompts)

    columns = {"answer": tuple(ANSWERS), "hint": [None, {"a": 1}] * 5}
    score(reward, PROMPTS, RESPONSES, columns, batch_size=size)
    assert rows == list(zip(PROMPTS, RESPONSES, ANSWERS, columns["hint"], strict=True))
    assert len(columns["answer"]) == 10


def test_field_40_the_row_that_raises_is_found_with_its_own_values():
    def reward(prompts, responses, answer):
        return [1 / (a != "answer 6") for a in answer]

    with pytest.raises(InputError, match="row 7 .prompt 'prompt 6'.*: it raises ZeroDivisionError"):
        score(reward, PROMPTS, RESPONSES, {"answer": ANSWERS}, batch_size=4)


def test_field_40_what_a_function_does_to_messages_stays_with_it():
    prompts = [[dict(USER)] for _ in range(3)]
    tests = [[1, 2], [3], []]

    def reward(prompts, responses, tests):
        for messages, response, test in zip(prompts, responses, tests, strict=True):
            messages.append({"role": "assistant", "content": response})
            messages[0]["content"] += "!"
            test.append(4)
        return [0.0] * len(prompts)

    for _ in range(2):
        score(reward, prompts, ["a", "b", "c"], {"tests": tests})
    assert prompts == [[USER]] * 3 and tests == [[1, 2], [3], []]


def test_field_40_columns_of_another_length_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        score(lambda p, r, a: [0.0] * len(p), PROMPTS, RESPONSES, {"a": ANSWERS[1:]})


# ------------------------------------------------------------------------------ from the file


def load(folder, rows, taken, name="a.jsonl", **options):
    """(prompt, columns) of every prompt, in the order of the file."""
    write(folder, {name: lines(*rows)})
    train, heldout, _ = load_prompts(str(folder / name), 0, taken=taken, **options)
    found = [(record.prompt, dict(record.columns)) for record in [*train, *heldout]]
    order = [row.get("prompt") or row.get("q") for row in rows]
    return sorted(found, key=lambda pair: order.index(pair[0]))


def takes(required="", optional="", everything=False):
    names = frozenset(required.split()), frozenset(optional.split())
    return TakenColumns(BY, *names, everything)


TWO = [{"prompt": f"p{i}", "answer": str(i), "id": 100 + i} for i in range(2)]


def test_field_40_a_prompt_keeps_the_columns_that_are_taken(tmp_path):
    assert load(tmp_path, TWO, takes()) == [("p0", {}), ("p1", {})]
    answers = [("p0", {"answer": "0"}), ("p1", {"answer": "1"})]
    assert load(tmp_path, TWO, takes("answer")) == answers
    assert load(tmp_path, TWO, takes("", "answer hint")) == answers  # hint: its own default
    whole = [({"answer": str(i), "id": 100 + i}) for i in range(2)]
    assert [c for _, c in load(tmp_path, TWO, takes("answer", "", True))] == whole


def test_field_40_rows_of_one_prompt_are_merged_where_nothing_that_is_taken_differs(tmp_path):
    rows = [row | {"id": 7 + n} for n, row in enumerate([*TWO, TWO[0]])]
    rows.append(TWO[1] | {"answer": "one"})
    assert len(load(tmp_path, rows, takes())) == 2
    assert len(load(tmp_path, rows, takes("", "unknown"))) == 2
    found = load(tmp_path, rows, takes("answer"))
    assert [(p, c["answer"]) for p, c in found] == [("p0", "0"), ("p1", "1"), ("p1", "one")]
    assert len(load(tmp_path, rows, takes("", "", True))) == 4  # id as well


def test_field_40_rows_that_differ_in_their_tools_are_two_prompts(tmp_path):
    asked = {"prompt": [USER]}
    rows = [asked, asked | {"tools": [{"name": "a"}]}, asked | {"tools": [{"name": "b"}]}, asked]
    rows.append(asked | {"chat_template_kwargs": {"thinking": False}})
    write(tmp_path, {"a.jsonl": lines(*rows)})
    taken = takes("", "tools")
    for one in (takes(), taken):
        train, heldout, _ = load_prompts(str(tmp_path / "a.jsonl"), 0, taken=one)
        assert len(train) + len(heldout) == 4
    found = [record.columns["tools"] for record in [*train, *heldout]]
    assert sorted(map(str, found)) == ["None", "None", "[{'name': 'a'}]", "[{'name': 'b'}]"]


def test_field_40_of_a_renamed_prompt_all_columns_keep_their_own_names(tmp_path):
    rows = [{"q": f"p{i}", "gold": i} for i in range(3)]
    options = read_options(columns="prompt=q")
    found = load(tmp_path, rows, takes("gold q"), options=options)
    assert found == [(f"p{i}", {"q": f"p{i}", "gold": i}) for i in range(3)]


def test_field_40_a_value_that_some_rows_lack_is_none_there(tmp_path):
    rows = [*TWO, {"prompt": "p2", "hint": "h"}]
    write(tmp_path, {"b.jsonl": lines({"prompt": "p0"})})
    found = load(tmp_path, rows, takes("", "answer hint"), eval_data=str(tmp_path / "b.jsonl"))
    assert found == [
        ("p0", {"answer": "0", "hint": None}),
        ("p0", {"answer": None, "hint": None}),  # of the held-out file
        ("p1", {"answer": "1", "hint": None}),
        ("p2", {"answer": None, "hint": "h"}),
    ]


def test_field_40_a_column_that_is_taken_is_not_said_to_be_unread(tmp_path):
    write(tmp_path, {"a.jsonl": lines(*TWO)})

    def told(taken):
        return load_prompts(str(tmp_path / "a.jsonl"), 0, taken=taken)[2]

    start = f"1 prompts of {tmp_path}/a.jsonl; 1 held out"
    assert told(takes()) == f"{start}; {tmp_path}/a.jsonl: columns not read: answer, id"
    assert told(takes("answer")) == f"{start}; {tmp_path}/a.jsonl: columns not read: id"
    assert told(takes("", "", True)) == start


@pytest.mark.parametrize(
    "rows, taken, code, reason",
    [
        (TWO, takes("gold"), USAGE, ": the function takes gold, and {0}:1 has no such column (the"),
        (TWO, takes("gold"), USAGE, "(the columns there are: answer, id); rename one, or give the"),
        ([{"prompt": "p0"}], takes("gold"), USAGE, "{0}:1 has no such column (it has no other"),
        ([*TWO, {"prompt": "p2"}], takes("id"), BAD_DATA, "takes id, and {0}:3 has no such"),
        ([TWO[0] | {"prompts": 1}], takes("prompts"), USAGE, "{0}:1 has a column prompts, and the"),
        ([TWO[0] | {"responses": 1}], takes("", "", True), USAGE, "has a column responses, and"),
    ],
)
def test_field_40_a_column_that_cannot_be_given_is_one_line(tmp_path, rows, taken, code, reason):
    with pytest.raises(InputError) as error:
        load(tmp_path, rows, taken)
    line = str(error.value)
    assert line.startswith(f"{BY}: ") and reason.format(tmp_path / "a.jsonl") in line
    assert error.value.exit_code == code and "\n" not in line


def test_field_40_names_that_a_function_does_not_take_are_free(tmp_path):
    rows = [row | {"prompts": 1, "responses": 2} for row in TWO]
    assert load(tmp_path, rows, takes("answer"))[0] == ("p0", {"answer": "0"})


def test_field_40_a_row_without_the_column_can_be_skipped_but_not_all(tmp_path):
    rows = [{"prompt": f"p{i}", "answer": i} for i in range(9)] + [{"prompt": "p9"}]
    options = read_options(bad_rows="skip")
    assert len(load(tmp_path, rows, takes("answer"), options=options)) == 9
    with pytest.raises(InputError) as error:
        load(tmp_path, rows, takes("gold"), options=options)
    assert error.value.exit_code == USAGE


# ------------------------------------------------------------------------------ through a run


def answered(count):
    """Prompts whose answer follows from their text."""
    return [replace(p, columns={"answer": p.text[::-1]}) for p in prompts_of(count)]


def asked_in_a_run():
    """[(prompt, response, answer)] of three rollouts, and of two evaluations on other prompts."""
    seen = []

    def reward(prompts, responses, answer):
        seen.extend(zip(prompts, responses, answer, strict=True))
        return by_numbers(prompts, responses)

    made, prompts = make_rollouts(SMALL, reward=reward), answered(17)
    state = RolloutState(kl_coef=0.0)
    for _ in rollout_steps(made, prompts[:12], batch_size=4, steps=12, seed=0, state=state):
        pass
    trained, held = seen[:], []
    for _ in range(2):
        seen.clear()
        evaluate_prompts(made, prompts[12:], seed=0, on_pocket=False)
        held.append(seen[:])
    return trained, *held


@pytest.fixture(scope="module")
def on_one():
    return asked_in_a_run()


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks("rank_reward.py", out)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_field_40_every_response_gets_the_answer_of_its_own_row(on_one):
    trained, held, again = on_one
    assert len(trained) == 3 * SMALL.rollout_size and len({p for p, *_ in trained}) == 12
    assert len({p for p, *_ in held}) == 5 and held == again
    for prompt, _, answer in [*trained, *held]:
        assert answer == prompt[::-1]
    assert [p for p, *_ in trained[:8]] != [p.text for p in answered(8)]  # shuffled


def test_field_40_so_it_does_over_two_ranks(on_one, on_two):
    for part, whole in enumerate(on_one):
        shares = [[tuple(row) for row in found[part]] for found in on_two]
        assert shares[0] and shares[1] and shares[0] != shares[1]
        for prompt, _, answer in [*shares[0], *shares[1]]:
            assert answer == prompt[::-1]
        assert Counter([*shares[0], *shares[1]]) == Counter(whole)


# ------------------------------------------------------------------------------ as a user runs it

REWARDS = """
def exact(prompts, responses, answer, **kwargs):
    assert kwargs.keys() == {"level"}, kwargs
    for prompt, gold in zip(prompts, answer):
        asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        assert asked.split()[1] == gold, (prompt, gold)
    return [float(gold) + len(response) / 1000 for response, gold in zip(responses, answer)]
def missing(prompts, responses, gold): raise AssertionError("not to be called")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rows = [{"prompt": f"double {i} is", "answer": str(i), "level": i % 3} for i in range(30)]
    chats = [row | {"prompt": [USER | {"content": row["prompt"]}]} for row in rows]
    files = {"my_golds.py": REWARDS, "p.jsonl": lines(*rows), "c.jsonl": lines(*chats)}
    return write(tmp_path_factory.mktemp("golds"), files)


@pytest.mark.parametrize("prompts", ["p.jsonl", "c.jsonl"])
def test_field_40_a_run_scores_by_the_gold_answer(tmp_path_factory, folder, prompts):
    flags = ["--prompts", prompts, "--reward", "my_golds:exact"]
    if prompts == "c.jsonl":
        flags += ["--model", random_llama(folder / "model", chatml()), "--learning_rate", 1e-4]
    out, told = starter(tmp_path_factory)(*QUICK, *flags, cwd=folder)
    assert "columns not read" not in told
    samples = [json.loads(row) for row in (out / "samples.jsonl").read_text().splitlines()]
    given = [json.loads(row)["prompt"] for row in (folder / prompts).read_text().splitlines()]
    for sample in samples:
        gold = given.index(sample["prompt"])  # strings as strings, messages as messages
        assert sample["score"] == pytest.approx(gold + len(sample["response"]) / 1000)


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--prompts", "p.jsonl"], "p.jsonl:1 has no such column (the columns there are: answer,"),
        ([], "pocket has no such column (it has no other columns)"),
    ],
)
def test_field_40_a_column_that_is_not_there_is_said_before_a_model_is_loaded(folder, flags, line):
    flags = ["--loss", "ppo", *QUICK, *flags, "--reward", "my_golds:missing"]
    done = run(*flags, cwd=folder, before=no_model)
    assert done.code == USAGE
    assert done.line.startswith(f"--reward my_golds:missing: the function takes gold, and {line}")


def no_sampling():
    few_samples()
    no_model()


def test_field_7_messages_and_a_reward_model_without_a_template_are_one_line(folder, tmp_path):
    model = random_llama(tmp_path / "model", chatml())
    flags = ["--prompts", "c.jsonl", "--model", model, "--reward", "pocket"]
    done = run("--loss", "ppo", *QUICK, *flags, cwd=folder, before=no_sampling)
    assert done.code == USAGE
    assert done.line.startswith("--reward pocket: its tokenizer has no chat template, and the pro")
