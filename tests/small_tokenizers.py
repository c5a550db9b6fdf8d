"""Real tokenizers of every common family, trained on a few lines in a moment."""

from functools import cache

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

LINES = [
    "Question: how do I carry soup to the table? Answer: A bowl will do.",
    "The newspaper says that the weather is fine, and the sea is blue.",
    "She sells sea shells; the shells she sells are surely sea shells.",
    "system user assistant You are helpful. user: hello assistant: hello, how are you?",
] * 4
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no system message, please') }}{% endif %}{% endfor %}"
)


def _bpe(special, normalizer=None, spaces=False):
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    # `spaces` lets a token hold several words, as where the text has no pre-tokenizer's rule.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not spaces)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _frame(tokenizer, single, *special):
    ids = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


@cache
def gpt2():
    """Byte-level BPE, no BOS, pad is EOS."""
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=_bpe([end]), eos_token=end, pad_token=end)


@cache
def merging():
    """Byte-level BPE whose merges cross spaces, so also the end of most prompts."""
    return PreTrainedTokenizerFast(tokenizer_object=_bpe(["<e>"], spaces=True), eos_token="<e>")


@cache
def llama(end=False):
    """Byte-level BPE that puts BOS in front by itself, and with `end` also EOS behind."""
    bpe = _frame(_bpe(["<s>", "</s>"]), "<s> $A </s>" if end else "<s> $A", "<s>", "</s>")
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names, chat_template=LLAMA2)


@cache
def llama_end():
    return llama(end=True)


@cache
def bert():
    """Puts a [SEP] that is not EOS behind every text."""
    bpe = _frame(_bpe(["[CLS]", "[SEP]", "[EOS]"]), "[CLS] $A [SEP]", "[CLS]", "[SEP]")
    names = {"bos_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


@cache
def unigram():
    """SentencePiece style: a space is part of the word it precedes, BOS in front."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    _frame(tokenizer, "<s> $A", "<s>")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@cache
def chatml():
    """SmolLM-instruct and Qwen style: turns end with <|im_end|>, which is EOS and pad."""
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    bpe = _bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names, chat_template=CHATML)


@cache
def gemma():
    """A turn ends with a special token which is not EOS, and a line break after it."""
    bpe = _frame(_bpe(["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]), "<bos> $A", "<bos>")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<eos>"}
    names["extra_special_tokens"] = ["<|im_start|>", "<|im_end|>"]
    template = "{{ bos_token }}" + CHATML
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names, chat_template=template)


@cache
def lower():
    """Normalises: upper and lower case are the same tokens, dashes are none."""
    normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("-", "")])
    return PreTrainedTokenizerFast(tokenizer_object=_bpe(["<e>"], normalizer), eos_token="<e>")


PLAIN_TURNS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def shaped(pad="none", bos="none", unk="none", turn_end="eos", template=CHATML):
    """Byte-level BPE with a chat template, by what it has beside its end token.

    `pad`: none, eos or own. `bos`: none, or written by the template, the tokenizer, or both.
    `unk`: none or own. `turn_end`: eos, or other than eos.
    """
    names = {"eos_token": "<|im_end|>" if turn_end == "eos" else "<|endoftext|>"}
    names |= {"bos_token": "<s>"} if bos != "none" else {}
    names |= {"unk_token": "<unk>"} if unk == "own" else {}
    names |= {} if pad == "none" else {"pad_token": "<pad>" if pad == "own" else names["eos_token"]}
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = _bpe([*dict.fromkeys([*special, *names.values()])])
    if bos in ("tokenizer", "both"):
        _frame(tokenizer, "<s> $A", "<s>")
    if bos in ("template", "both"):
        template = "{{ bos_token }}" + template
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **names,
        extra_special_tokens=special,
        chat_template=template,
    )


BYTE_LEVEL = {"gpt2": gpt2, "merging": merging, "llama": llama, "llama_end": llama_end}
BYTE_LEVEL |= {"bert": bert}
ALL = BYTE_LEVEL | {"unigram": unigram, "chatml": chatml, "gemma": gemma, "lower": lower}
