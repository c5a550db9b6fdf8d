"""Token trees against the padded rectangle, which is against every sequence alone."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import (
    FAMILIES,
    flat_grad,
    float64_throughout,
    make_head,
    make_model,
    make_rows,
    relative_error,
)
from tolerances import TIGHT, loose
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES as TOKEN_CLASSIFIERS,
)

from data.errors import InputError
from data.row_table import Row, shared_length
from data.splits import Split
from data.trees import pack, tree_mask, tree_tokens
from losses.base import masked_sum
from losses.logprobs import token_logprobs
from models import layout as layouts
from models.forward import Policy
from models.inference import forward_pass
from models.layout import choose_layout, common_layout

# A forward and backward through three layers is some hundred roundings of what TIGHT allows one.
THROUGH_A_MODEL = 100 * TIGHT  # 1e-10


def alone(model, row):
    """Log-probs of each response, each sequence by itself, through the model's own head."""
    for response in row.responses:
        ids = torch.tensor([row.prompt + response])
        logps = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        yield logps[len(row.prompt) - 1 :]


def run(model, rows, layout, fused=True):
    model.zero_grad()
    logps = Policy(model, fused=fused)(pack(rows, layout=layout))
    weights = torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype).view(logps.shape)
    (logps * weights).sum().backward()
    return logps.detach(), flat_grad(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_equals_rectangle_in_log_probs_and_gradients(family):
    rows = make_rows(5)
    with float64_throughout():
        model = make_model(family)
        tree_logps, tree_grad = run(model, rows, "tree")
        rect_logps, rect_grad = run(model, rows, "rectangle")
        assert relative_error(tree_logps, rect_logps) < THROUGH_A_MODEL
        assert relative_error(tree_grad, rect_grad) < THROUGH_A_MODEL
        by_itself = [logps for row in rows for logps in alone(model, row)]
    for logps, expected in zip(tree_logps, by_itself, strict=True):
        assert relative_error(logps[: len(expected)], expected) < THROUGH_A_MODEL
        assert not logps[len(expected) :].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_given_trees(family):
    layout, policy, line = choose_layout(make_model(family, torch.float32), "auto")
    assert (layout, policy.fused, line) == ("tree", True, "token trees")


def test_a_model_that_refuses_the_mask_takes_the_rectangle_and_says_so():
    model = make_model("bloom", torch.float32, n_layer=2, n_head=4)
    layout, policy, line = choose_layout(model, "auto")
    assert (layout, policy.fused) == ("rectangle", True)
    assert "no token trees" in line and "ValueError" in line


WITH_VALUES = [f for f, (name, _) in FAMILIES.items() if name in TOKEN_CLASSIFIERS]
REFUSES = dict(family="bloom", dtype=torch.float32, n_layer=2, n_head=4)


@pytest.mark.parametrize(
    "others, who",
    [
        ([("the critic", make_head("token", **REFUSES), "token_cls")], "the critic"),
        (
            [
                ("the critic", make_head("token", "gpt_neox", torch.float32), "token_cls"),
                ("the reference", make_model(**REFUSES), "causal_lm"),
            ],
            "the reference",
        ),
    ],
    ids=["critic", "reference"],
)
def test_models_given_the_same_batches_take_trees_only_if_all_can(others, who):
    """Values and log-probs of the layout chosen are those of each sequence by itself."""
    models = [("--model", make_model(dtype=torch.float32), "causal_lm"), *others]
    layout, modules, line = common_layout(models, "auto")
    assert layout == "rectangle" and len(modules) == len(models)
    assert "no token trees (ValueError" in line and line.endswith(f", because of {who}")
    rows, batch = make_rows(3), pack(make_rows(3), layout=layout, include_last_token=True)
    expected = [x for row in rows for x in alone(models[0][1], row)]
    for ours, logps in zip(modules[0](batch), expected, strict=True):
        assert relative_error(ours[: len(logps)], logps) < loose(torch.float32)
    with pytest.raises(InputError, match=rf"^--layout tree: {who} cannot take it \(ValueError"):
        common_layout(models, "tree")
    assert common_layout(models, "rectangle")[2] == "padded rectangle, as asked"
    assert common_layout(models[:-1], "auto")[::2] == ("tree", "token trees")


@pytest.mark.parametrize("family", WITH_VALUES)
def test_critics_of_every_family_are_given_trees(family):
    critic = make_head("token", family, torch.float32)
    assert choose_layout(critic, "auto", "token_cls")[::2] == ("tree", "token trees")


def test_a_critic_whose_values_are_others_in_a_tree_is_noticed(monkeypatch):
    """By its values alone: the policy, which has no window, still takes trees."""
    right = tree_mask
    monkeypatch.setattr("models.forward.tree_mask", lambda *a, window=None: right(*a))
    critic = make_head("token", "mistral with a window", torch.float32)
    models = [
        ("--model", make_model(dtype=torch.float32), "causal_lm"),
        ("it", critic, "token_cls"),
    ]
    layout, _, line = common_layout(models, "auto")
    assert layout == "rectangle" and "no token trees (values differ by" in line


@pytest.mark.parametrize(
    "family, option", [("granite", dict(logits_scaling=3.0)), ("cohere", dict(logit_scale=0.25))]
)
def test_logits_that_are_scaled_after_the_head_go_through_the_models_own(family, option):
    model = make_model(family, **option)
    layout, policy, line = choose_layout(model, "auto")
    assert (layout, policy.fused) == ("tree", False) and "own head" in line
    rows = make_rows(3)
    logps = policy(pack(rows))
    for ours, expected in zip(logps, (x for r in rows for x in alone(model, r)), strict=True):
        assert relative_error(ours[: len(expected)], expected) < THROUGH_A_MODEL


def test_a_window_left_out_of_the_mask_is_noticed(monkeypatch):
    model = make_model("mistral with a window", torch.float32)
    right = tree_mask
    monkeypatch.setattr("models.forward.tree_mask", lambda *a, window=None: right(*a))
    assert choose_layout(model, "auto")[0] == "rectangle"


def test_all_models_are_tried_again_as_they_will_be_used(monkeypatch):
    """Each by itself would take trees in another way than the rectangle that all are given."""

    def choose(model, wanted, task, name):
        layout = "rectangle" if model == "stubborn" else {"auto": "tree"}.get(wanted, wanted)
        return layout, (model, wanted, task), f"line of {model}"

    monkeypatch.setattr(layouts, "choose_layout", choose)
    models = [("--model", "mild", "causal_lm"), ("the critic", "stubborn", "token_cls")]
    together = [("mild", "rectangle", "causal_lm"), ("stubborn", "rectangle", "token_cls")]
    line = "line of stubborn, because of the critic"
    assert common_layout(models, "auto") == ("rectangle", together, line)
    assert common_layout(models, "rectangle") == ("rectangle", together, "line of mild")
    alone = [("mild", "auto", "causal_lm")]
    assert common_layout(models[:1], "auto") == ("tree", alone, "line of mild")


def test_the_rows_that_a_model_is_tried_with_tell_trees_from_rectangles():
    """Prompts that are shared, one first token too, unequal lengths; no two texts begin alike."""
    for vocabulary in (5, 64):
        model = make_model(vocab_size=vocabulary)
        rows = layouts._rows(model)
        tokens = {t for row in rows for part in (row.prompt, *row.responses) for t in part}
        assert tokens <= set(range(3, vocabulary)), "special tokens, or none of the vocabulary"
        shared = [row.responses[0][0] == row.responses[1][0] for row in rows]
        assert shared[0] and (vocabulary == 5 or not shared[1])
        lengths = [len(part) for row in rows for part in (row.prompt, *row.responses)]
        assert len(rows) == 2 and len(set(lengths)) >= 4 and max(lengths) < 10
        assert layouts._rows(make_model(vocab_size=4))[0].prompt == [3] * 7
    assert rows[0].responses[0][1:] != rows[0].responses[1][1:]


@pytest.mark.parametrize(
    "field, value, ways",
    [
        (None, None, 2),
        ("logits_scaling", 1.0, 2),
        ("logits_scaling", 2.0, 1),
        ("logit_scale", 0.25, 1),
        ("final_logit_softcapping", 2.0, 1),
        ("final_logit_softcapping", None, 2),
    ],
)
def test_a_config_that_changes_the_logits_leaves_the_models_own_head(field, value, ways):
    model = make_model()
    if field:
        setattr(model.config, field, value)
    found = list(layouts._modules(model, "causal_lm"))
    expected = [(True, ""), (False, ", logits by the model's own head")]
    assert [(policy.fused, note) for policy, note in found] == expected[-ways:]


def test_the_scores_to_compare_with_are_computed_where_the_model_is(monkeypatch):
    asked = []

    def layers(ids, **options):
        asked.append((ids.device.type, ids.shape, options))
        return SimpleNamespace(last_hidden_state=torch.zeros((1, ids.shape[1], 4), device="meta"))

    monkeypatch.setattr(layouts, "body", lambda model: layers)
    monkeypatch.setattr(layouts, "head", lambda model: torch.nn.Linear(4, 1, device="meta"))
    (row,) = make_rows(1)
    scores = layouts._scores_alone(SimpleNamespace(device=torch.device("meta")), [row])
    lengths = [len(row.prompt) + len(response) for response in row.responses]
    assert asked == [("meta", (1, n), {"use_cache": False}) for n in lengths]
    assert scores.shape == (2,)


def test_a_pass_without_gradients_puts_its_batches_where_it_is_told():
    options = dict(max_tokens=20, device=torch.device("meta"))
    batches = [
        batch for _, batch, _ in forward_pass(lambda batch: 0, Split(make_rows(3)), **options)
    ]
    assert {batch.mask.device.type for batch in batches} == {"meta"}


# --- the layout itself ---------------------------------------------------------------------------

SMALL = Row(0, [10, 11], [[20, 21, 22], [20, 31]], [True, True], [3, 2])


def test_each_token_is_computed_once():
    batch = pack([SMALL])
    #                                      prompt  shared  own    own, less its last: only a target
    assert batch.input_ids.tolist() == [[10, 11, 20, 21]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]]
    assert batch.branch.tolist() == [[0, 0, 0, 1]]
    assert tree_tokens(SMALL) == 4 and shared_length(SMALL) == 1
    # 20 is predicted by 11; 21 and 31 by 20, the end of what is shared; 22 by 21
    assert batch.targets.tolist() == [20, 21, 22, 31]
    assert batch.parents.tolist() == [1, 2, 3, 2]
    assert batch.gather.tolist() == [[0, 1, 2], [0, 3, 0]]
    assert batch.mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.num_tokens == 5


def test_with_leaves_the_last_token_of_every_sequence_is_there():
    rows = make_rows(6, seed=3)
    batch = pack(rows, include_last_token=True)
    ends = [response[-1] for row in rows for response in row.responses]
    assert batch.input_ids.flatten()[batch.last].tolist() == ends
    lengths = [len(row.prompt) + len(r) for row in rows for r in row.responses]
    assert (batch.position_ids.flatten()[batch.last] + 1).tolist() == lengths


def test_who_sees_whom():
    rows = [SMALL, Row(1, [40], [[41, 42], [43, 44]], [True, True], [1, 1])]
    batch = pack(rows)
    seen = tree_mask(batch.example, batch.branch, batch.position_ids)[0, 0]
    tokens = batch.input_ids[0].tolist()
    path = {10: [10], 11: [10, 11], 20: [10, 11, 20], 21: [10, 11, 20, 21]}
    path |= {40: [40], 41: [40, 41], 43: [40, 43]}
    for i, token in enumerate(tokens):
        assert [t for t, s in zip(tokens, seen[i].tolist(), strict=True) if s] == path[token]


def test_a_window_counts_the_token_itself():
    position = torch.arange(5)[None]
    zero = torch.zeros_like(position)
    seen = tree_mask(zero, zero, position, window=2)[0, 0]
    assert seen.sum(-1).tolist() == [1, 2, 2, 2, 2]


def test_padding_and_neighbours_change_nothing():
    """L1: a row beside others, in a wider batch, has the log-probs it has alone."""
    model, rows = make_model("gpt_neox"), make_rows(40, seed=5)
    batch = pack(rows)
    assert batch.input_ids.shape[0] * batch.input_ids.shape[1] > int((batch.example >= 0).sum())
    together = Policy(model)(batch)
    for i, row in enumerate(rows):
        by_itself = Policy(model)(pack([row]))
        pair = together[2 * i : 2 * i + 2, : by_itself.shape[1]]
        assert relative_error(pair, by_itself) < THROUGH_A_MODEL


def test_one_response_one_branch_and_a_prefix_of_another():
    single = Row(0, [5], [[6, 7]], [True], [2])
    assert pack([single]).branch.tolist() == [[0, 1]]
    prefix = Row(0, [5], [[6, 7], [6, 7, 8]], [False, True], [2, 3])
    model = make_model()
    logps = Policy(model)(pack([prefix]))
    for ours, expected in zip(logps, alone(model, prefix), strict=True):
        assert relative_error(ours[: len(expected)], expected) < 1e5 * TIGHT  # float32 norms


def test_text_mask_leaves_out_the_end_token_only_where_there_is_one():
    batch = pack([Row(0, [5], [[6, 7, 2], [8, 9]], [True, False], [2, 2])])
    assert batch.text_mask().tolist() == [[True, True, False], [True, True, False]]
    assert batch.mask.sum(-1).tolist() == [3, 2]


def test_a_token_equal_to_pad_or_eos_counts_like_any_other():
    """B5, B20: masks come from lengths, so id 0 and the end token's id may stand anywhere."""
    row = Row(0, [0, 2], [[2, 0, 2], [0, 0, 0, 2]], [True, True], [1, 1])
    batch = pack([row])
    assert batch.mask.sum(-1).tolist() == [3, 4]
    assert [batch.targets[g].tolist() for g in batch.gather] == [[2, 0, 2, 2], [0, 0, 0, 2]]


def test_left_padding_is_not_needed_for_right_positions():
    """B15: positions are the tokens' own, wherever in the row they stand (absolute: GPT-2)."""
    model, rows = make_model("gpt2"), make_rows(4, seed=9)
    forward = masked_sum(*_logps(model, rows))
    backward = masked_sum(*_logps(model, rows[::-1])).view(-1, 2).flip(0).flatten()
    assert relative_error(forward, backward) < THROUGH_A_MODEL


def _logps(model, rows):
    batch = pack(rows)
    return Policy(model)(batch), batch.mask


def test_temperature_divides_the_logits():
    """F2: log-probs of the distribution that was sampled from."""
    model, rows = make_model("gpt_neox"), make_rows(2)
    batch = pack(rows, layout="rectangle")
    logits = model(batch.input_ids, attention_mask=(batch.example >= 0).long()).logits.flatten(0, 1)
    logps = (logits[batch.parents] / 0.5).log_softmax(-1)
    expected = batch.sequences(logps.gather(1, batch.targets[:, None])[:, 0])
    for fused in (True, False):
        ours = Policy(model, fused=fused)(pack(rows), 0.5)
        assert relative_error(ours, expected) < THROUGH_A_MODEL


def test_autocast_takes_the_head_to_bfloat16_and_the_softmax_to_float32():
    hidden, weight = torch.randn(6, 16), torch.randn(40, 16)
    targets = torch.arange(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = token_logprobs(hidden, weight, targets)
    exact = (hidden.bfloat16() @ weight.bfloat16().T).float().log_softmax(-1)[range(6), targets]
    assert logps.dtype == torch.float32
    assert relative_error(logps, exact) < torch.finfo(torch.float32).eps * 8
