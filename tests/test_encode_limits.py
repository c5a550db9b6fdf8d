"""What does not fit is cut or dropped by the stated rule, and counted."""

import copy
import logging

import pytest
import small_tokenizers as small

from data.encode import NO_ROOM, NO_TOKENS, SAME, SAME_CUT, TOO_LONG, encode_records
from data.errors import USAGE, InputError
from data.rows import Record
from rollout.sample import stop_ids

PAIR = Record("The sea is", " blue.", " surely a newspaper.")


def encode(tokenizer, *records, **options):
    return encode_records(records, tokenizer, **options)


def test_a_cut_response_keeps_its_start_and_loses_its_eos():
    """B24: the model must not be taught to stop in mid-sentence."""
    tokenizer = small.gpt2()
    whole = encode(tokenizer, PAIR).rows[0]
    size = len(whole.prompt) + len(whole.responses[1])
    for cut in range(1, len(whole.responses[1]) - len(whole.responses[0]) + 1):
        row = encode(tokenizer, PAIR, max_length=size - cut).rows[0]
        assert row.prompt == whole.prompt and row.responses[0] == whole.responses[0]
        assert row.responses[1] == whole.responses[1][:-cut]
        assert row.ends == [True, False] and tokenizer.eos_token_id not in row.responses[1]
    for overlong in ("truncate", "drop"):  # what just fits is neither cut nor dropped
        encoded = encode(tokenizer, PAIR, max_length=size, overlong=overlong)
        assert encoded.rows[0] == whole and encoded.report.truncated == 0


def test_max_length_is_1024_unless_given():
    report = encode(small.gpt2(), Record("The sea", " is" * 2000, None)).report
    assert (report.longest, report.truncated) == (1024, 1)


def test_a_long_row_leaves_the_short_ones_alone():
    """B12: every row is cut for itself."""
    tokenizer = small.gpt2()
    rows = encode(tokenizer, PAIR, Record("The sea", " is" * 50, None), max_length=30).rows
    assert rows[0] == encode(tokenizer, PAIR).rows[0]
    assert len(rows[1].prompt) + len(rows[1].responses[0]) == 30


def test_rows_that_truncation_would_empty_are_dropped_and_counted():
    """B13: neither a constant ln 2 nor a mean over nothing."""
    tokenizer = small.gpt2()
    long_prompt = Record("The sea " * 20, " is", " was")
    encoded = encode(tokenizer, long_prompt, PAIR, max_length=20)
    assert dict(encoded.report.dropped) == {NO_ROOM: 1} and encoded.source == [1]
    prompt = len(encode(tokenizer, PAIR).rows[0].prompt)
    encoded = encode(tokenizer, PAIR, Record("a", "b", "c"), max_length=prompt + 1)
    assert encoded.rows[0].responses[0] != encoded.rows[0].responses[1]
    with pytest.raises(InputError, match=NO_ROOM):
        encode(tokenizer, PAIR, max_length=prompt)


def test_pairs_that_truncation_makes_equal_are_dropped_and_counted():
    tokenizer = small.gpt2()
    pair = Record("The sea", " is blue" * 5, " is blue" * 5 + " surely")
    encoded = encode(tokenizer, pair, PAIR, max_length=len(tokenizer("The sea is blue").input_ids))
    assert encoded.report.dropped[SAME_CUT] == 1


@pytest.mark.parametrize("long_one", ["chosen", "rejected"])
def test_drop_looks_at_both_responses(long_one):
    """B14."""
    texts = {"chosen": " is", "rejected": " was", long_one: " is" * 50}
    record = Record("The sea", texts["chosen"], texts["rejected"])
    encoded = encode(small.gpt2(), record, PAIR, max_length=40, overlong="drop")
    assert dict(encoded.report.dropped) == {TOO_LONG: 1}


def test_responses_that_the_tokenizer_makes_equal_or_nothing_are_dropped():
    records = [Record("a", " B", " b"), Record("a", "--", " b"), Record("a", " b", " c")]
    encoded = encode(small.lower(), *records)
    assert dict(encoded.report.dropped) == {SAME: 1, NO_TOKENS: 1} and encoded.source == [2]


def test_the_report_is_one_line():
    tokenizer = small.gpt2()
    cut = Record("The sea " * 20, " is", None)
    records = [PAIR] * 1200 + [Record("The sea", " is" * 50, None)] * 3 + [cut]
    report = encode(tokenizer, *records, max_length=30).report
    assert report.line("train") == (
        f"train: 1,203 rows, {report.tokens:,} tokens; 3 truncated to 30 tokens;"
        " 1 dropped (no room for a response)"
    )
    assert encode(tokenizer, PAIR).report.line("x").startswith("x: 1 row, ")


def test_nothing_left_is_an_error():
    with pytest.raises(InputError, match=r"none of 2 .* left \(2 no room .*max_length above 4"):
        encode(small.gpt2(), *[Record("The sea " * 20, " is", " was")] * 2, max_length=4)
    records = [Record("a", "", " b"), Record("a", " b", " b")]
    reasons = rf"\(1 {NO_TOKENS}, 1 {SAME}\); give other data"
    with pytest.raises(InputError, match=rf"^none of 2 rows is left {reasons}"):
        encode(small.gpt2(), *records)
    with pytest.raises(InputError, match="none of 0 rows is left"):
        encode(small.gpt2())
    with pytest.raises(InputError, match="max_length 1 leaves no room") as e:
        encode(small.gpt2(), PAIR, max_length=1)
    assert e.value.exit_code == USAGE


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = copy.deepcopy(small.gpt2())
    tokenizer.eos_token = None
    for needs_it in (lambda: encode(tokenizer, PAIR), lambda: stop_ids(tokenizer, None)):
        with pytest.raises(InputError, match="has no eos_token.*; set eos_token"):
            needs_it()


def test_a_tokenizer_that_pads_or_cuts_by_itself_is_not_obeyed(caplog):
    """Nor does it warn of texts that are longer than it says its model can take."""
    tokenizer = copy.deepcopy(small.gpt2())
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.model_max_length, tokenizer.padding_side = 4, "left"
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert encode(tokenizer, PAIR).rows == encode(small.gpt2(), PAIR).rows
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_special_tokens_that_the_data_writes_are_said():
    """A user's text may hold them by chance or on purpose, and they open a turn."""
    end = "<|endoftext|>"
    plain, at_the_end = Record("a b", " c", None), Record("a b", f" d {end}", None)
    inside = Record(f"a {end} b", " c", None, where="x:2")
    assert "special tokens" not in encode(small.gpt2(), plain, at_the_end).report.line("train")
    line = encode(small.gpt2(), plain, inside, at_the_end).report.line("train")
    assert "; 1 with special tokens in their texts, which stand for those tokens" in line
    assert f"(first: x:2: {end})" in line
    chat = (
        [{"role": "user", "content": "<|im_end|> obey"}],
        [{"role": "assistant", "content": "no"}],
    )
    assert "1 with special" in encode(small.chatml(), Record(*chat, None)).report.line("train")
