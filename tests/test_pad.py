"""The pad token of a reward model: no text is made of it, so that none is split otherwise."""

import random
from itertools import product

import pytest
import small_tokenizers
import torch
from tiny_models import make_head
from tokenizers import AddedToken
from tolerances import loose
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from data.encode import encode_records
from data.rows import Record
from models.load import load_scorer, load_tokenizer
from models.pad import give_pad_token, pad_token
from rollout.reward_model import load_reward_model

SHAPES = list(product(("none", "eos", "own"), ("none", "bos"), ("none", "unk"), (0, 3)))
IDS = ["-".join(map(str, shape)) for shape in SHAPES]
SPECIAL = ("<end>", "<bos>", "<unk>", "<padding>")


def make(pad, bos, unk):
    """A byte-level tokenizer with an end token, and of the others those asked for."""
    names = {"eos_token": "<end>"}
    names |= {"bos_token": "<bos>"} if bos == "bos" else {}
    names |= {"unk_token": "<unk>"} if unk == "unk" else {}
    if pad != "none":
        names["pad_token"] = "<end>" if pad == "eos" else "<padding>"
    inside = small_tokenizers._bpe([*dict.fromkeys(names.values())])
    return PreTrainedTokenizerFast(tokenizer_object=inside, **names)


def texts(count):
    draw = random.Random(0)
    words = [
        "!",
        "!!",
        "!!!",
        " ",
        "  ",
        "\n",
        "The sea",
        "She sells",
        "soup",
        "?!",
        "é",
        "日本",
        "0",
    ]
    words += [*SPECIAL, '"', "#", "<|", "|>", "Great!!"]
    return ["".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(count)]


def write_model(folder, tokenizer, spare):
    """A causal LM as another program would have saved it, with `spare` rows in its embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + spare,
        **shape,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def encoded(tokenizer, every):
    ids = tokenizer(every)["input_ids"]
    plain = tokenizer(every, add_special_tokens=False)["input_ids"]
    decoded = [tokenizer.decode(i, skip_special_tokens=True) for i in ids]
    return ids, plain, decoded


@pytest.mark.parametrize("pad, bos, unk, spare", SHAPES, ids=IDS)
def test_field_06_a_reward_models_tokenizer_splits_every_text_as_before(
    tmp_path, pad, bos, unk, spare
):
    name = write_model(tmp_path / "base", make(pad, bos, unk), spare)
    tokenizer = load_tokenizer(name)
    every = texts(1000)
    before = encoded(tokenizer, every)
    model = load_scorer(name, tokenizer, dtype="float32")
    assert encoded(tokenizer, every) == before

    # the pad token is special, not the end token, and the model knows it
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.added_tokens_decoder[tokenizer.pad_token_id].special
    assert model.config.pad_token_id == tokenizer.pad_token_id
    new = (pad, bos, unk) in (("none", "none", "none"), ("eos", "none", "none"))
    assert (tokenizer.pad_token == "<|pad|>") == new
    rows = model.get_input_embeddings().weight
    assert len(rows) == model.config.vocab_size == len(tokenizer) - new + max(spare, new)
    if new and spare == 0:
        assert not rows[-1].any()

    # saved and read again, by transformers alone
    model.save_pretrained(tmp_path / "final")
    tokenizer.save_pretrained(tmp_path / "final")
    saved = AutoTokenizer.from_pretrained(tmp_path / "final")
    assert encoded(saved, every) == before and saved.pad_token_id == tokenizer.pad_token_id

    # and its scores are ours, of texts alone and padded beside longer ones
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    prompts, responses = (
        ["The sea!!", "soup", "She sells! !!"],
        [" is blue!!", "!", " sea shells!!!"],
    )
    reward = load_reward_model(
        str(tmp_path / "final"),
        load_tokenizer(str(tmp_path / "final")),
        dtype="float32",
        device=torch.device("cpu"),
    )
    ours = reward(prompts, responses)
    whole = [p + r + "<end>" for p, r in zip(prompts, responses, strict=True)]
    records = [Record(p, r, None) for p, r in zip(prompts, responses, strict=True)]
    trained = [row.prompt + row.responses[0] for row in encode_records(records, saved).rows]
    assert trained == [list(ids) for ids in saved(whole)["input_ids"]]
    bound = 100 * loose(torch.float32)
    with torch.no_grad():
        batch = saved(whole, padding=True, padding_side="right", return_tensors="pt")
        padded = plain(**batch).logits[:, 0].tolist()
        alone = [plain(torch.tensor([ids])).logits[0, 0].item() for ids in trained]
    assert ours == pytest.approx(alone, abs=bound) and padded == pytest.approx(alone, abs=bound)


def test_field_06_an_id_that_text_holds_is_never_made_the_pad_token():
    """The case of the report: no bos, no unk, pad = eos; token 1 is `!`."""
    tokenizer = make("eos", "none", "none")
    model = make_head("sequence", "llama", torch.float32, vocab_size=len(tokenizer))
    assert pad_token(tokenizer) is None
    give_pad_token(tokenizer, model)
    assert tokenizer.pad_token == "<|pad|>" and len(model.get_input_embeddings().weight) == 371
    assert tokenizer.tokenize("Great!!")[-2:] == ["!", "!"]


def with_special(*names, **more):
    """Tokens that are registered as special, by no role."""
    tokenizer = make("eos", "none", "none")
    tokenizer.add_tokens([AddedToken(name, special=True) for name in names])
    tokenizer.add_tokens([AddedToken("<ordinary_pad>", special=False)])
    for role, token in more.items():
        setattr(tokenizer, role, token)
    return tokenizer


@pytest.mark.parametrize("tokenizer, expected", [
    (with_special("<x>", "<|vision_pad|>", "<|reserved_1|>"), "<|vision_pad|>"),
    (with_special("<x>", "<|RESERVED_special_token_1|>"), "<|RESERVED_special_token_1|>"),
    (with_special("<x>", "<unused0>", "<u>", unk_token="<u>"), "<unused0>"),
    (with_special("<x>", "<b>", "<u>", unk_token="<u>", bos_token="<b>"), "<u>"),
    (with_special("<x>", "<b>", bos_token="<b>"), "<b>"),
    (with_special("<x>", bos_token="<end>", unk_token="<end>"), "<x>"),
    (with_special("<|im_end|>", "<|eot_id|>", "</s>", "<|im_start|>"), "<|im_start|>"),
    (with_special("<|im_end|>", "<|eot_id|>", "</s>"), None),
    (with_special(), None),
    (with_special("<p>", "<|reserved_1|>", pad_token="<p>"), "<p>"),
])  # fmt: skip
def test_the_pad_token_is_the_special_token_of_least_use(tokenizer, expected):
    assert pad_token(tokenizer) == expected


def test_a_pad_token_that_the_model_has_no_row_for_gets_one(tmp_path):
    """As `[PAD]` added to a tokenizer whose model was not resized."""
    tokenizer = make("eos", "bos", "unk")
    model = make_head("sequence", "llama", torch.float32, vocab_size=len(tokenizer))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    give_pad_token(tokenizer, model)
    assert tokenizer.pad_token == "[PAD]" and tokenizer.pad_token_id == model.config.pad_token_id
    assert len(model.get_input_embeddings().weight) == tokenizer.pad_token_id + 1


def test_a_new_pad_token_has_a_name_of_its_own():
    tokenizer = make("eos", "none", "none")
    tokenizer.add_tokens(["<|pad|>"])  # an ordinary one
    model = make_head("sequence", "llama", torch.float32, vocab_size=len(tokenizer))
    give_pad_token(tokenizer, model)
    assert tokenizer.pad_token == "<<|pad|>>" and tokenizer.pad_token_id == 371
