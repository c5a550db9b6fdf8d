"""A chat template is a program: it is stopped where it takes too long, too much, or the clock."""

import copy
import signal
import time

import pytest
import small_tokenizers as small

import data.template as bounds
from data.chat import ChatTemplate
from data.encode import encode_records
from data.errors import InputError
from data.rows import Record
from data.template import apply_template

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = Record(MESSAGES, [{"role": "assistant", "content": "Hello"}], None, where="x.jsonl:3")


def tokenizer(template):
    made = copy.deepcopy(small.chatml())
    made.chat_template = template
    return made


@pytest.mark.parametrize("template, reason", [
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "0.5 sec"),
    ("{{ 'a' * (10 ** 11) }}", "MemoryError"),
    ("{{ 'a'.ljust(10 ** 11) }}", "MemoryError"),
    ("{{ 'a' * 2000000 }}", "it makes 2,000,000 characters of them"),
    ("{{ range(10 ** 9) }}", "Range too big"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ("{{ strftime_now('%Y' * 10 ** 6) }}", "it makes 4,000,000 characters of them"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ("{% include '/etc/passwd' %}", "no loader"),
    ("{{ raise_exception('no') }}", "no"),
])  # fmt: skip
def test_a_template_that_goes_too_far_is_one_line(monkeypatch, template, reason):
    monkeypatch.setattr(bounds, "SECONDS", 0.5)
    began = time.process_time()
    with pytest.raises(InputError) as refused:
        ChatTemplate(tokenizer(template)).conversations(CHAT)
    assert time.process_time() - began < 20
    line = str(refused.value)
    assert line.startswith("x.jsonl:3:prompt: the chat template refuses these messages (")
    assert reason in line and len(line) < 600


def test_a_template_cannot_catch_the_end_of_its_time(monkeypatch):
    """Jinja itself swallows errors in places; the alarm rings again."""
    monkeypatch.setattr(bounds, "SECONDS", 0.3)
    with pytest.raises(bounds.TooSlow), bounds.limited():
        for _ in range(2):
            try:
                while True:
                    pass
            except bounds.TooSlow:
                continue
        while True:
            pass


def test_nothing_of_the_bounds_is_left(monkeypatch):
    import resource

    before = signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS)
    for template in ("{{ messages[0].content }}", "{{ nothing.of.it }}"):
        try:
            apply_template(tokenizer(template), MESSAGES)
        except Exception:
            assert template == "{{ nothing.of.it }}"
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)
    assert before == (signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS))


def test_a_long_text_is_not_too_long():
    words = "word " * 500_000
    text = apply_template(tokenizer(small.CHATML), [{"role": "user", "content": words}])
    assert len(text) > len(words)


@pytest.mark.parametrize(
    "form, text",
    [
        ("%d %b %Y", "26 Jul 2024"),
        ("%Y-%m-%d", "2024-07-26"),
        ("%-d. %B, 100 %%", "26. July, 100 %"),
    ],
)
def test_the_date_in_a_text_is_the_same_every_day(form, text):
    """Or a run could not be made again, and not go on, on another day."""
    template = f"Today Date: {{{{ strftime_now('{form}') }}}}\n{{{{ messages[0].content }}}}"
    assert apply_template(tokenizer(template), MESSAGES) == f"Today Date: {text}\nHi"
    rows = encode_records([CHAT], tokenizer(template + small.CHATML)).report
    assert "the date that the chat template writes is always 2024-07-26" in rows.line("train")


@pytest.mark.parametrize(
    "begin", ["", "  ", "\n", "\n\n x", "  {% if true %} a {% endif %}\n", "{#- -#}"]
)
def test_a_template_with_a_date_is_else_what_it_was(begin):
    """White space at its beginning too, which Jinja's rules for blocks could take away."""
    asks = "{% if strftime_now is defined %}{% set date = strftime_now('%Y') %}{% endif %}"
    plain, dated = begin + small.CHATML, begin + small.CHATML + asks
    assert apply_template(tokenizer(plain), MESSAGES) == apply_template(tokenizer(dated), MESSAGES)


def test_a_template_that_draws_is_refused():
    draws = small.CHATML + "{{ ['a', 'b', 'c'] | random }}"
    with pytest.raises(InputError, match="x.jsonl:3: the chat template writes something else the"):
        encode_records([CHAT] * 16, tokenizer(draws))
