"""Where prompts are from, and what becomes of each."""

import pytest
from datafiles import PAIR, PIQA, USER, lines, write
from small_tokenizers import ALL, chatml, gpt2

from data.encode import encode_records
from data.errors import InputError
from data.pocket import heldout_prompts, train_prompts
from data.prompts import encode_prompts, load_prompts
from data.rows import Record

GOALS = [{k: v for k, v in PIQA.items() if k != "label"} | {"goal": f"goal {i}"} for i in range(30)]
ASKED = [{"prompt": f"Is {i} odd?"} for i in range(30)]
MESSAGES = [{"prompt": [USER | {"content": f"hi {i}"}]} for i in range(30)]


def load(folder, files, name="", **options):
    return load_prompts(str(write(folder, files) / name), 0, **options)


def texts(records):
    return [record.prompt for record in records]


def test_pocket_has_its_own_prompts():
    train, heldout, told = load_prompts("pocket", 0)
    assert (texts(train), texts(heldout)) == (train_prompts(), heldout_prompts())
    assert told == f"{len(train)} prompts of pocket; {len(heldout)} held out"
    assert [text for text, _ in encode_prompts(train[:3], gpt2(), 64)] == train_prompts()[:3]


def test_a_file_gives_its_prompts_and_holds_a_tenth_out(tmp_path):
    train, heldout, told = load(tmp_path, {"a.jsonl": lines(*ASKED)}, "a.jsonl")
    assert len(heldout) == 3
    assert sorted(texts(train + heldout)) == sorted(row["prompt"] for row in ASKED)
    assert told == f"27 prompts of {tmp_path}/a.jsonl; 3 held out"
    again, other = (load_prompts(str(tmp_path / "a.jsonl"), seed) for seed in (0, 1))
    assert texts(again[1]) == texts(heldout) != texts(other[1])


def test_a_piqa_directory_gives_its_goals(tmp_path):
    """Worded as in training; the labels are not looked for."""
    files = {"train.jsonl": lines(*GOALS[:20]), "valid.jsonl": lines(*GOALS[18:])}
    train, heldout, told = load(tmp_path, files)
    assert texts(train) == [f"Question: goal {i}\nAnswer:" for i in range(20)]
    assert texts(heldout) == [f"Question: goal {i}\nAnswer:" for i in range(18, 30)]
    assert told == f"20 prompts of {tmp_path}; 12 held out (2 of them also in train)"


@pytest.mark.parametrize(
    "rows", [GOALS, [{"goal": r["goal"]} for r in GOALS]], ids=["sols", "bare"]
)
def test_unlabelled_goals_serve_too(tmp_path, rows):
    train, heldout, _ = load(tmp_path, {"tests.jsonl": lines(*rows)}, "tests.jsonl")
    want = {f"Question: goal {i}\nAnswer:" for i in range(30)}
    assert {*texts(train), *texts(heldout)} == want


def test_preference_rows_and_other_columns_serve_too(tmp_path):
    rows = [PAIR | {"prompt": f"p{i}", "goal": "not this"} for i in range(20)]
    train, heldout, _ = load(tmp_path, {"a.jsonl": lines(*rows)}, "a.jsonl")
    assert {*texts(train), *texts(heldout)} == {f"p{i}" for i in range(20)}


def test_a_prompt_that_comes_twice_is_taken_once(tmp_path):
    rows = [row for row in ASKED[:20] for _ in range(3)]
    train, heldout, _ = load(tmp_path, {"a.jsonl": lines(*rows)}, "a.jsonl")
    assert len(train) == 18 and len(heldout) == 2


def test_held_out_prompts_and_column_names_can_be_given(tmp_path):
    files = {"a.jsonl": lines(*({"q": f"q{i}"} for i in range(5))), "b.jsonl": lines(*ASKED)}
    options = dict(eval_data=str(tmp_path / "b.jsonl"))
    train, heldout, told = load(tmp_path, files, "a.jsonl", columns={"prompt": "q"}, **options)
    assert texts(train) == [f"q{i}" for i in range(5)]
    assert texts(heldout) == [row["prompt"] for row in ASKED]
    assert told == f"5 prompts of {tmp_path}/a.jsonl; 30 held out"
    both = {"both/train.jsonl": lines(*ASKED[:9]), "both/valid.jsonl": lines(*ASKED[9:12])}
    train, heldout, _ = load(tmp_path, both, "both", eval_data=str(tmp_path / "b.jsonl"))
    assert (len(train), len(heldout)) == (9, 30)  # before the source's own
    options = dict(eval_data=str(tmp_path / "both"), columns={"prompt": "q"})
    _, heldout, _ = load(tmp_path, files, "a.jsonl", **options)
    # of its two parts, the held-out one
    assert texts(heldout) == [row["prompt"] for row in ASKED[9:12]]


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"text": "hi"}, "prompt: missing; give `prompt`, or PIQA's `goal`"),
        ({"prompt": ""}, "prompt: missing; give `prompt`, or PIQA's `goal`"),
        ({"prompt": []}, "prompt: missing; give `prompt`, or PIQA's `goal`"),
        ({"goal": " "}, "prompt: missing; give `prompt`, or PIQA's `goal`"),
        ({"goal": 3}, "prompt: missing; give `prompt`, or PIQA's `goal`"),
        ({"prompt": 3}, "prompt: 3 is not a string; give a string"),
        ({"prompt": "a\0b"}, "prompt: a NUL at 1; remove it"),
        ({"prompt": ["hi"]}, "prompt: message 1 is not an object with role and content; give "),
        ({"prompt": [{"role": "me", "content": "hi"}]}, "prompt: message 1 has the role 'me'; "),
    ],
)
def test_a_row_without_a_prompt_is_named(tmp_path, row, reason):
    with pytest.raises(InputError) as error:
        load(tmp_path, {"a.jsonl": lines(ASKED[0], row)}, "a.jsonl")
    assert str(error.value).startswith(f"{tmp_path}/a.jsonl:2:{reason}")
    assert "\n" not in str(error.value)


def test_one_prompt_alone_leaves_none_to_hold_out(tmp_path):
    with pytest.raises(InputError, match=r"a.jsonl:1: one row cannot be split"):
        load(tmp_path, {"a.jsonl": lines(ASKED[0], ASKED[0])}, "a.jsonl")


# --- token ids -----------------------------------------------------------------------------------


# "merging" has tokens that hold a prompt's end and a response's start: no split suits them all.
@pytest.mark.parametrize("name", sorted(ALL.keys() - {"merging"}))
def test_ids_are_those_that_stand_before_a_response_in_training(name):
    """E3 for the policy: sampling goes on from where training's responses begin."""
    tokenizer = ALL[name]()
    prompts = [f"Question: how do I carry {i}?\nAnswer:" for i in ("soup", "hot tea", "a shell")]
    records = [Record(prompt, " a", None) for prompt in prompts]
    found = encode_prompts(records, tokenizer, 64)
    assert [text for text, _ in found] == prompts
    for (_, ids), prompt in zip(found, prompts, strict=True):
        for response in (" A bowl will do.", " She sells it."):
            trained = encode_records([Record(prompt, response, None)], tokenizer).rows[0]
            assert trained.prompt == ids


def test_messages_go_through_the_chat_template(tmp_path):
    train, _, _ = load(tmp_path, {"a.jsonl": lines(*MESSAGES)}, "a.jsonl")
    tokenizer = chatml()
    text, ids = encode_prompts(train, tokenizer, 64)[0]
    assert text == f"<|im_start|>user\n{train[0].prompt[0]['content']}<|im_end|>\n" + (
        "<|im_start|>assistant\n"
    )
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_messages_without_a_template_name_their_row(tmp_path):
    train, _, _ = load(tmp_path, {"a.jsonl": lines(*MESSAGES)}, "a.jsonl")
    with pytest.raises(InputError, match=r"/a.jsonl:1:prompt: these are chat messages and the"):
        encode_prompts(train, gpt2(), 64)


def test_a_prompt_that_leaves_no_room_is_left_out(tmp_path):
    records = [Record(prompt, " a", None) for prompt in ("short", "long " * 40, "brief")]
    assert [text for text, _ in encode_prompts(records, gpt2(), 32)] == ["short", "brief"]
    with pytest.raises(InputError, match="^none of 1 rows is left"):
        encode_prompts(records[1:2], gpt2(), 32)
