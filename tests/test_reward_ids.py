"""A reward model is asked the tokens it was trained on, whatever the policy's are."""

import random
import re
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from datafiles import lines, write
from rollouts import make_rollouts
from small_tokenizers import CHATML, LLAMA2, PLAIN_TURNS, chatml, gpt2, llama, shaped
from test_score_model import make_scorer

from data.encode import encode_records
from data.errors import USAGE, InputError
from data.options import read_options
from data.prompts import encode_prompts, load_prompts
from data.records import load_data
from data.rows import Record
from models.load import load_tokenizer
from rollout import experience
from rollout.answers import without_turn_ends
from rollout.experience import as_rows
from rollout.reward_model import TAKEN, ModelReward, check_prompts
from rollout.sample import Sampled
from rollout.score import score, taken_columns

PADS, UNK, BOS = ("none", "eos", "own"), ("none", "own"), ("none", "template", "tokenizer", "both")
SHAPES = list(product(PADS, BOS, UNK, ("eos", "other")))
PIECES = (
    *("!", "!!", "!!!", " ", "  ", "\n", "\n\n", "\t", "The sea", " She sells", "soup", "0", "?!"),
    *(
        "é",
        "e\u0301",
        "日本",
        "🙂",
        "\u200b",
        "\u00a0",
        "A:",
        "user:",
        "<|",
        "|>",
        "<think>",
        "{{",
        "%}",
    ),
    *("<|im_start|>", "<s>", "<unk>", "<pad>", "<|user|>", "[INST]"),  # written as text
)


# Training drops these: nothing of the user's is in them.
SPECIAL = re.compile(r"(?:\s|<\|im_start\|>|<s>|<unk>|<pad>|\u200b)*")


@cache
def texts():
    """500 of them, none without text: with white space around, or at the ends of lines."""
    draw = random.Random(7)
    found = {"a", " a", "a ", "\na\n", "!!", " <s>a ", "<unk>!", "a\n\n!", "日本語"}
    while len(found) < 500:
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 9)))
        if not SPECIAL.fullmatch(text):
            found.add(text)
    return sorted(found)


def questions():
    """A prompt to each text, of one turn or of three, some with a system prompt."""
    draw, found = random.Random(8), []
    for number, text in enumerate(texts()):
        asked = {"role": "user", "content": f"{number}: {draw.choice(texts())}"}
        before = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]
        system = [{"role": "system", "content": "Be brief."}]
        found.append([*(system if number % 3 == 1 else []), *(before if number % 2 else []), asked])
    return found


def saved(folder, tokenizer):
    write(folder, {"config.json": '{"model_type": "llama"}'})
    tokenizer.save_pretrained(folder)
    return load_tokenizer(str(folder))


def trained_ids(folder, tokenizer, prompts, responses):
    """What --loss reward trains on for these as chosen responses, from a file to token ids."""
    chat = not isinstance(prompts[0], str)
    no = [{"role": "assistant", "content": "no, no"}] if chat else " no, no"
    chosen = [[{"role": "assistant", "content": r}] if chat else r for r in responses]
    rows = [
        {"prompt": p, "chosen": c, "rejected": no} for p, c in zip(prompts, chosen, strict=True)
    ]
    spare = {"prompt": prompts[0], "chosen": no, "rejected": chosen[0]}
    write(folder, {"pairs.jsonl": lines(*rows), "other.jsonl": lines(spare)})
    records, *_ = load_data(str(folder / "pairs.jsonl"), str(folder / "other.jsonl"), pairs=True)
    encoded = encode_records(records, tokenizer, max_length=4096)
    assert not encoded.report.dropped and len(encoded.rows) == len(prompts)
    return [row.prompt + row.responses[0] for row in encoded.rows]


def asked_ids(folder, tokenizer, prompts, responses):
    """What ModelReward is asked for them, the prompts from a file as ppo reads it."""
    rows = [{"prompt": prompt} for prompt in prompts]
    write(folder, {"prompts.jsonl": lines(*rows), "other.jsonl": lines(rows[0])})
    source, other = str(folder / "prompts.jsonl"), str(folder / "other.jsonl")
    records, *_ = load_prompts(source, 0, eval_data=other)
    assert [record.prompt for record in records] == prompts
    reward = ModelReward(scorer(), tokenizer, max_length=4096)
    seen = []
    reward.scorer = lambda batch: pytest.fail("asked")  # of tokens alone
    reward.rows = lambda records, rows=reward.rows: seen.extend(rows(records)) or []
    reward([record.prompt for record in records], list(responses))
    return [row.prompt + row.responses[0] for row in seen]


@cache
def scorer():
    return make_scorer()


# ------------------------------------------------------------------------------ the tokens


@pytest.mark.parametrize("pad, bos, unk, turn_end", SHAPES, ids=lambda part: part)
def test_field_7_a_chat_is_scored_on_the_tokens_it_was_trained_on(
    tmp_path, pad, bos, unk, turn_end
):
    tokenizer = saved(tmp_path / "final", shaped(pad, bos, unk, turn_end))
    asked = asked_ids(tmp_path, tokenizer, questions(), texts())
    assert asked == trained_ids(tmp_path, tokenizer, questions(), texts())
    starts = {ids[0] for ids in asked}  # as the template begins, never with a BOS of the tokenizer
    first = "<s>" if bos in ("template", "both") else "<|im_start|>"
    assert starts == {tokenizer.convert_tokens_to_ids(first)}
    turn, end = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id
    ends = [turn] if turn_end == "eos" else [turn, end]
    assert all(ids[-len(ends) :] == ends for ids in asked)


@pytest.mark.parametrize("pad, bos, unk", list(product(PADS, BOS, UNK)), ids=lambda part: part)
def test_field_7_a_string_is_scored_on_the_tokens_it_was_trained_on(tmp_path, pad, bos, unk):
    tokenizer = saved(tmp_path / "final", shaped(pad, bos, unk))
    prompts = [f"Question {i}: {text}\nAnswer:" for i, text in enumerate(reversed(texts()))]
    asked = asked_ids(tmp_path, tokenizer, prompts, texts())
    assert asked == trained_ids(tmp_path, tokenizer, prompts, texts())
    whole = [p + r + tokenizer.eos_token for p, r in zip(prompts, texts(), strict=True)]
    same = sum(list(a) == b for a, b in zip(tokenizer(whole)["input_ids"], asked, strict=True))
    assert same > 450  # all but those that end with white space before a special token


@pytest.mark.parametrize(
    "template", [CHATML, PLAIN_TURNS, LLAMA2], ids=["chatml", "plain", "llama"]
)
@pytest.mark.parametrize("policy", [chatml, llama, shaped], ids=lambda make: make.__name__)
@pytest.mark.parametrize("turn_end", ["eos", "other"])
def test_field_7_what_a_policy_samples_is_scored_as_the_reward_model_was_trained(
    tmp_path, template, policy, turn_end
):
    """From the policy's own tokens of an answer, by its template, to the other's."""
    policy = policy() if policy is not shaped else shaped("own", "both", "none", turn_end)
    tokenizer = saved(tmp_path / "final", shaped("eos", "template", "none", turn_end, template))
    prompts = [[{"role": "user", "content": f"question {i}"}] for i in range(60)]
    answers = [text.strip() for text in texts() if "<" not in text][:60]
    prepared = encode_prompts([Record(p, "", None) for p in prompts], policy, 4096).prompts
    sampled = []
    for prompt, answer in zip(prompts, answers, strict=True):
        record = Record(prompt, [{"role": "assistant", "content": answer}], None)
        (row,) = encode_records([record], policy).rows
        sampled.append(Sampled(row.responses[0], [0.0] * len(row.responses[0]), True))
    _, found = as_rows([ids for _, ids in prepared], sampled, policy)
    found = without_turn_ends(prompts, found, policy)
    assert [text.removeprefix(" ") for text in found] == answers  # Llama 2's begin with a space
    asked = asked_ids(tmp_path, tokenizer, prompts, found)
    assert asked == trained_ids(tmp_path, tokenizer, prompts, found)


def test_field_7_a_turn_that_goes_on_after_its_end_is_scored_as_it_is():
    """Only at its end is the mark of a turn's end the template's."""
    tokenizer = shaped(turn_end="other")
    prompts = [[{"role": "user", "content": "hi"}]] * 4 + ["hi"]
    texts = ["Red<|im_end|>", "Red<|im_end|>\n", "Red<|im_end|>\nuser", "Red ", "Red<|im_end|>"]
    found = without_turn_ends(prompts, texts, tokenizer)
    assert found == ["Red", "Red", "Red<|im_end|>\nuser", "Red ", "Red<|im_end|>"]
    (row,) = ModelReward(scorer(), tokenizer).rows([asked_of(prompts[0], found[2])])
    assert tokenizer.decode(row.responses[0]) == "Red<|im_end|>\nuser<|im_end|><|endoftext|>"


def test_field_7_what_is_sampled_reaches_the_reward_without_its_end(monkeypatch):
    tokenizer, seen = shaped(turn_end="other"), []

    def reward(prompts, responses):
        seen.extend(zip(prompts, responses, strict=True))
        return [0.0] * len(prompts)

    ids = tokenizer("Red<|im_end|><|endoftext|>", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(experience, "sample", lambda _, prompts, *args, **options: [
        Sampled(ids, [0.0] * len(ids), True) for _ in prompts
    ])  # fmt: skip
    made = replace(make_rollouts(reward=reward), tokenizer=tokenizer)
    messages = [{"role": "user", "content": "hi"}]
    prompts = [experience.Prompt(messages, [3, 4]), experience.Prompt("hi", [3])]
    responses = experience.respond(made, prompts, range(2), seed=0)
    assert seen == [(messages, "Red"), ("hi", "Red<|im_end|>")]
    assert responses.prompts == [messages, "hi"] and responses.texts == ["Red", "Red<|im_end|>"]
    assert [row.responses[0] for row in responses.rows] == [ids, ids]  # trained on as sampled


def test_field_7_of_a_turn_that_ends_with_white_space_no_other_is_taken():
    tokenizer = shaped(bos="tokenizer", template=LLAMA2)  # " Red </s>": a space, then the end token
    texts = [" Red ", " Red\n", " Red", " Red  "]
    found = without_turn_ends([[{"role": "user", "content": "hi"}]] * 4, texts, tokenizer)
    assert found == [" Red", " Red\n", " Red", " Red "]


def asked_of(prompt, response):
    from rollout.reward_model import asked

    return asked(prompt, response, None, {}, "here")


@pytest.mark.parametrize("turn_end", ["eos", "other"])
def test_field_7_an_answer_without_text_is_the_end_of_a_turn(turn_end):
    tokenizer = shaped("eos", "template", "none", turn_end)
    messages = [{"role": "user", "content": "hi"}]
    reward = ModelReward(scorer(), tokenizer)
    rows = reward.rows([asked_of(messages, ""), asked_of("hi", "")])
    end = "<|im_end|>" + ("" if turn_end == "eos" else "<|endoftext|>")
    assert tokenizer.decode(rows[0].responses[0]) == end
    assert rows[1].responses[0] == [tokenizer.eos_token_id]
    assert rows[0].prompt == tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


def test_field_7_a_human_that_the_policy_makes_up_is_scored_too():
    """In training no response has a turn of the human; what is sampled may."""
    tokenizer = gpt2()
    prompt, response = "\n\nHuman: hi\n\nAssistant:", " Red.\n\nHuman: Thanks!"
    (row,) = ModelReward(scorer(), tokenizer).rows([asked_of(prompt, response)])
    assert tokenizer.decode(row.prompt + row.responses[0]) == prompt + response + "<|endoftext|>"


def test_field_7_a_begun_answer_is_scored_as_one_turn(tmp_path):
    tokenizer = saved(tmp_path / "final", shaped("eos", "template"))
    begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well,"}]
    prompts = [begun] * 3
    answers = [" yes", " no!!", " it\nis"]
    asked = asked_ids(tmp_path / "a", tokenizer, [begun], answers[:1])
    reward = ModelReward(scorer(), tokenizer)
    rows = reward.rows([asked_of(p, a) for p, a in zip(prompts, answers, strict=True)])
    whole = [[begun[0], {"role": "assistant", "content": f"Well,{a}"}] for a in answers]
    ids = [tokenizer.apply_chat_template(w, return_dict=False) for w in whole]
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert [row.prompt + row.responses[0] + newline for row in rows] == ids
    assert asked[0] + newline == ids[0]


def test_field_7_tools_and_variables_reach_the_reward_models_template():
    template = "{% if tools %}{{ tools[0].name }}{% endif %}{{ mood }}" + CHATML
    tokenizer = shaped(template=template)
    reward, seen = ModelReward(scorer(), tokenizer), []
    reward.rows = lambda records, rows=reward.rows: seen.extend(rows(records)) or []
    messages = [{"role": "user", "content": "hi"}]
    columns = {
        "tools": [[{"name": "lookup"}], None],
        "chat_template_kwargs": [None, {"mood": "calm"}],
    }
    reward([messages] * 2, ["a", "b"], **columns)
    started = [tokenizer.decode(row.prompt).partition("<|im_start|>")[0] for row in seen]
    assert started == ["lookup", "calm"]
    assert taken_columns(reward, "")._replace(by="") == TAKEN._replace(
        reserved=taken_columns(reward, "").reserved
    )


# ------------------------------------------------------------------------------ scores


def test_scores_of_messages_are_those_of_their_rendering():
    tokenizer, model = shaped("eos", "template"), scorer()
    reward = ModelReward(model, tokenizer)
    messages = [{"role": "user", "content": "hi"}]
    rendered = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": "Red"}], tokenize=False
    ).strip()
    prompt, _, _ = rendered.rpartition("Red")
    (of_messages,) = score(reward, [messages], ["Red"])
    (of_strings,) = score(reward, [prompt], ["Red"])
    (other,) = score(reward, [prompt], ["Blue"])
    assert of_messages == pytest.approx(of_strings, rel=1e-6) and abs(other - of_strings) > 1e-6


# ------------------------------------------------------------------------------ before sampling


def check(prompts, tokenizer, max_length=1024, **given):
    records = [Record(p, "", None, where=f"p.jsonl:{i}", **given) for i, p in enumerate(prompts, 1)]
    check_prompts(records, "rm", tokenizer, max_length=max_length, ignore=frozenset())


SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "prompts, tokenizer, reason",
    [
        (
            ["hi", SYSTEM],
            gpt2(),
            "its tokenizer has no chat template, and the prompts are messages",
        ),
        (["hi", SYSTEM], llama(), "p.jsonl:2:prompt: the chat template refuses these messages (no"),
        (["hi", "soup " * 40], gpt2(), "p.jsonl:2 (prompt 'soup soup"),
    ],
)
def test_field_7_prompts_that_the_reward_model_cannot_take_are_refused(prompts, tokenizer, reason):
    with pytest.raises(InputError) as error:
        check(prompts, tokenizer, max_length=32)
    line = str(error.value)
    assert line.startswith(f"--reward rm: {reason}")
    assert error.value.exit_code == USAGE and "\n" not in line and "p.jsonl:2" in line


@pytest.mark.parametrize("header", ["", "<|assistant|>"])
def test_field_7_a_template_that_writes_no_answer_is_refused_before_sampling(header):
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}" + header + "{% else %}"
        "<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(
        InputError, match="^--reward rm: p.jsonl:1:chosen: the chat template does n"
    ):
        check([SYSTEM], shaped(template=template))


def test_prompts_that_the_reward_model_takes_are_not_refused():
    check(["hi", SYSTEM], chatml())
    check(["hi", "soup"], gpt2())


def test_field_7_tools_that_the_reward_models_template_does_not_read_are_refused():
    with pytest.raises(InputError, match=r"^--reward rm: p.jsonl:1:tools: the chat template does"):
        check([SYSTEM], chatml(), tools=[{"name": "lookup"}])
    options = read_options(ignore="tools")
    records = [Record(SYSTEM, "", None, tools=[{"name": "lookup"}])]
    check_prompts(records, "rm", chatml(), max_length=64, ignore=options.ignore)
