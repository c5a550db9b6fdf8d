"""The reward model in the loop: where the score is read, the head, and what it leaves behind."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from runs import run
from tiny_models import FAMILIES, float64_throughout, make_head, make_rows, relative_error
from tolerances import TIGHT, loose
from transformers import pipeline

from data.encode import encode_records
from data.pocket import heldout_rows
from data.records import Record
from data.splits import Split
from data.trees import pack
from losses import LOSSES
from losses.reward import RewardConfig, step
from models.forward import Scorer
from models.layout import choose_layout
from models.load import HEAD, load_scorer, load_tokenizer
from runtime.sources.heldout import evaluate_rows

LOSS = LOSSES["reward"]
WITH_SCORES = [family for family in FAMILIES if not family.startswith("phi, ")]


def score_alone(model, ids):
    """The score as the model's own code gives it, for one sequence without padding."""
    model.config.get_text_config().pad_token_id = None  # then transformers reads the last token
    return model(torch.tensor([ids])).logits[0, 0]


@pytest.mark.parametrize("family", WITH_SCORES)
@pytest.mark.parametrize("layout", ["tree", "rectangle"])
def test_scores_are_the_models_own_of_each_sequence_alone(family, layout):
    """E1, E2, E8: at the last real token, with token 2 (the end token) inside texts as well."""
    rows = make_rows(5, seed=2)
    rows[0].responses[0][0] = 2
    rows[1].prompt[0] = 2
    with float64_throughout():
        model = make_head("sequence", family)
        scores = Scorer(model)(pack(rows, layout=layout, include_last_token=True))
        alone = [score_alone(model, row.prompt + r) for row in rows for r in row.responses]
    assert relative_error(scores, torch.stack(alone)) < 100 * TIGHT


@pytest.mark.parametrize("family", WITH_SCORES)
def test_every_family_is_given_trees(family):
    model = make_head("sequence", family, torch.float32)
    assert choose_layout(model, "auto", "seq_cls")[::2] == ("tree", "token trees")


def test_a_new_head_is_drawn_from_the_seed_with_the_scale_stated():
    """E6: two loads of one seed agree before anything else has drawn; another seed does not."""
    tokenizer = load_tokenizer("pocket")
    heads = [
        load_scorer("pocket", tokenizer, dtype="float32", seed=seed).get_parameter(HEAD)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    width = heads[0].shape[1]
    # the deviation of n normals is off by 1 / sqrt(2 n) of itself; six of those are never reached
    assert heads[0].std().item() * math.sqrt(width + 1) == pytest.approx(
        1, abs=6 / math.sqrt(2 * width)
    )
    assert heads[0].shape[0] == 1  # E5


def test_margin_and_centring_are_live():
    """E10: the margin is subtracted from the gap; E9: the square is of the sum."""
    batch = pack(make_rows(1), include_last_token=True)
    batch = batch.with_columns({"margin": torch.tensor([0.5, 0.5])})
    scores = torch.tensor([1.0, 0.2], dtype=torch.float64)
    (loss,) = step(scores, batch, RewardConfig(center_coef=0.01)).totals.values()
    expected = math.log(1 + math.exp(-(1.0 - 0.2 - 0.5))) + 0.01 * (1.0 + 0.2) ** 2
    assert loss.item() == pytest.approx(expected, rel=TIGHT)
    with pytest.raises(ValueError, match="center_coef"):
        RewardConfig(center_coef=-1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("reward")
    assert run("--loss", "reward", "--max_steps", "6", "--output_dir", str(out)).code == 0
    return out


def test_the_saved_model_gives_the_training_scores_again(trained):
    """E3: the text with its end token, as it was trained on; also padded beside longer texts."""
    summary = json.loads((trained / "summary.json").read_text())
    final, texts = str(trained / "final"), []
    tokenizer = load_tokenizer(final)
    rows = heldout_rows()
    records = [Record(r["prompt"], r["chosen"], r["rejected"]) for r in rows]
    encoded = encode_records(records, tokenizer).rows
    no_margin = {"margin": torch.zeros(2 * len(encoded))}
    data = Split(encoded, packing={"include_last_token": True}, columns=no_margin)
    model = load_scorer(final, tokenizer, dtype="float32")
    scorer, config = Scorer(model), LOSS.config()
    after = evaluate_rows(Accelerator(cpu=True), scorer, LOSS, config, data, 4096)
    assert after == pytest.approx(
        summary["after"], rel=loose(torch.float32), abs=loose(torch.float32)
    )

    scores = scorer(data.batch(range(8), torch.device("cpu"))).tolist()
    for row in rows[:8]:
        texts += [
            row["prompt"] + row[name] + tokenizer.eos_token for name in ("chosen", "rejected")
        ]
    classify = pipeline("text-classification", model=final, device="cpu")
    for batch_size in (1, 16):
        found = classify(texts, function_to_apply="none", batch_size=batch_size)
        ours = pytest.approx(scores, abs=100 * loose(torch.float32))
        assert [answer["score"] for answer in found] == ours


def test_a_saved_reward_model_keeps_its_head_when_loaded_to_train_on(trained):
    tokenizer = load_tokenizer(str(trained / "final"))
    one, other = (
        load_scorer(str(trained / "final"), tokenizer, dtype="float32", seed=seed).get_parameter(
            HEAD
        )
        for seed in (1, 2)
    )
    assert torch.equal(one, other)
