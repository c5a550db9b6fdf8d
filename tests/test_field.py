"""Rows as the field has them: what is given is trained, named, or refused. By the field's numbers.

Files, splits and shards are in test_folders.py and its neighbours, templates in test_templates.py,
models in test_loading.py and test_save.py, rewards in test_reward_ids.py and its neighbours.
"""

import json

import pytest
import small_tokenizers as small
from datafiles import BAD, GOOD, PAIR, USER, lines, read, write

from data.encode import encode_records
from data.errors import InputError
from data.options import read_options
from data.records import load_data

ORCA = {
    "system": "Be terse.",
    "question": "What is 2+2?",
    "chosen": "It is 4.",
    "rejected": "Five!",
}
ALPACA = {"instruction": "Translate to French.", "input": "Good day", "output": "Bonjour"}


def trained(tokenizer, record):
    """(the prompt, what is trained of each response), as text."""
    row = encode_records([record], tokenizer).rows[0]
    masks = row.masks or [[True] * len(response) for response in row.responses]
    kept = [
        [t for t, keep in zip(response, mask, strict=True) if keep]
        for response, mask in zip(row.responses, masks, strict=True)
    ]
    return tokenizer.decode(row.prompt), [tokenizer.decode(ids) for ids in kept]


def refused(tmp_path, rows, match, **options):
    with pytest.raises(InputError, match=match) as error:
        read(tmp_path, rows if isinstance(rows, str) else lines(*rows), **options)
    assert error.value.exit_code == 65 and "\n" not in str(error.value)


def told(tmp_path, *rows, pairs=True, **flags):
    write(tmp_path, {"train.jsonl": lines(*rows), "valid.jsonl": lines(PAIR)})
    options = read_options(**flags)
    return load_data(str(tmp_path), pairs=pairs, options=options)[2]


# --- 1 and 2: columns that carry the prompt ------------------------------------------------------


def test_field_1_a_question_that_nothing_reads_ends_the_run(tmp_path):
    refused(tmp_path, [ORCA] * 3, r":1:question: .*--columns prompt=question.*system\)")
    refused(
        tmp_path, [ORCA] * 3, r":1:system: .*--columns system=system", columns="prompt=question"
    )
    columns = "prompt=question,system=system"
    assert read(tmp_path, lines(ORCA), columns=columns)[0].prompt == "Be terse.\n\nWhat is 2+2?"
    assert read(tmp_path, lines(ORCA), columns="prompt=question", ignore="system")


@pytest.mark.parametrize("name", ["user_message", "ask", "Frage"])
def test_field_1_so_does_any_column_of_sentences_beside_a_pair_without_a_prompt(tmp_path, name):
    rows = [
        {name: f"What is {i} + {i}?", "chosen": f"It is {2 * i}.", "rejected": "It is none."}
        for i in range(4)
    ]
    refused(tmp_path, rows, f"{name}: .*--columns prompt={name}")


def test_field_1_pairs_that_begin_with_nothing_alike_have_no_prompt(tmp_path):
    rows = [{"chosen": "Yes.", "rejected": "No."}] * 2 + [{"chosen": "A: x", "rejected": "A: y"}]
    refused(tmp_path, rows, "in 2 of 3 rows chosen and rejected do not begin alike")


@pytest.mark.parametrize(
    "name", ["input", "context", "history", "tools", "system_prompt", "images"]
)
def test_field_2_a_part_of_the_prompt_left_behind_ends_the_run(tmp_path, name):
    refused(tmp_path, [PAIR | {name: "something to know"}], f":1:{name}: ")
    assert read(tmp_path, lines(PAIR | {name: ""}))
    assert read(tmp_path, lines(PAIR | {name: "something to know"}), ignore=name)


def test_field_2_what_the_record_says_already_is_not_missed(tmp_path):
    """UltraFeedback's `messages` are its chosen conversation, ultrachat's prompt its first turn."""
    row = {
        "prompt": "hi",
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
        "messages": [USER, GOOD],
    }
    assert read(tmp_path, lines(row))
    assert read(tmp_path, lines({"prompt": "hi", "messages": [USER, GOOD]}), pairs=False)


def test_field_2_columns_are_joined_and_empty_ones_leave_no_trace(tmp_path):
    columns = "prompt=instruction+input,completion=output"
    rows = lines(ALPACA, ALPACA | {"input": ""})
    first, second = read(tmp_path, rows, pairs=False, columns=columns)
    assert first.prompt == "Translate to French.\n\nGood day" and first.chosen == "Bonjour"
    assert second.prompt == "Translate to French."
    left = "prompt=instruction,completion=output"
    refused(tmp_path, [ALPACA], r":1:input: .*prompt=instruction\+input", pairs=False, columns=left)


def test_field_2_every_column_that_is_not_read_is_named(tmp_path):
    said = told(tmp_path, PAIR | {"id": 7, "score": 0.5}, PAIR | {"source": "web"})
    assert "columns not read: id, score, source" in said


# --- 5: keys of messages, tools, variables of the template ---------------------------------------

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
FUNCTION = {"name": "weather", "arguments": {"city": "Oslo"}}
CALL = {"role": "assistant", "content": None}
CALL["tool_calls"] = [{"type": "function", "function": FUNCTION}]
RESULT = {"role": "tool", "content": "7 C", "tool_call_id": "c1", "name": "weather"}
TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools' + (tools | tojson) + '<|im_end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "{% if m.reasoning_content %}{{ '(' + m.reasoning_content + ')' }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if short_answers %}{{ '!' }}{% endif %}{% endif %}"
)


def with_template(template):
    import copy

    tokenizer = copy.deepcopy(small.chatml())
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("written", [lambda x: x, json.dumps])
def test_field_5_tools_and_calls_reach_the_template(tmp_path, written):
    tokenizer = with_template(TOOL_TEMPLATE)
    row = {"tools": written(TOOLS), "prompt": [USER, CALL, RESULT], "chosen": [GOOD]}
    record = read(tmp_path, lines(row | {"rejected": [BAD]}))[0]
    prompt, _ = trained(tokenizer, record)
    asked = dict(tokenize=False, add_generation_prompt=True, tools=TOOLS)
    assert prompt == tokenizer.apply_chat_template([USER, CALL, RESULT], **asked)
    assert '"city": "Oslo"' in prompt and '"weather"' in prompt and "7 C" in prompt


def test_field_5_a_call_is_trained(tmp_path):
    row = {"tools": TOOLS, "prompt": [USER], "completion": [CALL]}
    record = read(tmp_path, lines(row), pairs=False)[0]
    assert '"city": "Oslo"' in trained(with_template(TOOL_TEMPLATE), record)[1][0]


@pytest.mark.parametrize("row, match", [
    ({"tools": TOOLS, "prompt": [USER], "completion": [GOOD]}, ":1:tools: "),
    ({"prompt": [USER], "completion": [CALL | {"content": ""}]}, "does not write the tool_calls"),
    ({"prompt": [USER | {"name": "Bo"}], "completion": [GOOD]}, "the name of the user's message"),
    ({"prompt": [USER], "completion": [GOOD | {"reasoning_content": "so"}]}, "reasoning_content"),
    ({"prompt": [USER], "completion": [GOOD], "chat_template_kwargs": {"x": 1}}, "kwargs: x: "),
])  # fmt: skip
def test_field_5_what_the_template_passes_over_is_refused_by_name(tmp_path, row, match):
    record = read(tmp_path, lines(row), pairs=False)[0]
    with pytest.raises(InputError, match=match):
        encode_records([record], small.chatml())


def test_field_5_and_may_be_ignored_on_purpose(tmp_path):
    row = {"prompt": [USER], "completion": [GOOD | {"weight": 1}]}
    record = read(tmp_path, lines(row), pairs=False)[0]
    found = encode_records([record], small.chatml(), ignore=frozenset({"weight"}))
    assert (
        found.rows
        == encode_records(
            [read(tmp_path, lines(row | {"completion": [GOOD]}), pairs=False)[0]], small.chatml()
        ).rows
    )


def test_field_5_keys_that_parquet_fills_with_null_are_dropped(tmp_path):
    row = {"prompt": [USER | {"tool_calls": None, "name": None}], "completion": [GOOD]}
    assert read(tmp_path, lines(row), pairs=False)[0].prompt == [USER]


def test_field_5_variables_reach_the_template(tmp_path):
    row = {"prompt": [USER], "completion": [GOOD], "chat_template_kwargs": {"short_answers": True}}
    record = read(tmp_path, lines(row), pairs=False)[0]
    assert trained(with_template(TOOL_TEMPLATE), record)[0].endswith("assistant\n!")


# --- 10 and 11: guards go by meaning -------------------------------------------------------------


def test_field_10_messages_written_as_json_are_messages(tmp_path):
    row = {"chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD])}
    record = read(tmp_path, lines(row))[0]
    assert (record.prompt, record.chosen, record.rejected) == ([USER], [GOOD], [BAD])


@pytest.mark.parametrize("text", [
    str([USER, GOOD]), "[{'role': 'user', 'content': 'a'}\n {'role': 'tool', 'content': 'x'}]",
    "array([{'content': 'hi', 'role': 'user'}], dtype=object)",
])  # fmt: skip
def test_field_10_messages_written_otherwise_are_refused(tmp_path, text):
    refused(
        tmp_path, [{"chosen": text, "rejected": text + " "}], ":1:chosen: a string that holds mess"
    )


def test_field_10_other_json_is_text(tmp_path):
    record = read(tmp_path, lines(PAIR | {"chosen": '[{"role": "x"}]'}))[0]
    assert record.chosen == '[{"role": "x"}]'


@pytest.mark.parametrize("label", [True, False, 1, 0, "true", "False", "desirable", "0", 1.0, -1])
@pytest.mark.parametrize("name", ["label", "labels", "kto_tag", "is_desirable", "thumbs_up"])
def test_field_11_one_response_with_a_verdict_is_refused(tmp_path, name, label):
    rows = [
        {"prompt": "p", "completion": " c", name: label},
        {"messages": [USER, GOOD], name: label},
        {"instruction": "p", "output": "c", name: label},
    ]
    for row in rows:
        refused(tmp_path, [row], f":1:{name}: rows marked good and bad", pairs=False)
        assert read(tmp_path, lines(row), pairs=False, ignore=name)


def test_field_11_in_a_csv_file_too(tmp_path):
    table = "prompt,completion,label\np, c,True\n"
    refused(tmp_path, table, "unpaired", pairs=False, name="t.csv")


# --- 15 and 16: where the prompt ends ------------------------------------------------------------

PREFILL = {"role": "assistant", "content": "Sure, here it is:"}


def test_field_15_a_prompt_that_ends_with_the_assistants_words_is_continued(tmp_path):
    row = {"prompt": [USER, PREFILL], "chosen": [{"role": "assistant", "content": " good"}]}
    record = read(tmp_path, lines(row | {"rejected": " bad"} | {"rejected": [BAD]}))[0]
    prompt, (good, _) = trained(small.chatml(), record)
    assert prompt.endswith("<|im_start|>assistant\nSure, here it is:") and good == " good<|im_end|>"


HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant:"


def test_field_16_a_transcript_is_split_at_its_last_mark(tmp_path):
    asked = f"{HUMAN}Name a color.{ASSISTANT} Red.{HUMAN}Another.{ASSISTANT}"
    row = {"chosen": f"{asked} I can help: blue.", "rejected": f"{asked} I can help: no."}
    record = read(tmp_path, lines(row))[0]
    assert record.prompt == asked and record.chosen == " I can help: blue."


def test_field_16_transcripts_that_part_earlier_are_no_pair(tmp_path):
    row = {"chosen": f"{HUMAN}a{ASSISTANT} b", "rejected": f"{HUMAN}A joke{ASSISTANT} c"}
    refused(tmp_path, [row], ":1:rejected: the two transcripts differ before the assistant's last")
    row = {"prompt": f"{HUMAN}a{ASSISTANT}", "chosen": f" b{HUMAN}c{ASSISTANT} d", "rejected": " e"}
    refused(tmp_path, [row], ":1:chosen: the response holds a turn of the human")


@pytest.mark.parametrize("train_on, turns", [("all", " Red. Blue.<|im_end|>"),
                                             ("last", " Blue.<|im_end|>")])  # fmt: skip
def test_field_16_of_a_transcript_in_text_only_the_assistant_is_trained(tmp_path, train_on, turns):
    text = f"{HUMAN}A color?{ASSISTANT} Red.{HUMAN}Another?{ASSISTANT} Blue."
    record = read(tmp_path, lines({"text": text}), pairs=False, train_on=train_on)[0]
    assert trained(small.chatml(), record)[1] == [turns]
    chat = read(tmp_path, lines({"text": text}), pairs=False, chat=True)[0]
    assert [m["role"] for m in chat.prompt + chat.chosen] == ["user", "assistant"] * 2


# --- 21 and 22: conversations --------------------------------------------------------------------

SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "good"},
            {"from": "human", "value": "more?"}, {"from": "gpt", "value": "yes"}]  # fmt: skip


@pytest.mark.parametrize("row", [
    {"messages": [USER, GOOD, {"role": "user", "content": "more?"},
                  {"role": "assistant", "content": "yes"}]},
    {"conversations": SHAREGPT},
    {"prompt": "hi", "completion": [GOOD, {"role": "user", "content": "more?"},
                                    {"role": "assistant", "content": "yes"}]},
])  # fmt: skip
def test_field_21_every_turn_of_the_assistant_is_trained(tmp_path, row):
    record = read(tmp_path, lines(row), pairs=False)[0]
    assert trained(small.chatml(), record)[1] == ["good<|im_end|>yes<|im_end|>"]
    last = read(tmp_path, lines(row), pairs=False, train_on="last")[0]
    prompt, responses = trained(small.chatml(), last)
    assert responses == ["yes<|im_end|>"] and "good<|im_end|>" in prompt


def test_field_21_a_pair_may_have_its_prompt_in_conversations(tmp_path):
    """LlamaFactory's layout: the two answers stand apart."""
    row = {
        "conversations": SHAREGPT[:1],
        "chosen": SHAREGPT[1],
        "rejected": {"from": "gpt", "value": "x"},
    }
    record = read(tmp_path, lines(row))[0]
    assert (record.prompt, record.chosen) == ([USER], [GOOD])


def test_field_21_plain_text_and_alpaca_need_no_flag(tmp_path):
    record = read(tmp_path, lines({"text": "The sea is blue."}), pairs=False)[0]
    assert trained(small.gpt2(), record)[1] == ["The sea is blue.<|endoftext|>"]
    record = read(tmp_path, lines(ALPACA), pairs=False)[0]
    assert "### Input:\nGood day\n\n### Response:\n" in record.prompt and record.chosen == "Bonjour"
    chat = read(tmp_path, lines(ALPACA), pairs=False, chat=True)[0]
    assert chat.prompt == [{"role": "user", "content": "Translate to French.\n\nGood day"}]


def test_field_22_pairs_that_part_before_the_last_turn_train_all_that_follows(tmp_path):
    more = {"role": "user", "content": "more?"}
    row = {"chosen": [USER, GOOD, more, GOOD], "rejected": [USER, BAD, more, BAD]}
    record = read(tmp_path, lines(row))[0]
    good = "good<|im_end|>"
    assert trained(small.chatml(), record)[1] == [good * 2, good.replace("good", "bad") * 2]


def test_field_22_a_prompt_that_differs_by_a_space_is_quoted(tmp_path):
    row = {"prompt": "hi ", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    refused(tmp_path, [row], ":1:chosen: its messages ask 'hi', and the prompt is 'hi '")


# --- 28 and 29: strings for an instruct model; numbered responses --------------------------------


def test_field_28_strings_glued_or_without_the_template_are_told(tmp_path):
    record = read(tmp_path, lines({"prompt": "What?", "completion": "It is."}), pairs=False)[0]
    line = encode_records([record], small.chatml()).report.line("train")
    assert "1 without white space between prompt and response" in line
    assert "without the chat template (--chat applies it)" in line
    spaced = read(tmp_path, lines({"prompt": "What?", "completion": " It is."}), pairs=False)[0]
    assert "white space" not in encode_records([spaced], small.gpt2()).report.line("train")
    chat = read(tmp_path, lines({"prompt": "What?", "completion": "It."}), pairs=False, chat=True)[
        0
    ]
    assert trained(small.chatml(), chat)[1] == ["It.<|im_end|>"]


@pytest.mark.parametrize("winner, label, first", [
    ("labels:1/0", 1, True), ("labels:1/0", 0, False), ("labels:1/0", 1.0, True),
    ("labels:0/1", "0", True), ("labels:model_a/model_b", "model_b", False),
    ("labels:true/false", False, False), ("labels:-/+", -2, True), ("labels:-/+", 3, False),
])  # fmt: skip
def test_field_29_numbered_responses_need_an_explicit_winner(tmp_path, winner, label, first):
    row = {"history": "p", "a": " one", "b": " two", "labels": label}
    columns = f"prompt=history,first=a,second=b,winner={winner}"
    record = read(tmp_path, lines(row), columns=columns)[0]
    assert (record.chosen, record.rejected) == ((" one", " two") if first else (" two", " one"))


def test_field_29_a_tie_or_another_label_is_a_bad_row(tmp_path):
    row = {"history": "p", "a": " one", "b": " two", "labels": 0}
    for winner in ("labels:-/+", "labels:1/2"):
        columns = f"prompt=history,first=a,second=b,winner={winner}"
        refused(tmp_path, [row], ":1:winner: 0 is neither", columns=columns)


@pytest.mark.parametrize("columns, message", [
    ("sol1=a,sol2=b,label=labels", "write first=, second= and winner="),
    ("first=a,second=b", "give all of first=, second= and winner="),
    ("winner=labels", "say what the column holds where the first response wins"),
    ("prompt=a,prompt=b", "prompt is there twice"),
    ("tools=a\x2bb", "tools is one column"),
])  # fmt: skip
def test_field_29_columns_that_leave_a_doubt_are_usage_errors(columns, message):
    with pytest.raises(InputError, match=message) as error:
        read_options(columns=columns)
    assert error.value.exit_code == 2


# --- 20: bad rows --------------------------------------------------------------------------------


def test_field_20_one_bad_row_of_many_is_skipped_counted_and_told(tmp_path):
    rows = [PAIR | {"prompt": f"p{i}"} for i in range(120)]
    rows[57]["rejected"] = ""
    said = told(tmp_path, *rows, bad_rows="skip")
    assert "train: 119 rows of" in said and "1 bad row skipped, first: " in said
    assert "train.jsonl:58:rejected: the response is empty" in said
    refused(tmp_path, rows, ":58:rejected: the response is empty")


def test_field_20_so_is_one_that_the_template_refuses(tmp_path):
    good = {"prompt": [USER], "completion": [GOOD]}
    bad = {"prompt": [USER], "completion": [GOOD | {"reasoning_content": "so"}]}
    records = read(tmp_path, lines(*[good] * 9, bad), pairs=False)
    encoded = encode_records(records, small.chatml(), bad_rows="skip")
    assert len(encoded.rows) == 9
    assert "1 bad skipped, first: " in encoded.report.line("train")
