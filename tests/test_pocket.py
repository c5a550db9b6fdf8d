"""The pocket world: fixed rows, an honest split, no gain without the goal, a usable base."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import pocket
from data.pocket.base import EOS, SEED, make_tokenizer, pair_accuracy, sample
from data.pocket.rows import goal_splits
from data.pocket.text import documents
from data.pocket.world import OBJECTS, PROPERTIES, SOLUTIONS, lacking, question, solution
from losses import LOSSES

ROOT = Path(__file__).resolve().parents[1]
TRAIN, HELDOUT = pocket.train_rows(), pocket.heldout_rows()
DIGEST = "249866996d13465f0bcdd00df6fde11df80d7c496a8e2a16ce679384b347c54c"
SENTENCES = {solution(s, o): (s, o) for s in SOLUTIONS for o in OBJECTS}


def used(response: str) -> tuple[str, str]:
    """The sentence and the object of a response."""
    assert response.startswith(" ") and not response.startswith("  ")
    return SENTENCES[response[1:]]


def combinations(rows: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(row["prompt"], used(row[side])[1]) for row in rows for side in ("chosen", "rejected")}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(pocket.BASE_DIR, local_files_only=True)


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(pocket.BASE_DIR, local_files_only=True).eval()


def test_rows_never_change():
    # Numbers in the documentation are for exactly these rows. A new digest means a new world:
    # then the base has to be made again and the numbers measured again.
    text = json.dumps([TRAIN, HELDOUT, pocket.train_prompts(), pocket.heldout_prompts()])
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST
    assert (len(TRAIN), len(HELDOUT)) == (2196, 366)
    distinct = {tuple(row.values()) for row in TRAIN + HELDOUT}
    assert len(distinct) == len(TRAIN) + len(HELDOUT)


def test_rows_do_not_depend_on_the_hash_seed():
    program = "import data.pocket as p; print(p.train_rows(), p.heldout_rows())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


def test_the_tables_are_sound():
    goals = [goal for p in PROPERTIES for goal in p.goals]
    assert len(set(goals)) == len(goals)
    for p in PROPERTIES:
        assert len(set(p.has)) == len(p.has)
        assert not set(p.has) & set(p.doubtful)
        assert set(p.doubtful) <= set(OBJECTS), "a misspelt object"
        assert len(p.has) + len(p.doubtful) + len(lacking(p)) == len(OBJECTS)


def test_heldout_combinations_occur_nowhere_else():
    held = combinations(HELDOUT)
    assert not held & combinations(TRAIN)
    # ... nor in what the base read, of which this is a fifth
    for text in islice(documents(SEED), 20_000):
        if text.startswith("Question:"):
            prompt, response = text.split("Answer:")
            assert (prompt + "Answer:", used(response)[1]) not in held


def test_heldout_goals_and_objects_were_all_met():
    assert {o for _, o in combinations(TRAIN)} == set(OBJECTS)
    asked = {row["prompt"] for row in TRAIN}
    assert asked == set(pocket.train_prompts())
    assert not asked & set(pocket.heldout_prompts())
    # half of the held-out pairs ask a seen goal, half an unseen one
    assert sum(row["prompt"] in asked for row in HELDOUT) == len(HELDOUT) / 2
    assert {r["prompt"] for r in HELDOUT} == asked | set(pocket.heldout_prompts())
    text = set(islice(documents(SEED), 20_000))
    for split in goal_splits():
        assert f"To {split.goal} you need something that {split.property.is_so}." in text


def test_an_object_is_as_often_right_as_wrong():
    for rows in (TRAIN, HELDOUT):
        right = Counter(used(row["chosen"])[1] for row in rows)
        assert right == Counter(used(row["rejected"])[1] for row in rows)


def test_nothing_to_gain_without_the_goal():
    """Naive Bayes on the response alone, and the length of the response: both near chance."""
    counts = {s: Counter(w for r in TRAIN for w in words(r[s])) for s in ("chosen", "rejected")}

    def prior(response: str) -> float:
        good = torch.tensor([counts["chosen"][w] + 1.0 for w in words(response)])
        bad = torch.tensor([counts["rejected"][w] + 1.0 for w in words(response)])
        return (good.log() - bad.log()).sum().item()

    def length(response: str) -> float:
        return len(response)

    for score in (prior, length):
        wins = [
            (score(r["chosen"]) > score(r["rejected"]))
            + 0.5 * (score(r["chosen"]) == score(r["rejected"]))
            for r in HELDOUT
        ]
        assert abs(sum(wins) / len(wins) - 0.5) < 0.05


def words(response: str) -> list[str]:
    """The features of the naive Bayes: the sentence, the object, and every word."""
    template, name = used(response)
    return [template, name, *response.split()]


def test_grader_agrees_with_every_row():
    for row in TRAIN + HELDOUT:
        assert pocket.grade(row["prompt"], row["chosen"])
        assert not pocket.grade(row["prompt"], row["rejected"])


def test_grader_is_exact():
    prompt = question("carry soup to the table")
    assert pocket.grade(prompt, " Use a clay bowl.")
    assert pocket.grade(prompt, "Use a clay bowl. \n")
    for garbage in (
        "", " ", " clay bowl", " Use a clay bowl", " Use a clay", " Use an clay bowl.",
        " use a clay bowl.", " Use a clay bowl. Use a clay bowl.", " Use a  clay bowl.",
        " Use a golden bowl.", " Use {}.", " Use a clay bowl.<|endoftext|>", " Use a steel sieve.",
        " Use a sponge.",  # doubtful is not right
    ):  # fmt: skip
        assert not pocket.grade(prompt, garbage), garbage
    for unknown in ("", "How do I carry soup to the table?", prompt + " ", "Question: x\nAnswer:"):
        with pytest.raises(ValueError, match="pocket"):
            pocket.grade(unknown, " Use a clay bowl.")


def test_import_needs_the_standard_library_only():
    program = (
        "import sys, data.pocket as p; p.train_rows();"
        "sys.exit(bool({'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_defaults_name_every_loss():
    assert pocket.DEFAULTS.keys() == LOSSES.keys()
    for name, values in pocket.DEFAULTS.items():
        own = set(values) - {"max_steps", "batch_size", "learning_rate"}
        assert len(values) == 3 + len(own) and own <= {f.name for f in fields(LOSSES[name].config)}


def test_tokenizer_splits_at_the_leading_space(tokenizer):
    for row in TRAIN[::5] + HELDOUT:
        for side in ("chosen", "rejected"):
            prompt, response = tokenizer([row["prompt"], row[side]])["input_ids"]
            assert tokenizer(row["prompt"] + row[side])["input_ids"] == prompt + response
            assert tokenizer.decode(prompt + response) == row["prompt"] + row[side]
            assert len(prompt + response) < tokenizer.model_max_length


def test_tokenizer_has_one_special_token_and_no_bos(tokenizer, base):
    assert tokenizer.eos_token == tokenizer.pad_token == EOS
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == base.generation_config.eos_token_id
    assert tokenizer.bos_token is None
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokenizer("Zürich, 1\n")["input_ids"]) == "Zürich, 1\n"


def test_shipped_tokenizer_is_the_one_the_code_makes(tokenizer):
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()


def test_shipped_base_is_small(base):
    assert base.dtype == torch.float32
    assert sum(file.stat().st_size for file in pocket.BASE_DIR.iterdir()) < 4_200_000


def test_base_knows_the_format_and_not_the_preference(base, tokenizer):
    assert 0.45 <= pair_accuracy(base, tokenizer, HELDOUT) <= 0.55
    prompts = pocket.heldout_prompts() * 5
    answers = sample(base, tokenizer, prompts)
    assert sum(map(pocket.well_formed, answers)) / len(answers) >= 0.9
    right = sum(map(pocket.grade, prompts, answers)) / len(answers)
    assert 0.35 <= right <= 0.65
