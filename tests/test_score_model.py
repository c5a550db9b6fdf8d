"""A trained reward model as a reward: the scores are its own, of every text alone."""

import pytest
import small_tokenizers
import tiny_models
import torch
from test_score import one_line
from tiny_models import FAMILIES, float64_throughout
from tolerances import TIGHT
from transformers import AutoConfig, AutoModelForSequenceClassification

from data.encode import encode_records
from data.errors import USAGE, InputError
from data.rows import Record
from rollout.reward_model import ModelReward
from rollout.score import score
from runtime.config import TrainConfig


def make_scorer(family="llama", **more):
    name, options = FAMILIES[family]
    torch.manual_seed(0)
    shape = tiny_models.SHAPE | options | dict(vocab_size=512, max_position_embeddings=256)
    if "n_positions" in shape:
        shape["n_positions"] = 256
    config = AutoConfig.for_model(name, **(shape | dict(num_labels=1) | more))
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float64)
    return model.train()  # ModelReward must see to eval mode itself


def own_score(model, ids):
    """As transformers gives it, for one sequence without padding."""
    model.config.get_text_config().pad_token_id = None  # then it reads the last token
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, 0].item()


TEXTS = [
    ("Question: how do I carry soup to the table? Answer:", " A bowl will do."),
    ("The sea", " is blue."),
    ("The newspaper says that the weather is fine,", " and the sea is blue and blue and blue."),
    ("user: hello", " assistant: hello, how are you?"),
]
ENDS = [small_tokenizers.gpt2, small_tokenizers.llama, small_tokenizers.bert]


def ids_of(tokenizer, prompt, response):
    (row,) = encode_records([Record(prompt, response, None)], tokenizer, sampled=True).rows
    return row.prompt + row.responses[0]


@pytest.mark.parametrize("make_tokenizer", ENDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral with a window"])
@pytest.mark.parametrize("layout", ["tree", "rectangle"])
def test_scores_are_the_models_own_of_each_text_alone(make_tokenizer, family, layout):
    """E1, E3, E4: with pad = eos, end tokens inside prompt and response, in any company."""
    tokenizer = make_tokenizer()
    end = tokenizer.eos_token
    texts = TEXTS + [(f"She{end} sells", f" sea{end} shells"), (f"a{end}{end}", f" b{end}")]
    prompts, responses = map(list, zip(*texts, strict=True))
    with float64_throughout():
        model = make_scorer(family)
        reward = ModelReward(model, tokenizer, max_tokens=60, layout=layout)
        scores = reward(prompts, responses)
        alone = [own_score(model, ids_of(tokenizer, p, r)) for p, r in texts]
        assert score(reward, prompts, responses, batch_size=2) == pytest.approx(alone, rel=1e-9)
    assert len(set(alone)) == len(texts)
    assert scores == pytest.approx(alone, rel=100 * TIGHT)
    assert ids_of(tokenizer, *texts[-1]).count(tokenizer.eos_token_id) == 3  # none is added


def test_an_empty_response_is_its_end_token_alone():
    tokenizer = small_tokenizers.lower()  # drops dashes: the second response has no token either
    with float64_throughout():
        model = make_scorer()
        reward = ModelReward(model, tokenizer)
        scores = reward(["the sea", "the sea", "the sea"], ["", "-", " is"])
        ids = tokenizer("the sea")["input_ids"] + [tokenizer.eos_token_id]
        expected = own_score(model, ids)
        assert reward(["the sea"], [""]) == pytest.approx([expected], rel=100 * TIGHT)
    assert scores[:2] == pytest.approx([expected] * 2, rel=100 * TIGHT)
    assert scores[2] != pytest.approx(expected, rel=1e-6)


def test_a_long_text_keeps_its_start_as_in_training():
    tokenizer = small_tokenizers.gpt2()
    prompt, response = TEXTS[2]
    ids = ids_of(tokenizer, prompt, response)
    room = len(tokenizer(prompt)["input_ids"])
    with float64_throughout():
        model = make_scorer()
        reward = ModelReward(model, tokenizer, max_length=room + 3)
        expected = own_score(model, ids[: room + 3])
        assert reward([prompt], [response]) == pytest.approx([expected], rel=100 * TIGHT)
    reward = ModelReward(model, tokenizer, max_length=room)
    with pytest.raises(InputError) as error:
        score(reward, ["The sea", prompt], [" is", response])
    assert "row 2 (prompt 'The newspaper says" in one_line(error)
    assert f"no room for a response in max_length {room}" in one_line(error)


def test_micro_batches_hold_what_max_tokens_allows():
    tokenizer, model, sizes, shapes = small_tokenizers.gpt2(), make_scorer(), [], []

    def note(_, args, kwargs, output):
        sizes.append(kwargs["input_ids"].numel())
        shapes.append(tuple(kwargs["input_ids"].shape))
        assert not output.last_hidden_state.requires_grad

    model.base_model.register_forward_hook(note, with_kwargs=True)
    prompts, responses = map(list, zip(*TEXTS, strict=True))
    lengths = sorted(len(ids_of(tokenizer, p, r)) for p, r in TEXTS)
    ModelReward(model, tokenizer, max_tokens=lengths[0] + lengths[1])(prompts, responses)
    assert sizes == [lengths[0] + lengths[1], lengths[2], lengths[3]]
    sizes.clear()
    ModelReward(model, tokenizer, max_tokens=lengths[0] + lengths[1] - 1)(prompts, responses)
    assert sizes == lengths
    sizes.clear()
    ModelReward(model, tokenizer)(prompts, responses)
    assert sizes == [sum(lengths)]
    ModelReward(model, tokenizer, layout="rectangle")(prompts, responses)
    assert shapes[-2:] == [(1, sum(lengths)), (4, lengths[-1])]
    assert ModelReward(model, tokenizer)([], []) == []


def test_its_defaults_are_those_of_training():
    reward = ModelReward(make_scorer(), small_tokenizers.gpt2())
    train = TrainConfig("reward", "pocket")
    assert (reward.max_tokens, reward.max_length) == (train.max_tokens, train.max_length)
    assert reward.layout == "tree"


def test_prompts_and_responses_of_unequal_number_are_refused():
    reward = ModelReward(make_scorer(), small_tokenizers.gpt2())
    with pytest.raises(ValueError):
        reward(["The sea", "The sea"], [" is deep"])


def test_a_model_without_one_output_is_refused():
    """E5: two outputs have no order, and would be taken for one silently."""
    tokenizer = small_tokenizers.gpt2()
    with pytest.raises(InputError) as error:
        ModelReward(make_scorer(num_labels=2), tokenizer)
    assert "LlamaForSequenceClassification has num_labels 2" in one_line(error)
    assert error.value.exit_code == USAGE
    config = AutoConfig.for_model("bert", **tiny_models.SHAPE, num_labels=1)
    with pytest.raises(InputError) as error:
        ModelReward(AutoModelForSequenceClassification.from_config(config), tokenizer)
    assert "BertForSequenceClassification has no head `score`" in one_line(error)


def test_dropout_is_off():
    model = make_scorer("gpt2", resid_pdrop=0.5)
    reward = ModelReward(model, small_tokenizers.gpt2())
    assert reward(*zip(TEXTS[0])) == reward(*zip(TEXTS[0]))
    assert not model.training
