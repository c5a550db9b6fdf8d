"""Make the pocket base model from nothing: a byte-level BPE tokenizer and a small Llama.

This is pretraining and not the product, so it is a plain loop of its own. The result is shipped in
`data/pocket/base/`; `python -m data.pocket --output DIR` makes it again.

The tokenizer has one special token, `<|endoftext|>`, which is EOS and PAD at once and never BOS.
That is deliberate: masks that are guessed from token ids instead of lengths break here at once.
"""

import math
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .text import documents

EOS = "<|endoftext|>"
SEED = 7
STEPS, BATCH, PEAK_LR, WARMUP = 1500, 64, 3e-3, 50
VOCAB, MAX_LENGTH = 1600, 128


def make_tokenizer() -> PreTrainedTokenizerFast:
    """BPE over bytes; nearly every word with its leading space is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(SEED), 20_000), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, model_max_length=MAX_LENGTH
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine down to zero at the last step."""
    if step < WARMUP:
        return PEAK_LR * (step + 1) / WARMUP
    return PEAK_LR * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Next-token prediction on padded documents; the padding is told by length, not by id."""
    stream = documents(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    bar = tqdm(range(STEPS), desc="pretraining", disable=None)  # None: no bar in a log file
    for step in bar:
        ids, real = pad(tokenizer, [text + EOS for text in islice(stream, BATCH)])
        logits = model(input_ids=ids).logits
        loss = F.cross_entropy(logits[:, :-1][real[:, 1:]], ids[:, 1:][real[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def pad(tokenizer: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and the mask of real tokens."""
    rows = tokenizer(texts)["input_ids"]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    real = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
    return ids, real


@torch.no_grad()
def pair_accuracy(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> float:
    """How often the chosen response has the larger summed log-prob (EOS not counted)."""
    scores = {}
    for side in ("chosen", "rejected"):
        ids, real = pad(tokenizer, [row["prompt"] + row[side] for row in rows])
        start = torch.tensor([[len(tokenizer(row["prompt"])["input_ids"])] for row in rows])
        logps = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        picked = logps.gather(-1, ids[:, 1:, None])[..., 0]
        response = real[:, 1:] & (torch.arange(1, ids.shape[1]) >= start)
        scores[side] = torch.where(response, picked, 0.0).sum(-1)
    return (scores["chosen"] > scores["rejected"]).float().mean().item()


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompts: list[str], seed: int = 0) -> list[str]:
    """One answer a prompt at temperature 1, as text up to EOS."""
    torch.manual_seed(seed)
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    out = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=24)
    answers = out[:, batch["input_ids"].shape[1] :]
    return [text.split(EOS)[0] for text in tokenizer.batch_decode(answers)]


def make_base(directory: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train tokenizer and model and save both as `from_pretrained` reads them."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    pretrain(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model, tokenizer
