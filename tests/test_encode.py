"""Encoding: the ids are those of the text, one EOS, nothing empty, nothing silently lost.

Names like B8 refer to published bugs: each test guards the behaviour that the bug got wrong.
"""

import pytest
import small_tokenizers as small
from hypothesis import given, settings
from hypothesis import strategies as st

from data.encode import encode_records
from data.errors import InputError
from data.rows import Record

PAIR = Record("The sea is", " blue.", " surely a newspaper.")


def encode(tokenizer, *records, **options):
    return encode_records(records, tokenizer, **options)


def one(tokenizer, prompt, chosen, rejected=None, **options):
    return encode(tokenizer, Record(prompt, chosen, rejected), **options).rows[0]


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def oracle(tokenizer, prompt, responses):
    """The same split the slow way: one text at a time, one more token while all agree."""
    wholes = [list(tokenizer(prompt + response).input_ids) for response in responses]
    alone = list(tokenizer(prompt).input_ids)
    if tokenizer in (small.llama_end(), small.bert()):
        wholes, alone = [ids[:-1] for ids in wholes], alone[:-1]
    n = 0
    while n < len(alone) and all(ids[n : n + 1] == [alone[n]] for ids in wholes):
        n += 1
    root = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return alone[:n] or [root], [[*ids[n:], tokenizer.eos_token_id] for ids in wholes]


words = st.lists(st.sampled_from(["the", "sea", " ", " shells", "s", "\n", "é🙂", "A-b", "."]))
anything = st.one_of(words.map("".join), st.text(st.characters(codec="utf-8"), max_size=12))
answers = anything.filter(str.strip)


@pytest.mark.parametrize("name", small.ALL)
@settings(max_examples=60, deadline=None)
@given(prompt=anything, chosen=answers, rejected=answers)
def test_the_split_is_that_of_the_slow_oracle(name, prompt, chosen, rejected):
    tokenizer = small.ALL[name]()
    try:
        row = one(tokenizer, prompt, chosen, rejected)
    except InputError:  # the tokenizer makes both texts alike, or one of them nothing
        want = oracle(tokenizer, prompt, [chosen, rejected])[1]
        assert want[0] == want[1] or min(map(len, want)) == 1
    else:
        assert (row.prompt, row.responses) == oracle(tokenizer, prompt, [chosen, rejected])


@pytest.mark.parametrize("name", small.BYTE_LEVEL)
@settings(max_examples=60, deadline=None)
@given(prompt=anything, chosen=answers, rejected=answers)
def test_ids_decode_to_the_text(name, prompt, chosen, rejected):
    """B8, B23: whatever merges at the boundary, no character is lost, doubled or moved."""
    tokenizer = small.BYTE_LEVEL[name]()
    if chosen == rejected:
        return
    row = one(tokenizer, prompt, chosen, rejected)
    for response, text in zip(row.responses, (chosen, rejected), strict=True):
        ids = row.prompt + response
        assert ids.count(tokenizer.eos_token_id) - (ids[0] == tokenizer.eos_token_id) == 1
        start = 1 if ids[0] in tokenizer.all_special_ids else 0
        assert text_of(tokenizer, ids[start:-1]) == prompt + text
    assert row.ends == [True, True]


@settings(max_examples=100, deadline=None)
@given(
    records=st.lists(st.builds(Record, anything, answers, answers), min_size=1, max_size=6),
    max_length=st.integers(2, 12),
    name=st.sampled_from(list(small.ALL)),
    drop=st.booleans(),
)
def test_lengths_counts_and_symmetry(records, max_length, name, drop):
    tokenizer = small.ALL[name]()
    options = {"max_length": max_length, "overlong": "drop" if drop else "truncate"}
    try:
        encoded = encode(tokenizer, *records, **options)
    except InputError as error:
        assert f"none of {len(records)} rows is left" in str(error)
        return
    report = encoded.report
    assert [row.index for row in encoded.rows] == list(range(report.rows))
    assert report.records == len(records) == report.rows + report.dropped.total()
    assert report.truncated == sum(not all(row.ends) for row in encoded.rows)
    assert not (drop and report.truncated)
    sizes = [len(row.prompt) + sum(map(len, row.responses)) for row in encoded.rows]
    assert (report.tokens, report.mean) == (sum(sizes), sum(sizes) / len(sizes))
    longest = []
    for row in encoded.rows:
        assert row.prompt and all(row.responses) and row.responses[0] != row.responses[1]
        lengths = [len(row.prompt) + len(response) for response in row.responses]
        longest.append(max(lengths))
        for response, ends in zip(row.responses, row.ends, strict=True):
            assert (response[-1] == tokenizer.eos_token_id) == ends
    assert max(longest) == report.longest <= max_length
    swapped = [Record(r.prompt, r.rejected, r.chosen) for r in records]
    for row, other in zip(encoded.rows, encode(tokenizer, *swapped, **options).rows, strict=True):
        assert (row.prompt, row.responses) == (other.prompt, other.responses[::-1])
        assert (row.ends, row.characters) == (other.ends[::-1], other.characters[::-1])


def test_a_merge_across_the_boundary_goes_to_the_response():
    """B8: the prompt's own tokens are no prefix here; cutting by their number loses text."""
    tokenizer = small.gpt2()
    alone = tokenizer("The sea ").input_ids
    row = one(tokenizer, "The sea ", "shells", "is")
    assert row.prompt == alone[:-1] and text_of(tokenizer, alone[-1:]) == " "
    assert text_of(tokenizer, row.responses[0][:-1]) == " shells"
    report = encode(tokenizer, *[Record("The sea ", "shells", None)] * 3, PAIR).report
    assert report.shifted == 3
    assert report.line("x").endswith("; 3 split before the prompt's end (merged tokens)")


def test_tokenisation_is_joint():
    """B23: tokenising prompt and response apart gives other ids."""
    tokenizer = small.gpt2()
    apart = tokenizer("The new").input_ids + tokenizer("spaper").input_ids
    row = one(tokenizer, "The new", "spaper")
    together = row.prompt + row.responses[0][:-1]
    assert together == tokenizer("The newspaper").input_ids != apart


def test_rejected_alone_may_move_the_split_and_chosen_keeps_its_tokens():
    """B8: the prefix that `rejected` shortens takes nothing away from `chosen`."""
    tokenizer = small.gpt2()
    row = one(tokenizer, "The new", ": good", "spaper")
    assert len(row.prompt) < len(tokenizer("The new").input_ids)
    assert text_of(tokenizer, row.prompt + row.responses[0][:-1]) == "The new: good"


@pytest.mark.parametrize("name", small.ALL)
def test_every_response_ends_with_one_eos_though_pad_is_eos(name):
    """B5, B6, B7: EOS is there, once, and trained; BOS once where the tokenizer adds it."""
    tokenizer = small.ALL[name]()
    row = one(tokenizer, PAIR.prompt, PAIR.chosen, PAIR.rejected)
    for response in row.responses:
        ids = row.prompt + response
        assert response.index(tokenizer.eos_token_id) == len(response) - 1
        adds = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == adds


def test_special_tokens_written_in_the_text_are_not_doubled():
    """B7, for data that carry BOS and EOS as text."""
    tokenizer = small.llama()
    marked, bare = one(tokenizer, "<s>The sea", " is</s>"), one(tokenizer, "The sea", " is")
    assert (marked.prompt, marked.responses) == (bare.prompt, bare.responses)
    assert marked.ends == [True]


def test_an_end_token_inside_a_response_is_refused_or_left_out():
    """Field 37: what follows it would be trained as if a text went on after its end."""
    inside = Record("The sea", " is<|endoftext|> blue", None, where="a.jsonl:3")
    with pytest.raises(
        InputError, match=r"^a.jsonl:3: the end token <\|endoftext\|> stands inside"
    ):
        encode(small.gpt2(), inside)
    encoded = encode(small.gpt2(), inside, PAIR, bad_rows="skip")
    assert encoded.source == [1] and "1 bad skipped, first: a.jsonl:3: " in encoded.report.line("x")


def test_white_space_after_an_end_token_in_a_string_is_left_out():
    """Field 37: it would get a second end token behind it."""
    row = one(small.chatml(), "The sea", " is<|im_end|>\n")
    assert row.responses == one(small.chatml(), "The sea", " is").responses


def test_token_id_zero_and_eos_inside_a_response_are_trained_like_all_others():
    """B20, B5: nothing is masked by its value; id 0 is EOS and pad of this tokenizer."""
    tokenizer = small.gpt2()
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    record = Record("The sea", " is<|endoftext|> blue", None)
    row = encode(tokenizer, record, sampled=True).rows[0]
    assert [0, 0] == [token for token in row.responses[0] if token == 0]
    assert row.responses[0][-1] == 0


@pytest.mark.parametrize("name", small.ALL)
def test_a_split_at_the_prompts_end_is_not_reported(name):
    """Not even where the tokenizer puts something behind the prompt when it stands alone."""
    report = encode(small.ALL[name](), PAIR).report
    assert report.shifted == (name == "merging")
    assert ("merged" in report.line("x")) == (name == "merging")


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_an_empty_prompt_gets_a_root_to_predict_from(name):
    tokenizer = small.ALL[name]()
    root = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    row = one(tokenizer, "", "blue", "green")
    assert row.prompt == [root]
    assert text_of(tokenizer, row.responses[0][:-1]) == "blue"


def test_a_prompt_that_a_merge_swallows_gets_a_root():
    tokenizer = small.merging()
    row = one(tokenizer, "T", "he sea", "he shells")
    assert row.prompt == [tokenizer.eos_token_id]
    assert text_of(tokenizer, row.responses[0][:-1]) == "The sea"


def test_characters_are_those_of_lm_evals_acc_norm():
    """len(choice), the space before it not counted and nothing stripped."""
    row = one(small.gpt2(), "The sea", " is blue ", "  é🙂")
    assert row.characters == [len("is blue "), len(" é🙂")]
    assert one(small.gpt2(), "The sea", "is").characters == [2]


def test_margin_is_kept():
    assert encode(small.gpt2(), Record("a", "b", "c", 1.5)).rows[0].margin == 1.5
    assert encode(small.gpt2(), Record("a", "b", "c", None)).rows[0].margin == 0.0


class Framing:
    """The GPT-2 tokenizer, with something done to every text that special tokens are added to."""

    def __init__(self, before, after):
        self.before, self.after = before, after

    def __getattr__(self, name):
        return getattr(small.gpt2(), name)

    def __call__(self, texts, add_special_tokens, **options):
        if not add_special_tokens:
            return small.gpt2()(texts, **options)
        return small.gpt2()([self.before + t + self.after(t) for t in texts], **options)


def test_a_tokenizer_that_changes_the_text_has_nothing_cut_off():
    """A space put in front makes other tokens, so what stands behind cannot be told."""
    tokenizer = Framing(" ", lambda text: "")
    row = one(tokenizer, "The sea", " is", " was")
    spaced = one(small.gpt2(), " The sea", " is", " was")
    assert (row.prompt, row.responses) == (spaced.prompt, spaced.responses)


def test_what_a_tokenizer_puts_behind_some_texts_only_is_cut_off_only_there():
    tokenizer = Framing("", lambda text: "" if text.endswith(".") else "<|endoftext|>")
    for chosen in (" is blue", " is blue."):
        row, plain = (one(t, "The sea", chosen) for t in (tokenizer, small.gpt2()))
        assert (row.prompt, row.responses) == (plain.prompt, plain.responses)
