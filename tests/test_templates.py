"""What is trained is what inference renders: asserted as text, over many chat templates.

TRL's templates are read from the installed package, if there is one: `pip install --no-deps trl`.
ALIGNMENT_CASES=50000 runs the property test on that many conversations.
"""

import copy
import importlib.util
import os
import re
from functools import cache
from pathlib import Path

import pytest
import small_tokenizers as small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.chat import ChatTemplate
from data.encode import encode_records
from data.errors import InputError
from data.rows import Record

CASES = int(os.environ.get("ALIGNMENT_CASES", 2000))
SPECIAL = r"<[|｜][^<>|｜\s{}]{1,40}[|｜]>|</?s>|<end_of_turn>|<start_of_turn>|<eos>|\[/?INST\]"


def trl_templates():
    found = importlib.util.find_spec("trl")
    folder = Path(found.origin).parent / "chat_templates" if found and found.origin else Path("-")
    return sorted(folder.glob("*.jinja")) if folder.is_dir() else []


@cache
def tokenizer_of(template):
    """A byte-level tokenizer with the template's special tokens and the template."""
    tokenizer = copy.deepcopy(small.chatml())
    special = sorted(set(re.findall(SPECIAL, template)))
    if special:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": special}, replace_extra_special_tokens=False
        )
    tokenizer.chat_template = template
    return tokenizer


def message(role, content, **keys):
    return {"role": role, "content": content, **keys}


SYSTEM, USER = message("system", "Be terse."), message("user", "Name a warm color.")
ANSWER, ASKED = message("assistant", "Red is one."), message("user", "Are you sure?")
SECOND = message("assistant", "Yes it is.")
THOUGHT = message("assistant", "<think>\neasy one\n</think>\n\nRed it is.")
CONVERSATIONS = {
    "one turn": ([USER], [ANSWER]),
    "a system prompt": ([SYSTEM, USER], [ANSWER]),
    "a history": ([USER, ANSWER, ASKED], [SECOND]),
    "two turns": ([USER], [ANSWER, ASKED, SECOND]),
    "a thought": ([USER], [THOUGHT]),
    "two turns with a thought": ([USER], [THOUGHT, ASKED, SECOND]),
}


def squeezed(text):
    return "".join(text.split())


def check(tokenizer, prompt, response):
    """The conversations that a record becomes, after all that must hold of them."""
    record = Record(prompt, response, None, where="x:1")
    found = ChatTemplate(tokenizer).conversations(record)
    asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    assert found[0].prompt == asked
    trained = [s.text for one in found for path in one.paths for s in path if s.trained]
    answers = [m for m in response if m["role"] == "assistant"]
    assert len(trained) == len(answers)
    others = [m["content"] for m in [*prompt, *response] if m["role"] != "assistant"]
    for text, answer in zip(trained, answers, strict=True):
        # A <think> that the prompt has opened already is not written twice.
        content = squeezed(answer["content"])
        assert content in squeezed(text) or content.removeprefix("<think>") in squeezed(text)
        assert not any(squeezed(other) in squeezed(text) for other in others)

    # Turn by turn the prompt is what inference renders of what was said before.
    before, starts = list(prompt), []
    for m in response:
        if m["role"] == "assistant":
            starts.append(
                tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
            )
        before.append(m)
    said = []
    for one in found:
        text = one.prompt
        for segment in one.paths[0]:
            if segment.trained:
                said.append(text)
            text += segment.text
    assert said == starts

    # One path, not rewritten: it is the rendering of the whole, character for character.
    if len(found) == 1 and not found[0].rewritten:
        whole = tokenizer.apply_chat_template([*prompt, *response], tokenize=False)
        text = found[0].prompt + "".join(segment.text for segment in found[0].paths[0])
        assert whole.startswith(text) and not whole[len(text) :].strip()

    # And the tokens say the same: the prompt's are inference's own, the rest is the text and EOS.
    encoded = encode_records([record], tokenizer, max_length=100_000)
    for one, row in zip(found, encoded.rows, strict=True):
        ids = tokenizer(one.prompt, add_special_tokens=False)["input_ids"]
        assert row.prompt == ids
        (mask,) = row.masks or [[True] * len(row.responses[0])]
        of_text = "".join(segment.text for segment in one.paths[0])
        decoded = tokenizer.decode(row.responses[0])
        assert decoded in (of_text, of_text + tokenizer.eos_token) or of_text.startswith(decoded)
        assert row.responses[0][-1] == tokenizer.eos_token_id
        kept = [t for t, keep in zip(row.responses[0], mask, strict=True) if keep]
        wanted = "".join(segment.text for segment in one.paths[0] if segment.trained)
        assert squeezed(tokenizer.decode(kept)).startswith(
            squeezed(wanted.removesuffix(tokenizer.eos_token))
        )
    return found


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("path", trl_templates(), ids=lambda path: path.stem)
def test_every_template_that_trl_ships(path, name):
    """Fields 3 and 4: refused in one line, or what inference renders and what the user gave."""
    try:
        check(tokenizer_of(path.read_text("utf-8")), *CONVERSATIONS[name])
    except InputError as error:
        vision = path.stem.split("_training")[0] in ("idefics3", "llava_next", "smolvlm")
        no_system = path.stem.startswith("gemma") and "System role" in str(error)
        assert str(error).startswith("x:1:") and "\n" not in str(error) and (vision or no_system)


@pytest.mark.parametrize("path", [p for p in trl_templates() if p.stem.endswith("_training")],
                         ids=lambda path: path.stem)  # fmt: skip
def test_the_mask_is_that_of_the_templates_own_marks(path):
    """Field 33: return_assistant_tokens_mask, but for white space behind the end of a turn."""
    tokenizer = tokenizer_of(path.read_text("utf-8"))
    prompt, response = CONVERSATIONS["two turns"]
    record = Record(prompt, response, None, where="x:1")
    try:
        row, *others = encode_records([record], tokenizer).rows
    except InputError:
        pytest.skip("a vision template")
    if others or ChatTemplate(tokenizer).conversations(record)[0].rewritten:
        pytest.skip("no single path")
    found = tokenizer.apply_chat_template(
        [*prompt, *response], return_assistant_tokens_mask=True, return_dict=True
    )
    ids, theirs = found["input_ids"], found["assistant_masks"]
    mask = [False] * len(row.prompt) + (row.masks or [[True] * len(row.responses[0])])[0]
    ours = row.prompt + row.responses[0]
    assert ids[: len(ours) - 1] == ours[: len(ours) - 1]
    unlike = [ids[i] for i, (a, b) in enumerate(zip(mask, theirs, strict=False)) if a != b]
    # A template may mark the header that it writes itself, a <think> that the generation prompt
    # has opened (here it is the prompt's), or the line break behind the end.
    rest = tokenizer.decode([token for token in unlike if token not in tokenizer.all_special_ids])
    assert re.sub("assistant|</?think>", "", rest).strip() == ""


# Mistral-7B-Instruct-v0.3 writes the system prompt into the last message, if that is the user's.
MISTRAL = (
    "{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}"
    "{{ '<s>' }}{% for m in loop_messages %}{% if m.role == 'user' %}"
    "{% if loop.last and system is defined %}"
    "{{ '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_field_3_a_system_prompt_that_moves_stays_in_the_prompt(name):
    prompt, response = CONVERSATIONS[name]
    found = check(tokenizer_of(MISTRAL), prompt, response)
    if prompt[0] is SYSTEM:
        assert "Be terse." in found[0].prompt and found[0].paths[0][0].text == "Red is one.</s>"
        assert found[0].rewritten


# ------------------------------------------------------------------------------ generated templates


@st.composite
def templates(draw):
    """Templates that differ in what real ones differ in."""
    start, end = draw(st.sampled_from([("<|a|>", "<|z|>"), ("[", "]"), ("<s>", "</s>")]))
    line = draw(st.sampled_from(["", "\n", "\n\n", " "]))
    history = draw(st.sampled_from(["m.content", "m.content | trim", "thought(m.content)"]))
    last = draw(st.sampled_from(["m.content", "m.content | trim", "thought(m.content)"]))
    header = draw(st.sampled_from(["m.role", "m.role + (loop.index | string)",
                                   "m.role + ('!' if loop.last else '')"]))  # fmt: skip
    system = draw(st.sampled_from(["first", "last user", "with the first user"]))
    asks = draw(st.sampled_from(["", "<think>\n", "<think></think>", "<think>\n\n</think>\n\n"]))
    opens = draw(st.sampled_from(["", "<think></think>", "<think>\n\n</think>\n\n"]))
    tail = draw(st.sampled_from(["", "<|eot|>", "\n"]))
    ask_header = header.replace("m.role", "'assistant'").replace("loop.index", "(n + 1)")
    ask_header = ask_header.replace("loop.last", "true")
    place = {
        "first": "false",
        "last user": "m.role == 'user' and loop.last",
        "with the first user": "m.role == 'user' and loop.first",
    }[system]
    first = f"{{{{ '{start}system{line}' + system + '{end}{line}' }}}}" if system == "first" else ""
    q = repr
    return (
        "{%- macro thought(c) -%}{{ c.split('</think>')[-1] }}{%- endmacro -%}"
        "{%- set system = '' %}{% set rest = messages %}{% if messages[0].role == 'system' %}"
        "{% set system = messages[0].content %}{% set rest = messages[1:] %}{% endif %}"
        f"{{%- if system %}}{first}{{% endif %}}{{%- set n = rest | length %}}"
        "{%- for m in rest %}"
        f"{{{{- {q(start)} + {header} + {q(line)} }}}}"
        f"{{%- if {place} and system %}}{{{{- system + {q(chr(10))} }}}}{{% endif %}}"
        f"{{%- if m.role == 'assistant' and loop.last %}}{{{{- {q(opens)} }}}}{{{{- {last} }}}}"
        f"{{%- elif m.role == 'assistant' %}}{{{{- {history} }}}}{{%- else %}}{{{{- m.content }}}}"
        f"{{%- endif %}}{{{{- {q(end)} + {q(line)} }}}}{{%- endfor %}}"
        f"{{%- if add_generation_prompt %}}"
        f"{{{{- {q(start)} + {ask_header} + {q(line)} + {q(asks)} }}}}"
        f"{{%- else %}}{{{{- {q(tail)} }}}}{{%- endif %}}"
    )


words = st.text("ab cé\n,.!#日", min_size=1, max_size=12)


@st.composite
def conversations(draw):
    """Every message says a word of its own, so that none is in another."""
    number = iter(range(100))

    def said(role):
        content = f"{draw(words)}{role[0]}{next(number)}x{draw(words)}"
        if role == "assistant" and draw(st.booleans()):
            content = f"<think>{draw(words)}t{next(number)}x</think>{content}"
        return message(role, content)

    prompt = [said("system")] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 1))):
        prompt += [said("user"), said("assistant")]
    prompt.append(said("user"))
    response = [said("assistant")]
    for _ in range(draw(st.integers(0, 2))):
        response += [said("user"), said("assistant")]
    return prompt, response


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(templates(), conversations())
def test_random_conversations_in_random_templates(template, conversation):
    prompt, response = conversation
    try:
        check(tokenizer_of(template), prompt, response)
    except InputError as error:
        assert str(error).startswith("x:1:") and "\n" not in str(error)
