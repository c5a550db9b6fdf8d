"""What is loaded and what is refused: not tied to its files, one line for each kind of trouble."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from runs import OFFLINE, ROOT, copy_base, no_model, pocket_rows, run, write_rows
from small_tokenizers import gpt2
from tiny_models import make_model
from transformers import AutoTokenizer

from benchmarks.loading import resolve
from data import errors
from data.errors import BAD_DATA, UNSAFE, InputError
from data.pocket import BASE_DIR
from models.checkpoint import missing_attention, read_config
from models.load import load_causal_lm, load_scorer, load_tokenizer, parameters


def test_a_model_file_written_again_takes_no_trained_weight_back(tmp_path):
    """Weights that a run maps from the file go back to the file's when it is cut and rewritten."""
    directory = tmp_path / "base"
    shutil.copytree(BASE_DIR, directory)
    model = load_causal_lm(str(directory), dtype="float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    trained = [parameter.clone() for parameter in model.parameters()]

    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes())  # as cp and many a training script overwrite

    for parameter, before in zip(model.parameters(), trained, strict=True):
        assert torch.equal(parameter, before)


@pytest.mark.parametrize("file, text, reason", [
    ("config.json", "{", "(Expecting property name enclosed in double quotes: line 1 column 2 "),
    ("config.json", "[1]", "(a list, not an object)"),
    ("config.json", '{"architectures": [1]}', "architectures is [1], no list of names"),
    ("status.json", "{", "(Expecting property name enclosed in double quotes: line 1 column 2 "),
    ("adapter_config.json", "[1]", "(a list, not an object)"),
])  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, file, text, reason):
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError) as caught:
        resolve(str(tmp_path))
    line = str(caught.value)
    assert caught.value.exit_code == BAD_DATA and line.startswith(f"{tmp_path / file}: ")
    assert reason in line and line.endswith("; make or get this directory again")


def edit(folder, name="config.json", **fields):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | fields), "utf-8")


def only(folder, *kept):
    for file in folder.iterdir():
        if file.name not in kept:
            file.unlink()


# ---------------------------------------------------------------- what cannot be trained


def adapter(folder):
    only(folder, "tokenizer.json", "tokenizer_config.json")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def adapter_beside_a_model(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def gguf(folder):
    only(folder)
    (folder / "model.Q4_K_M.gguf").write_bytes(b"GGUF")


def bitsandbytes(folder):
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit(folder, quantization_config=method, _name_or_path="org/original")


def gptq(folder):
    edit(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model:\n- org/original\n---\n")


def nested(folder):
    edit(folder, text_config={"compression_config": {"format": "int"}})


def no_tokenizer_json(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0b\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    edit(folder, "tokenizer_config.json", tokenizer_class="LlamaTokenizer")


def no_shard(folder):
    model = load_causal_lm("pocket", dtype="float32")
    only(folder, "tokenizer.json", "tokenizer_config.json")
    model.save_pretrained(folder, max_shard_size="400KB")
    sorted(folder.glob("model-*"))[1].unlink()


MERGE = "a LoRA adapter of org/base: merge it first (peft: merge_and_unload), then give the merged"
NEEDED = "and a causal language model is needed"
REFUSED = {
    "adapter": (adapter, MERGE),
    "adapter beside a model": (adapter_beside_a_model, MERGE),
    "GGUF": (gguf, "GGUF files, which are for inference; give the original safetensors checkpoint"),
    "bitsandbytes": (bitsandbytes, "a quantised checkpoint cannot be trained; give the original"),
    "GPTQ": (gptq, "a quantised checkpoint cannot be trained; give the original, org/original"),
    "quantised text part": (nested, "a quantised checkpoint cannot be trained; give the original"),
    "code of its own": (
        lambda f: edit(f, model_type="mine", auto_map={"AutoConfig": "a.B"}),
        "its code comes with it (auto_map in config.json), and such code is never run here",
    ),
    "encoder": (lambda f: edit(f, model_type="bert"), f"a model of type bert, {NEEDED}"),
    "both": (lambda f: edit(f, model_type="marian"), f"a model of type marian, {NEEDED}"),
    "vision": (lambda f: edit(f, model_type="vit"), f"a model of type vit, {NEEDED}"),
    "no type": (lambda f: (f / "config.json").write_text("{}"), "cannot be loaded: Unrecognized"),
    "list": (lambda f: (f / "config.json").write_text("[1]"), "it cannot be loaded: "),
    "no heads": (
        lambda f: edit(f, num_attention_heads=0), "it cannot be loaded: ZeroDivisionError: "
    ),
    "layers": (
        lambda f: edit(f, num_hidden_layers="four"), "'num_hidden_layers' expected int, got str"
    ),
    "sentencepiece": (
        no_tokenizer_json,
        "no tokenizer.json in this directory, and its tokenizer.model needs other packages: pip",
    ),
    "tokenizer's code": (
        lambda f: edit(
            f, "tokenizer_config.json", tokenizer_class="Mine",
            auto_map={"AutoTokenizer": ["a.B", None]},
        ),
        "its tokenizer cannot be loaded: The repository ",
    ),
    "missing shard": (no_shard, "No such file or directory: "),
    "no text config": (
        lambda f: edit(f, text_config=1.5), "text_config in its config.json is 1.5, and no object"
    ),
    "a field that fails in the forward": (
        lambda f: edit(f, output_hidden_states="111"), "it cannot be run (TypeError: "
    ),
    "pickled weights": (
        lambda f: (only(f, "config.json", "tokenizer.json", "tokenizer_config.json"),
                   (f / "pytorch_model.bin").write_bytes(b"nonsense")),
        "its weights are a pickle (pytorch_model.bin), which may run code when it is read; where",
    ),
    "no positions": (
        lambda f: edit(f, max_position_embeddings=0),
        "max_position_embeddings is 0 in its config.json; correct it",
    ),
    "negative positions": (
        lambda f: edit(f, max_position_embeddings=-1),
        "max_position_embeddings is -1 in its config.json; correct it",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data"), *pocket_rows(8, 4))


@pytest.mark.parametrize("spoil, message", REFUSED.values(), ids=REFUSED)
def test_field_24_what_cannot_be_trained_is_one_line(tmp_path, data, spoil, message):
    model = copy_base(tmp_path / "model")
    spoil(model)
    flags = ["--data", data, "--model", model, "--output_dir", tmp_path / "out"]
    done = run("--loss", "sft", *flags)
    unsafe = "its code comes with it" in message or "a pickle" in message
    assert done.code == (UNSAFE if unsafe else BAD_DATA)
    assert done.line.startswith(f"--model {model}: ")
    assert message in done.line and not (tmp_path / "out" / "metrics.jsonl").exists()


@pytest.mark.parametrize("spoil", [adapter, bitsandbytes, gguf], ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("loss, flag", [
    ("dpo", "--model"), ("dpo", "--ref_model"), ("reward", "--model"), ("ppo", "--model"),
    ("ppo", "--ref_model"), ("ppo", "--reward"),
])  # fmt: skip
def test_field_30_it_is_found_by_a_dry_run_for_every_model_there_is(tmp_path, loss, flag, spoil):
    other = copy_base(tmp_path / "other")
    spoil(other)
    done = run("--loss", loss, flag, other, "--dry_run", before=no_model, cwd=tmp_path)
    assert done.code == BAD_DATA and done.line.startswith(f"{flag} {other}: ")


@pytest.mark.parametrize("error, code", [
    (ImportError("This needs nosuch.\n Run `pip install nosuch`. More."), BAD_DATA),
    (ModuleNotFoundError("No module named 'nosuch'"), BAD_DATA),
    (TypeError("an odd one"), BAD_DATA),
    (OSError("it is gone"), errors.UNAVAILABLE),  # so says a hub that cannot be reached
])  # fmt: skip
@pytest.mark.parametrize("of_hub", [False, True])
def test_field_24_whatever_transformers_raises_is_one_line(monkeypatch, error, code, of_hub):
    from models import checkpoint

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fails)
    name = "pocket"
    if of_hub:  # a model that is in the cache
        monkeypatch.setattr(checkpoint, "locate", lambda *_: "org/name")
        monkeypatch.setattr("models.load.read_config", lambda *_: None)
        name = "org/name"
    with pytest.raises(InputError) as caught:
        load_tokenizer(name, "--ref_model")
    line = str(caught.value)
    assert line.startswith(f"--ref_model {name}: ") and "\n" not in line
    assert str(error).split(".")[0] in line
    assert caught.value.exit_code == (code if of_hub else BAD_DATA)


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("wanted", ["flash_attention_2", "org/kernels", "flex_attention"])
def test_field_24_attention_that_needs_a_package_is_replaced_and_said(
    tmp_path, data, field, wanted
):
    model = copy_base(tmp_path / "model")
    edit(model, **{field: wanted})
    flags = ["--data", data, "--output_dir", tmp_path / "out", "--max_steps", 1]
    done = run("--loss", "dpo", "--model", model, *flags)
    assert done.code == 0, done.err
    assert f"parameters, sdpa attention in place of {wanted}, token trees\n" in done.out
    saved = json.loads((tmp_path / "out" / "final" / "config.json").read_text())
    assert wanted not in saved.values()


def test_field_24_a_family_without_sdpa_gets_eager_attention(tmp_path):
    model = make_model("bloom", torch.float32, n_layer=2, n_head=4)
    model.save_pretrained(tmp_path)
    gpt2().save_pretrained(tmp_path)
    assert not model._supports_sdpa
    edit(tmp_path, attn_implementation="flash_attention_2")
    model = load_causal_lm(str(tmp_path), dtype="float32")
    assert parameters(model).endswith(" parameters, eager attention in place of flash_attention_2")
    tokenizer = load_tokenizer(str(tmp_path))
    model = load_scorer(str(tmp_path), tokenizer, dtype="float32")
    assert model.config.num_labels == 1 and "eager" in parameters(model)


def test_field_24_attention_that_the_text_part_asks_for_is_found(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {"attn_implementation": "flash"}}')
    assert missing_attention(str(tmp_path)) == "flash"


def test_field_24_code_beside_a_family_that_transformers_has_is_not_needed(tmp_path):
    model = copy_base(tmp_path / "model")
    edit(model, auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"})
    assert read_config(str(model)).model_type == "llama"
    assert parameters(load_causal_lm(str(model), dtype="float32")) == "803k parameters"


@pytest.mark.parametrize("wanted", ["sdpa", "eager", None])
def test_attention_that_is_there_is_used_as_asked_for(tmp_path, wanted):
    folder = copy_base(tmp_path / "model")
    edit(folder, attn_implementation=wanted)
    model = load_causal_lm(str(folder), dtype="float32")
    assert model.config._attn_implementation == (wanted or "sdpa")
    assert parameters(model) == "803k parameters"


# ---------------------------------------------------------------- a hub cache


def test_what_is_refused_in_a_directory_is_refused_in_the_hub_cache(tmp_path):
    """Transformers loads the base model of an adapter on the hub, and trains the adapter."""
    for name, spoil in (("adapter", adapter_beside_a_model), ("bnb", bitsandbytes), ("good", len)):
        repository = tmp_path / "hub" / f"models--org--{name}"
        model = copy_base(repository / "snapshots" / "0")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0")
        spoil(str(model) if spoil is len else model)
    code = """
from data.errors import InputError
from models.checkpoint import files_dtype, read_config
from models.load import load_causal_lm, load_tokenizer, parameters
for name in ("org/adapter", "org/bnb", "org/none", "org/good"):
    try:
        print(name, read_config(name).model_type)
    except InputError as error:
        print(error.exit_code, error)
load_tokenizer("org/good")
print(parameters(load_causal_lm("org/good", dtype="float32")), files_dtype("org/good"))
"""
    env = os.environ | OFFLINE | {"PYTHONPATH": str(ROOT), "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith(f"65 --model org/adapter: {MERGE}")
    assert lines[1].endswith(
        "a quantised checkpoint cannot be trained; give the original, org/original"
    )
    assert lines[2].startswith("69 --model org/none: no such directory, and the hub does not give")
    assert lines[3:] == ["org/good llama", "803k parameters torch.float32"]


def test_a_judge_without_a_head_in_its_files_is_refused(tmp_path):
    """A head drawn at random would score the responses, and the run would end with 0."""
    other = copy_base(tmp_path / "judge")
    edit(other, architectures=["LlamaForSequenceClassification"], num_labels=1)
    done = run("--loss", "ppo", "--reward", other, *("--max_steps", 1), cwd=tmp_path)
    assert done.code == BAD_DATA
    assert done.line.startswith(f"--reward {other}: ") and "have no score.weight" in done.line
    assert load_scorer(str(other), load_tokenizer(str(other)), dtype="float32").score is not None
