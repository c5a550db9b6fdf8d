"""Chat messages: the template is applied once, its specials are neither doubled nor lost."""

import copy

import pytest
import small_tokenizers as small
from datafiles import BAD, GOOD, USER

from data.encode import encode_records
from data.errors import InputError
from data.rows import Record

CHAT = Record([USER], [GOOD], [BAD], where="train.jsonl:1")


def encode(tokenizer, record=CHAT, template=None, **options):
    if template:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = template
    return encode_records([record], tokenizer, **options).rows[0]


def texts(tokenizer, row):
    return [tokenizer.decode(ids) for ids in (row.prompt, *row.responses)]


@pytest.mark.parametrize("make, prompt, good", [
    (small.chatml, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "good<|im_end|>"),
    (small.gemma, "<bos><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
     "good<|im_end|><eos>"),
    (small.llama, "<s>[INST] hi [/INST]", " good </s>"),
    (small.llama_end, "<s>[INST] hi [/INST]", " good </s>"),
])  # fmt: skip
def test_one_bos_one_eos_and_no_white_space_after_it(make, prompt, good):
    """B7, B5: also where the tokenizer would add BOS (and EOS) to the template's."""
    tokenizer = make()
    row = encode(tokenizer)
    assert texts(tokenizer, row) == [prompt, good, good.replace("good", "bad")]
    assert row.ends == [True, True]
    assert all(response[-1] == tokenizer.eos_token_id for response in row.responses)
    assert all(response.count(tokenizer.eos_token_id) == 1 for response in row.responses)


def test_chatml_is_the_template_text_up_to_its_last_line_break():
    tokenizer = small.chatml()
    row = encode(tokenizer)
    whole = tokenizer.apply_chat_template([USER, GOOD], tokenize=False)
    assert tokenizer.decode(row.prompt + row.responses[0]) + "\n" == whole


def test_white_space_after_the_generation_prompts_special_token_is_the_prompts():
    """As in `<|assistant|>` and a line break: only a response loses what follows its end."""
    template = small.CHATML.replace("assistant", "<|im_start|>").replace("m.role", "'<|im_start|>'")
    tokenizer = small.chatml()
    prompt, good, _ = texts(tokenizer, encode(tokenizer, template=template))
    assert prompt.endswith("<|im_start|><|im_start|>\n") and good == "good<|im_end|>"


def test_a_template_without_an_end_token_gets_eos():
    """B6. Its own last line break stays: only what follows a special token is dropped."""
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer = small.gpt2()
    row = encode(tokenizer, template=template)
    good = tokenizer.decode(row.prompt + row.responses[0])
    assert good == "user: hi\nassistant: good\n<|endoftext|>"
    assert row.responses[0].count(tokenizer.eos_token_id) == 1


def test_an_eos_before_other_trailing_specials_is_the_end():
    template = small.CHATML.replace("<|im_end|>", "<|im_end|><|endoftext|>")
    tokenizer = small.chatml()
    row = encode(tokenizer, template=template)
    assert texts(tokenizer, row)[1] == "good<|im_end|>"


def test_a_template_that_writes_the_prompt_otherwise_keeps_what_inference_renders():
    template = small.CHATML.replace("m.content", "(m.content if loop.last else 'HI')")
    tokenizer = small.chatml()
    row = encode(tokenizer, template=template)
    prompt, good, _ = texts(tokenizer, row)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert good == "good<|im_end|>"


def test_a_template_without_anything_in_common_gets_the_answer_as_it_is():
    template = "{{ 'A' if add_generation_prompt else 'B' }}{{ messages[-1].content }}"
    tokenizer = small.chatml()
    row = encode(tokenizer, template=template)
    assert texts(tokenizer, row) == ["Ahi", "good<|im_end|>", "bad<|im_end|>"]


def test_messages_need_a_template():
    with pytest.raises(InputError, match=r"train.jsonl:1:prompt: .* no chat template; take an"):
        encode(small.gpt2())


def test_what_a_template_refuses_is_one_line_naming_the_row():
    record = Record([{"role": "system", "content": "x"}, USER], [GOOD], [BAD], where="a.jsonl:7")
    with pytest.raises(InputError, match=r"a.jsonl:7:prompt: .*\(no system message, please\)"):
        encode(small.llama(), record)


@pytest.mark.parametrize("content, column", [("good", "chosen"), ("bad", "rejected")])
def test_it_names_the_response_that_it_refuses(content, column):
    test = f"{{% if messages[-1].content == '{content}' %}}{{{{ raise_exception('not this') }}}}"
    template = f"{test}{{% endif %}}{small.CHATML}"
    with pytest.raises(InputError, match=rf"^train.jsonl:1:{column}: .*\(not this\)"):
        encode(small.chatml(), template=template)


def test_a_template_that_shows_no_content_is_refused():
    template = small.CHATML.replace("m.content", "''")
    with pytest.raises(InputError, match="chosen: the chat template does not write the answer"):
        encode(small.chatml(), template=template)


@pytest.mark.parametrize("record", [Record([USER], " good", None), Record("hi", [GOOD], None)])
def test_a_string_and_messages_do_not_mix(record):
    with pytest.raises(InputError, match="make both alike"):
        encode(small.chatml(), record)


def test_a_cut_chat_response_has_no_end_token():
    """B24."""
    tokenizer = small.chatml()
    whole = encode(tokenizer)
    row = encode(tokenizer, max_length=len(whole.prompt) + len(whole.responses[0]) - 1)
    assert row.responses[0] == whole.responses[0][:-1] and not row.ends[0]


def test_characters_are_those_of_the_content():
    assert encode(small.chatml()).characters == [4, 3]


def test_chat_and_plain_rows_may_stand_in_one_data_set():
    tokenizer = small.llama()
    records = [CHAT, Record("The sea", " is", " was"), CHAT]
    encoded = encode_records(records, tokenizer)
    alone = [encode_records([record], tokenizer).rows[0] for record in records]
    assert [row.responses for row in encoded.rows] == [row.responses for row in alone]
    assert [row.prompt for row in encoded.rows] == [row.prompt for row in alone]
