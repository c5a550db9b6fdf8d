"""Where prompts are from, and what becomes of each."""

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from datafiles import BAD, GOOD, PAIR, PIQA, USER, lines, write
from small_tokenizers import ALL, chatml, gemma, gpt2, llama

from data.encode import encode_records
from data.errors import InputError
from data.options import read_options
from data.pocket import heldout_prompts, train_prompts
from data.prompts import encode_prompts, load_prompts
from data.rows import Record
from data.sources import Part, Source

GOALS = [{k: v for k, v in PIQA.items() if k != "label"} | {"goal": f"goal {i}"} for i in range(30)]
ASKED = [{"prompt": f"Is {i} odd?"} for i in range(30)]
MESSAGES = [{"prompt": [USER | {"content": f"hi {i}"}]} for i in range(30)]

TRL = importlib.util.find_spec("trl")
TEMPLATES = sorted(Path(TRL.origin).parent.glob("chat_templates/*.jinja")) if TRL else []


def load(folder, files, name="", **options):
    return load_prompts(str(write(folder, files) / name), 0, **options)


def texts(records):
    return [record.prompt for record in records]


def encoded(records, tokenizer, max_length=64):
    """(text, ids) of each prompt that is left."""
    found = encode_prompts(records, tokenizer, max_length).prompts
    return [(record.prompt, ids) for record, ids in found]


def test_pocket_has_its_own_prompts():
    train, heldout, told = load_prompts("pocket", 0)
    assert (texts(train), texts(heldout)) == (train_prompts(), heldout_prompts())
    assert told == f"{len(train)} prompts of pocket; {len(heldout)} held out"
    assert [text for text, _ in encoded(train[:3], gpt2())] == train_prompts()[:3]


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
    files, options = {"a.jsonl": lines(*rows)}, read_options(ignore="goal")
    train, heldout, _ = load(tmp_path, files, "a.jsonl", options=options)
    assert {*texts(train), *texts(heldout)} == {f"p{i}" for i in range(20)}
    with pytest.raises(InputError, match="a.jsonl:1:goal: a part of the prompt that nothing reads"):
        load(tmp_path, files, "a.jsonl")


def test_a_prompt_that_comes_twice_is_taken_once(tmp_path):
    rows = [row for row in ASKED[:20] for _ in range(3)]
    train, heldout, _ = load(tmp_path, {"a.jsonl": lines(*rows)}, "a.jsonl")
    assert len(train) == 18 and len(heldout) == 2


def test_held_out_prompts_and_column_names_can_be_given(tmp_path):
    files = {"a.jsonl": lines(*({"q": f"q{i}"} for i in range(5))), "b.jsonl": lines(*ASKED)}
    named = read_options(columns="prompt=q")
    options = dict(eval_data=str(tmp_path / "b.jsonl"), options=named)
    train, heldout, told = load(tmp_path, files, "a.jsonl", **options)
    assert texts(train) == [f"q{i}" for i in range(5)]
    assert texts(heldout) == [row["prompt"] for row in ASKED]
    assert told == f"5 prompts of {tmp_path}/a.jsonl; 30 held out"
    both = {"both/train.jsonl": lines(*ASKED[:9]), "both/valid.jsonl": lines(*ASKED[9:12])}
    train, heldout, _ = load(tmp_path, both, "both", eval_data=str(tmp_path / "b.jsonl"))
    assert (len(train), len(heldout)) == (9, 30)  # before the source's own
    options = dict(eval_data=str(tmp_path / "both"), options=named)
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


def test_held_out_prompts_are_drawn_before_weights_count(monkeypatch):
    rows = [("here", row) for row in ASKED]
    found = [Source(Part("here", rows), None, weight=3.0)]
    monkeypatch.setattr("data.prompts.open_sources", lambda *_, **__: found)
    train, heldout, _ = load_prompts("here", 0)
    assert (len(train), len(heldout)) == (81, 3)
    assert len({*texts(train)}) == 27 and not {*texts(train)} & {*texts(heldout)}


def test_one_prompt_alone_leaves_none_to_hold_out(tmp_path):
    with pytest.raises(InputError, match=r"a.jsonl:1: one row cannot be split"):
        load(tmp_path, {"a.jsonl": lines(ASKED[0], ASKED[0])}, "a.jsonl")


# --- the prompt that another loss finds ----------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [USER, GOOD, USER | {"content": "and?"}]
SAID = "\n\nHuman: hi\n\nAssistant: good\n\nHuman: and?\n\nAssistant:"
SHARE_GPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "good"}]
SUM = "\n\n### Instruction:\nAdd.\n\n### Input:\n2 and 2\n\n### Response:\n"


@pytest.mark.parametrize(
    "row, prompt",
    [
        # what both responses begin with
        ({"chosen": "Is it odd? Yes.", "rejected": "Is it odd? No."}, "Is it odd?"),
        ({"chosen": f"{SAID} Yes.", "rejected": f"{SAID} Yes, it is."}, SAID),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
        ({"chosen": [SYSTEM, *TURNS, GOOD], "rejected": [SYSTEM, *TURNS, BAD]}, [SYSTEM, *TURNS]),
        # a prompt in a column of its own: responses are not looked at
        ({"prompt": "Is it odd?", "completion": " Yes."}, "Is it odd?"),
        ({"prompt": "Is it odd?", "chosen": " Yes.", "rejected": " Yes."}, "Is it odd?"),
        ({"prompt": "Is it odd?", "completion": " No.", "label": False}, "Is it odd?"),
        ({"prompt": TURNS, "chosen": [GOOD], "rejected": [BAD]}, TURNS),
        ({"prompt": [USER, GOOD]}, [USER, GOOD]),
        (PIQA | {"label": -1}, "Question: g\nAnswer:"),
        # UltraFeedback's and ultrachat's: the same prompt as a string
        ({"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
        ({"prompt": "hi", "prompt_id": "x", "messages": [*TURNS, GOOD]}, TURNS),
        # conversations, up to the last answer, or as far as they go
        ({"messages": [*TURNS, GOOD]}, TURNS),
        ({"messages": TURNS}, TURNS),
        ({"messages": [SYSTEM, USER]}, [SYSTEM, USER]),
        ({"conversations": SHARE_GPT}, [USER]),
        ({"text": f"{SAID} Yes."}, SAID),
        # Alpaca's
        ({"instruction": "Add.", "input": "2 and 2", "output": "4"}, ...),
    ],
)
def test_field_16_a_prompt_is_found_wherever_another_loss_finds_one(tmp_path, row, prompt):
    write(tmp_path, {"a.jsonl": lines(row), "b.jsonl": lines(row)})
    train, heldout, _ = load_prompts(str(tmp_path / "a.jsonl"), 0, eval_data=f"{tmp_path}/b.jsonl")
    assert texts(train) == texts(heldout)
    (found,) = texts(train)
    assert found.endswith(SUM) if prompt is ... else found == prompt
    tokenizer = gpt2() if isinstance(found, str) else chatml()
    assert len(encoded(train, tokenizer, 512)) == 1


def test_field_16_transcripts_that_another_loss_refuses_are_refused(tmp_path):
    rows = [
        {"chosen": f"{SAID} Yes.", "rejected": f"{SAID} No."},
        {
            "chosen": "\n\nHuman: A joke\n\nAssistant: ha",
            "rejected": "\n\nHuman: b\n\nAssistant: c",
        },
    ]
    with pytest.raises(InputError, match="a.jsonl:2:rejected: the two transcripts differ before"):
        load(tmp_path, {"a.jsonl": lines(*rows)}, "a.jsonl")


@pytest.mark.parametrize(
    "row, flags, reason",
    [
        (
            {"question": "Is it?", "chosen": "Yes.", "rejected": "No."},
            {},
            "question: a text column",
        ),
        ({"chosen": "Yes.", "rejected": "No."}, {}, "prompt: missing; give `prompt`, or PIQA's"),
        ({"text": "The sea is blue."}, {}, "prompt: missing; give `prompt`"),
        ({"messages": [GOOD]}, {}, "prompt: missing; give `prompt`"),
        ({"q": "hi"}, {}, "prompt: missing; give `prompt`, or PIQA's `goal`, or name yours: --col"),
        ({"prompt": "hi", "system": "Be brief."}, {}, "system: a system prompt that nothing reads"),
        (
            {"prompt": "hi", "context": "a b"},
            {},
            "context: a part of the prompt that nothing reads",
        ),
        (
            {"question": "Why is it so?", "chosen": "It is a.", "rejected": "It is b."},
            {},
            "question: a text column that nothing reads",
        ),
    ],
)
def test_field_16_a_prompt_that_is_not_whole_is_refused(tmp_path, row, flags, reason):
    with pytest.raises(InputError) as error:
        load(tmp_path, {"a.jsonl": lines(row, row)}, "a.jsonl", options=read_options(**flags))
    assert str(error.value).startswith(f"{tmp_path}/a.jsonl:1:{reason}")


def test_field_16_a_system_column_and_chat_make_messages(tmp_path):
    rows = [{"question": f"hi {i}", "system": "Be brief."} for i in range(10)]
    flags = dict(columns="prompt=question,system=system", chat=True)
    options = read_options(**flags)
    train, _, told = load(tmp_path, {"a.jsonl": lines(*rows)}, "a.jsonl", options=options)
    assert train[0].prompt in [[SYSTEM, USER | {"content": f"hi {i}"}] for i in range(10)]
    assert told == f"9 prompts of {tmp_path}/a.jsonl; 1 held out"
    alpaca = [{"instruction": f"Add {i}.", "output": "4", "sys": "Be brief."} for i in range(2)]
    options = read_options(columns="system=sys")
    train, _, _ = load(tmp_path, {"b.jsonl": lines(*alpaca)}, "b.jsonl", options=options)
    assert train[0].prompt.count("Be brief.") == 1


def test_field_16_bad_rows_can_be_skipped_and_are_counted(tmp_path):
    rows = [*ASKED[:9], {"prompt": ""}]
    options = read_options(bad_rows="skip")
    train, heldout, told = load(tmp_path, {"a.jsonl": lines(*rows)}, "a.jsonl", options=options)
    where = f"{tmp_path}/a.jsonl"
    assert (len(train), len(heldout)) == (8, 1)
    assert f"{where}: 1 bad row skipped, first: {where}:10:prompt: missing; give" in told
    with pytest.raises(InputError, match="5 of 14 rows are bad, too many to skip"):
        load(tmp_path, {"a.jsonl": lines(*rows, *[{"prompt": ""}] * 4)}, "a.jsonl", options=options)


# --- token ids -----------------------------------------------------------------------------------


# "merging" has tokens that hold a prompt's end and a response's start: no split suits them all.
@pytest.mark.parametrize("name", sorted(ALL.keys() - {"merging"}))
def test_ids_are_those_that_stand_before_a_response_in_training(name):
    """E3 for the policy: sampling goes on from where training's responses begin."""
    tokenizer = ALL[name]()
    prompts = [f"Question: how do I carry {i}?\nAnswer:" for i in ("soup", "hot tea", "a shell")]
    records = [Record(prompt, " a", None) for prompt in prompts]
    found = encoded(records, tokenizer)
    assert [text for text, _ in found] == prompts
    for (_, ids), prompt in zip(found, prompts, strict=True):
        for response in (" A bowl will do.", " She sells it."):
            trained = encode_records([Record(prompt, response, None)], tokenizer).rows[0]
            assert trained.prompt == ids


def test_messages_go_through_the_chat_template(tmp_path):
    train, _, _ = load(tmp_path, {"a.jsonl": lines(*MESSAGES)}, "a.jsonl")
    tokenizer = chatml()
    asked, ids = encoded(train, tokenizer)[0]
    assert asked == train[0].prompt
    text = f"<|im_start|>user\n{asked[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_messages_without_a_template_name_their_row(tmp_path):
    train, _, _ = load(tmp_path, {"a.jsonl": lines(*MESSAGES)}, "a.jsonl")
    with pytest.raises(InputError, match=r"/a.jsonl:1:prompt: these are chat messages and the"):
        encode_prompts(train, gpt2(), 64)


def test_a_prompt_that_leaves_no_room_is_left_out(tmp_path):
    records = [Record(prompt, " a", None) for prompt in ("short", "long " * 40, "brief")]
    assert [text for text, _ in encoded(records, gpt2(), 32)] == ["short", "brief"]
    assert encode_prompts(records, gpt2(), 32).no_room == 1
    with pytest.raises(InputError, match="^none of 1 rows is left"):
        encode_prompts(records[1:2], gpt2(), 32)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_field_4_a_prompts_ids_are_those_that_inference_renders(template):
    tokenizer = copy.deepcopy(chatml())
    tokenizer.chat_template = template.read_text("utf-8")
    conversations = [
        [USER],
        [USER, GOOD, USER | {"content": "and?"}],
        [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nRed"}, USER],
    ]
    for messages in conversations:
        try:
            text = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        except Exception:  # not a template for text
            pytest.skip("the template does not take these messages")
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert encoded([Record(messages, "", None)], tokenizer, 4096) == [(messages, ids)]
        assert tokenizer.decode(ids) == text


def test_field_4_the_templates_bos_is_the_only_one():
    tokenizer = gemma()  # which by itself puts one before a text
    ((_, ids),) = encoded([Record([USER], "", None)], tokenizer)
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def test_field_4_a_prompt_that_ends_with_the_assistant_is_continued():
    tokenizer = chatml()
    messages = [USER, {"role": "assistant", "content": "Here is my answer:"}]
    ((_, ids),) = encoded([Record(messages, "", None)], tokenizer)
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\nHere is my answer:")
    assert ids == tokenizer.apply_chat_template(
        messages, continue_final_message=True, return_dict=False
    )


def test_field_4_tools_and_variables_are_in_a_prompts_ids():
    tokenizer = copy.deepcopy(chatml())
    tokenizer.chat_template = "{{ tools }}{{ mood }}" + tokenizer.chat_template
    given = dict(tools=[{"name": "lookup"}], template_kwargs={"mood": "calm"})
    ((_, ids),) = encoded([Record([USER], "", None, **given)], tokenizer, 256)
    assert ids == tokenizer.apply_chat_template(
        [USER], add_generation_prompt=True, return_dict=False, tools=given["tools"], mood="calm"
    )
    assert tokenizer.decode(ids).startswith("[{'name': 'lookup'}]calm<|im_start|>")


def test_field_4_messages_and_strings_keep_their_order_and_their_room():
    tokenizer = chatml()
    long = [USER | {"content": "soup " * 40}]
    records = [Record(p, "", None) for p in ([USER], "The sea", long, "soup " * 40, [USER, GOOD])]
    records = [replace(r, chosen=" a") if isinstance(r.prompt, str) else r for r in records]
    found = encode_prompts(records, tokenizer, 40)
    assert [record.prompt for record, _ in found.prompts] == [[USER], "The sea", [USER, GOOD]]
    assert found.no_room == 2 and not found.skipped
    size = len(found.prompts[0][1])
    assert len(encode_prompts(records[:1], tokenizer, size + 1).prompts) == 1
    with pytest.raises(InputError, match=f"^none of 1 prompts is left .1 have no room .*{size}$"):
        encode_prompts(records[:1], tokenizer, size)


def test_messages_that_the_template_refuses_can_be_skipped():
    system = {"role": "system", "content": "Be brief."}
    records = [Record(m, "", None, where=f"a:{i}") for i, m in enumerate([[USER], [system, USER]])]
    with pytest.raises(InputError, match="a:1:prompt: the chat template refuses these messages"):
        encode_prompts(records, llama(), 64)
    found = encode_prompts(records, llama(), 64, read_options(bad_rows="skip"))
    assert len(found.prompts) == len(found.skipped) == 1 and found.no_room == 0
    assert str(found.skipped[0]).startswith("a:1:prompt: the chat template")
