"""What final/ holds: dtype and tokenizer class of its source, and ends that training taught."""

import json
import shutil

import pytest
import small_tokenizers
import torch
from runs import BASE, QUICK, copy_base, pocket_rows, random_llama, run, write_rows
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, make_model
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from models.checkpoint import files_dtype
from models.load import load_causal_lm, load_scorer, load_tokenizer
from models.save import (
    final_of,
    readable_config,
    readable_tokenizer_config,
    rope_fields,
    taught_to_stop,
)


def read(folder, name="config.json"):
    return json.loads((folder / name).read_text("utf-8"))


def edit(folder, name="config.json", **fields):
    found = read(folder, name) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(found | fields), "utf-8")


def saved(model, name, tokenizer, folder, ends=(), dtype="auto"):
    final_of(model, str(name), tokenizer, ends, dtype).save(folder)
    return folder


def dtypes(folder):
    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            found |= {weights.get_slice(key).get_dtype() for key in weights.keys()}
    return found


# ---------------------------------------------------------------- where generation stops


def stops(theirs, ends=(), **more):
    """generation_config.eos_token_id of what is saved, from what the source had."""
    tokenizer, model = small_tokenizers.gpt2(), make_model(vocab_size=400)
    model.generation_config = GenerationConfig(eos_token_id=theirs, **more)
    return taught_to_stop(model, tokenizer, ends).eos_token_id


@pytest.mark.parametrize("theirs, ends, expected", [
    (None, [], 0), (0, [0], 0), ([0], [], [0]), (5, [], [5, 0]), (5, [0], [5, 0]),
    ([5, 0], [0], [5, 0]), ([7, 5], [9, 8], [7, 5, 0, 8, 9]), (None, [3], [0, 3]),
])  # fmt: skip
def test_field_14_ends_are_the_sources_the_tokenizers_and_those_taught(theirs, ends, expected):
    assert stops(theirs, ends) == expected


HUB = {  # files of the hub, some of which transformers' own checks refuse
    "a temperature without do_sample": {"temperature": 0.9, "top_p": 0.6, "bos_token_id": 1},
    "greedy and a temperature": {"do_sample": False, "temperature": 1e-6},
    "several ends": {"do_sample": True, "top_k": 20, "eos_token_id": [5, 7], "pad_token_id": 9},
    "an unknown field": {"no_such_field": 3, "eos_token_id": 5, "bos_token_id": 2},
    "no ends": {"bos_token_id": 1},
}


@pytest.mark.parametrize("fields", HUB.values(), ids=HUB)
def test_field_14_other_fields_stay_as_they_came(tmp_path, fields):
    base = random_llama(tmp_path / "base", small_tokenizers.gpt2())
    (base / "generation_config.json").write_text(json.dumps(fields))
    model, tokenizer = load_causal_lm(str(base), dtype="float32"), load_tokenizer(str(base))
    for again in ("first", "second"):  # a run may save more than once
        folder = saved(model, base, tokenizer, tmp_path / again, ends=[0, 3])
        found = read(folder, "generation_config.json")
        theirs = fields.get("eos_token_id", [])
        theirs = [theirs] if isinstance(theirs, int) else theirs
        assert found.pop("eos_token_id") == [*theirs, 0, 3]
        wanted = {k: v for k, v in fields.items() if k not in ("eos_token_id", "do_sample")}
        assert {k: found[k] for k in wanted} == wanted
        assert found.get("do_sample", False) == fields.get("do_sample", False)
        assert found.keys() <= {*fields, "transformers_version", "do_sample", "_from_model_config"}
    generation = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert generation.eos_token_id == [*theirs, 0, 3]


def test_field_14_a_model_without_a_generation_config_gets_the_ends(tmp_path):
    base = random_llama(tmp_path / "base", small_tokenizers.gpt2())
    (base / "generation_config.json").unlink()
    edit(base, eos_token_id=7)
    model, tokenizer = load_causal_lm(str(base), dtype="float32"), load_tokenizer(str(base))
    found = read(saved(model, base, tokenizer, tmp_path / "final"), "generation_config.json")
    assert found["eos_token_id"] == [7, 0] and not found.get("_from_model_config")


def test_field_14_a_classifier_has_no_generation_config(tmp_path):
    tokenizer = load_tokenizer("pocket")
    model = load_scorer("pocket", tokenizer, dtype="float32")
    assert taught_to_stop(model, tokenizer, [0]) is None
    folder = saved(model, "pocket", tokenizer, tmp_path / "final")
    assert not (folder / "generation_config.json").exists()


def test_field_14_an_overfit_model_stops_by_its_saved_defaults(tmp_path):
    """generation_config says 5, the tokenizer's end token is 0: it went on after `<endoftext>`."""
    base = copy_base(tmp_path / "base")
    edit(base, "generation_config.json", eos_token_id=5)
    rows = [{"prompt": "What is 2+2?", "completion": " It is 4."}] * 8
    data = write_rows(tmp_path / "data", rows, rows[:2])
    flags = ["--model", base, "--data", data, "--output_dir", tmp_path / "out"]
    done = run("--loss", "sft", *flags, "--max_steps", 60, "--learning_rate", 3e-3)
    assert done.code == 0, done.err
    final = tmp_path / "out" / "final"
    assert read(final, "generation_config.json")["eos_token_id"] == [5, 0]
    model = AutoModelForCausalLM.from_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    prompt = tokenizer("What is 2+2?", return_tensors="pt")
    text = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0]
    assert text[-1] == 0 and (text == 0).sum() == 1 and len(text) < 30
    assert tokenizer.decode(text, skip_special_tokens=True) == "What is 2+2? It is 4."


def test_field_14_ppo_teaches_its_stop_tokens(tmp_path):
    flags = ["--max_steps", 1, "--rollout_size", 4, "--batch_size", 4, "--max_new_tokens", 4]
    done = run("--loss", "ppo", *flags, "--stop_tokens", ".", "--output_dir", tmp_path / "out")
    assert done.code == 0, done.err
    stop = read(BASE, "tokenizer.json")["model"]["vocab"]["."]
    ends = read(tmp_path / "out" / "final", "generation_config.json")["eos_token_id"]
    assert ends == [0, stop]


# ---------------------------------------------------------------- what older programs can read


@pytest.mark.parametrize("make", small_tokenizers.ALL.values(), ids=small_tokenizers.ALL)
@pytest.mark.parametrize("given, expected", [
    ("TokenizersBackend", "PreTrainedTokenizerFast"),
    (None, "PreTrainedTokenizerFast"),
    ("PreTrainedTokenizerFast", "PreTrainedTokenizerFast"),
])  # fmt: skip
def test_field_25_the_tokenizer_class_is_one_that_others_know(tmp_path, make, given, expected):
    base = random_llama(tmp_path / "base", make())
    config = read(base, "tokenizer_config.json") | {"tokenizer_class": given}
    config = {k: v for k, v in config.items() if v is not None}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, model = load_tokenizer(str(base)), load_causal_lm(str(base), dtype="float32")
    texts = [*small_tokenizers.LINES, "<s>!!</s>", "<|im_start|>user\nhi<|im_end|>\n"]
    before = tokenizer(texts)["input_ids"]
    folder = saved(model, base, tokenizer, tmp_path / "final")
    found = read(folder, "tokenizer_config.json")
    assert found["tokenizer_class"] == expected
    assert not isinstance(found.get("extra_special_tokens"), list)  # transformers 4 wants a mapping
    assert not {"is_local", "local_files_only"} & found.keys()
    again = load_tokenizer(str(folder))
    assert again(texts)["input_ids"] == before
    assert again.extra_special_tokens == tokenizer.extra_special_tokens
    assert again.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast"])
@pytest.mark.parametrize("frame, bos, eos", [
    ("llama", True, False), ("llama_end", True, True), ("merging", False, False),
])  # fmt: skip
def test_field_25_the_sources_class_is_kept_and_frames_as_in_training(
    tmp_path, name, frame, bos, eos
):
    """Transformers 4's class puts BOS on by add_bos_token, whatever tokenizer.json says."""
    base = random_llama(tmp_path / "base", small_tokenizers.ALL[frame]())
    edit(base, "tokenizer_config.json", tokenizer_class=name, add_bos_token=not bos, legacy=False)
    tokenizer, model = load_tokenizer(str(base)), load_causal_lm(str(base), dtype="float32")
    found = read(saved(model, base, tokenizer, tmp_path / "final"), "tokenizer_config.json")
    assert (found["tokenizer_class"], found["legacy"]) == (name, False)
    assert (found["add_bos_token"], found["add_eos_token"]) == (bos, eos)


@pytest.mark.parametrize("more", [{}, {"unk_token": "<e>", "bos_token": "<e>"}])
def test_field_25_a_tokenizer_without_latin_letters_puts_nothing_on(more):
    """The letter that is tried is no token there, or the unknown one: a run must not fail so."""
    inside = Tokenizer(BPE({"<e>": 0, "б": 1}, [], unk_token=more.get("unk_token")))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inside, eos_token="<e>", **more)
    assert tokenizer("a")["input_ids"] == ([0] if more else [])
    found = readable_tokenizer_config({"tokenizer_class": "GPT2Tokenizer"}, {}, tokenizer)
    assert (found["add_bos_token"], found["add_eos_token"]) == (False, False)


def test_field_25_extra_special_tokens_have_the_name_that_others_read(tmp_path):
    base = random_llama(tmp_path / "base", small_tokenizers.gemma())
    tokenizer, model = load_tokenizer(str(base)), load_causal_lm(str(base), dtype="float32")
    found = read(saved(model, base, tokenizer, tmp_path / "final"), "tokenizer_config.json")
    assert found["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"]


ROPE = {"rope_theta": 500.0, "rope_type": "default"}
LINEAR = {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize("config, expected", [
    ({}, {}),
    ({"rope_parameters": ROPE}, {"rope_theta": 500.0}),
    ({"rope_parameters": LINEAR},
     {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ({"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}},
     {"rope_theta": 500.0, "partial_rotary_factor": 0.5}),
    ({"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE | {"rope_theta": 9}}},
     {"rope_theta": 500.0, "rope_local_base_freq": 9}),
    ({"model_type": "gpt_neox", "rope_parameters": ROPE | {"partial_rotary_factor": 0.25}},
     {"rotary_emb_base": 500.0, "rotary_pct": 0.25}),
])  # fmt: skip
def test_field_25_rope_is_written_in_the_words_of_transformers_4_too(config, expected):
    assert rope_fields(config) == expected


def test_field_25_what_the_source_says_and_transformers_5_does_not_is_kept():
    source = {"rope_theta": 5, "odd": 1, "_name_or_path": "x", "auto_map": {}, "vocab_size": 9}
    source |= {"attn_implementation": "flash_attention_2", "torch_dtype": "bfloat16"}
    written = {"vocab_size": 10, "dtype": "float32", "text_config": {"dtype": "float32"}}
    assert readable_config(written, source, torch.float16) == {
        "rope_theta": 5, "odd": 1, "vocab_size": 10, "torch_dtype": "float16", "dtype": "float16",
        "text_config": {"dtype": "float16"},
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_field_25_what_is_added_changes_no_number(tmp_path, family):
    """As transformers 4 writes a config and as 5 does; both read again by 5."""
    model = make_model(family, torch.float32, rope_theta=500.0)
    tokenizer = small_tokenizers.gpt2()
    model.save_pretrained(tmp_path / "new")
    model.save_pretrained(tmp_path / "old")
    if "rope_parameters" in (config := read(tmp_path / "new")):
        old = {k: v for k, v in (config | rope_fields(config)).items() if k != "rope_parameters"}
        (tmp_path / "old" / "config.json").write_text(json.dumps(old))
    ids = torch.arange(3, 33)[None]
    expected = model(ids).logits
    for name in ("new", "old"):
        source = load_causal_lm(str(tmp_path / name), dtype="float32")
        folder = saved(source, tmp_path / name, tokenizer, tmp_path / f"{name}-final")
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert torch.equal(again(ids).logits, expected)
        assert not read(tmp_path / name).keys() - read(folder).keys()
        assert rope_fields(config).items() <= read(folder).items()


# ---------------------------------------------------------------- the dtype of the files


def half_pocket(folder, dtype=torch.bfloat16, **more):
    base = copy_base(folder)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, **more)
    return base


@pytest.mark.parametrize("dtype, size", [("bfloat16", 2), ("float16", 2), ("float32", 4)])
def test_field_26_final_is_as_large_as_the_source_was(tmp_path, dtype, size):
    base = half_pocket(tmp_path / "base", getattr(torch, dtype))
    data = write_rows(tmp_path / "data", *pocket_rows(8, 4))
    flags = ["--model", base, "--data", data, "--output_dir", tmp_path / "out", *QUICK]
    done = run("--loss", "dpo", *flags)
    assert done.code == 0, done.err
    final = tmp_path / "out" / "final"
    sizes = [(f / "model.safetensors").stat().st_size for f in (base, final)]
    # the header's length is the same, too: the same names and shapes
    assert sizes[0] == sizes[1] and sizes[0] > size * 800_000
    assert read(final)["dtype"] == read(base)["dtype"] == dtype
    assert load_file(base / "model.safetensors").keys() == (
        load_file(final / "model.safetensors").keys()
    )
    assert files_dtype(str(final)) == getattr(torch, dtype)


@pytest.mark.parametrize("dtype, written", [
    ("auto", "BF16"), ("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16"),
])  # fmt: skip
@pytest.mark.parametrize("tied", [True, False])
def test_field_26_the_model_in_memory_is_not_changed(tmp_path, dtype, written, tied):
    tokenizer = small_tokenizers.gpt2()
    base = tmp_path / "base"
    make_model(dtype=torch.bfloat16, tie_word_embeddings=tied).save_pretrained(base)
    model = load_causal_lm(str(base), dtype="float32")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = saved(model, base, tokenizer, tmp_path / "final", dtype=dtype)
    assert dtypes(folder) == {written}
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name])
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == load_file(base / "model.safetensors").keys()
    for name, tensor in stored.items():
        assert torch.equal(tensor, before[name].to(tensor.dtype))
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == next(iter(stored.values())).dtype


def test_field_26_a_classifier_is_saved_in_it_too(tmp_path):
    base = half_pocket(tmp_path / "base")
    tokenizer = load_tokenizer(str(base))
    model = load_scorer(str(base), tokenizer, dtype="float32")
    folder = saved(model, base, tokenizer, tmp_path / "final")
    assert dtypes(folder) == {"BF16"} and read(folder)["dtype"] == "bfloat16"


def test_field_26_weights_asked_for_in_float64_are_saved_so(tmp_path):
    model = load_causal_lm("pocket", dtype="float64")
    folder = saved(model, "pocket", load_tokenizer("pocket"), tmp_path / "final")
    assert dtypes(folder) == {"F64"} and read(folder)["dtype"] == "float64"


def test_the_dtype_of_the_files_is_that_of_most_numbers(tmp_path):
    assert files_dtype("pocket") == torch.float32
    model = make_model(dtype=torch.bfloat16)
    model.model.norm.float()
    model.save_pretrained(tmp_path / "mixed")
    assert dtypes(tmp_path / "mixed") == {"F32", "BF16"}
    assert files_dtype(str(tmp_path / "mixed")) == torch.bfloat16
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert files_dtype(str(tmp_path / "shards")) == torch.bfloat16
    # of numbers, not of tensors
    counted = {"a": torch.zeros(9), "b": torch.zeros(1).bfloat16(), "c": torch.zeros(2).bfloat16()}
    (tmp_path / "counted").mkdir()
    (tmp_path / "counted" / "config.json").write_text("{}")
    save_file(counted, tmp_path / "counted" / "model.safetensors")
    assert files_dtype(str(tmp_path / "counted")) == torch.float32
    # of other files, what config.json says
    only = tmp_path / "bin"
    shutil.copytree(tmp_path / "mixed", only)
    (only / "model.safetensors").unlink()
    for said, expected in (("float16", torch.float16), ("nosuch", None), ("int8", None)):
        edit(only, dtype=said)
        assert files_dtype(str(only)) == expected
    (only / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    assert files_dtype(str(only)) == torch.bfloat16


def test_a_classifiers_config_is_kept_with_its_own_fields(tmp_path):
    """One label and the new pad token, not what the causal LM's config said of them."""
    base = random_llama(tmp_path / "base", small_tokenizers.gpt2())
    tokenizer = load_tokenizer(str(base))
    model = load_scorer(str(base), tokenizer, dtype="float32")
    folder = saved(model, base, tokenizer, tmp_path / "final")
    config = AutoConfig.from_pretrained(folder)
    assert config.num_labels == 1 and config.pad_token_id == tokenizer.pad_token_id
    assert read(folder)["architectures"] == ["LlamaForSequenceClassification"]
