"""Pretrains Luthier's own small text base on sentences that it makes up itself.

    python tools/pretrain/text.py OUTPUT [--sentences 30000] [--epochs 5]

The sentences come from `grammar.py`. A WordPiece tokenizer is trained on them, with every ASCII and Latin-1 character
in its alphabet, so that no text is lost; then a BERT of 4 layers learns to fill in masked words (Devlin et al. 2019).
OUTPUT becomes a folder as the Hugging Face library reads it, weights in float16. Two cores take about ten minutes; the
same versions and threads give the same bytes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import grammar
import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

SEED = 0
VOCABULARY = 3000
POSITIONS = 256
"""The longest text in tokens."""
MASKED = 0.15
IGNORED = -100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--sentences", type=int, default=30_000)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    started = time.monotonic()
    random = np.random.default_rng(SEED)
    sentences = [grammar.sentence(random) for _ in range(arguments.sentences)]
    tokenizer = tokenizer_of(sentences)
    model = pretrain(joined(tokenizer, sentences, random), tokenizer, arguments.epochs)
    arguments.output.mkdir(parents=True, exist_ok=True)
    model.bert.half().save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(f"{arguments.output} after {time.monotonic() - started:.0f} s")


def tokenizer_of(sentences: list[str]) -> BertTokenizerFast:
    """Lower-casing WordPiece, as BERT's."""
    trained = BertWordPieceTokenizer(lowercase=True)
    alphabet = [chr(code) for code in (*range(33, 127), *range(161, 256)) if code != 173]
    trained.train_from_iterator(
        sentences, vocab_size=VOCABULARY, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    return BertTokenizerFast(tokenizer_object=trained._tokenizer, model_max_length=POSITIONS)


def joined(tokenizer: BertTokenizerFast, sentences: list[str], random: np.random.Generator) -> list[list[int]]:
    """Token numbers of runs of one to four sentences, now and then of as many as fit, so that every position is met."""
    ids = tokenizer(sentences, add_special_tokens=False).input_ids
    texts, start = [], 0
    while start < len(ids):
        count = 16 if random.random() < 0.03 else int(random.integers(1, 5))
        flat = [token for one in ids[start : start + count] for token in one]
        texts.append([tokenizer.cls_token_id, *flat[: POSITIONS - 2], tokenizer.sep_token_id])
        start += count
    return texts


def pretrain(
    texts: list[list[int]], tokenizer: BertTokenizerFast, epochs: int, batch_size: int = 16
) -> BertForMaskedLM:
    """Masked language modelling; says after each epoch what share of masked tokens is filled in rightly elsewhere."""
    torch.manual_seed(SEED)
    random = np.random.default_rng(SEED)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=POSITIONS,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertForMaskedLM(config)
    held_out = len(texts) // 10
    train, test = texts[held_out:], texts[:held_out]
    steps = epochs * -(-len(train) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        model.train()
        for batch in batches(train, batch_size, random):
            loss = model(**masked(batch, tokenizer, random)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        right = total = 0
        with torch.inference_mode():
            for batch in batches(test, 128, np.random.default_rng(SEED)):
                inputs = masked(batch, tokenizer, np.random.default_rng(SEED))
                guessed = model(**inputs).logits.argmax(-1)
                asked = inputs["labels"] != IGNORED
                right += int((guessed == inputs["labels"])[asked].sum())
                total += int(asked.sum())
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}  masked words filled in rightly {right / total:.3f}")
    return model


def batches(texts: list[list[int]], size: int, random: np.random.Generator) -> list[list[list[int]]]:
    """Batches of like lengths, in random order."""
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), random.random()))
    groups = [[texts[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
    return [groups[i] for i in random.permutation(len(groups))]


def masked(
    texts: list[list[int]], tokenizer: BertTokenizerFast, random: np.random.Generator
) -> dict[str, torch.Tensor]:
    """A padded batch in which MASKED of the tokens are asked for: 80 % masked, 10 % replaced, 10 % as they are."""
    longest = max(map(len, texts))
    ids = np.array([text + [tokenizer.pad_token_id] * (longest - len(text)) for text in texts])
    plain = (ids != tokenizer.pad_token_id) & (ids != tokenizer.cls_token_id) & (ids != tokenizer.sep_token_id)
    asked = plain & (random.random(ids.shape) < MASKED)
    asked[:, 1] |= ~asked.any(1)
    how = random.random(ids.shape)
    inputs = np.where(asked & (how < 0.8), tokenizer.mask_token_id, ids)
    inputs = np.where(asked & (how >= 0.8) & (how < 0.9), random.integers(5, len(tokenizer), ids.shape), inputs)
    return {
        "input_ids": torch.from_numpy(inputs),
        "attention_mask": torch.from_numpy((ids != tokenizer.pad_token_id).astype(np.int64)),
        "labels": torch.from_numpy(np.where(asked, ids, IGNORED)),
    }


if __name__ == "__main__":
    main()
