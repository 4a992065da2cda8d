"""A plain training loop for entity recognition: what Luthier is compared with where nobody published a figure.

    python tools/quality/bare_entities.py --base DIR --train FILE --test FILE [--epochs 5] [--seed 0]

The files have a token and its tag (BIO) on a line, an empty line between sentences. Prints the entity F1 after the last
epoch, by seqeval's strict rule. Needs seqeval, of the extra `dev`. No validation, no early end, no windows: sentences
beyond 256 sub-words are cut, and what is cut counts as O.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from torch import nn
from transformers import AutoModel, AutoTokenizer

Sentence = tuple[list[str], list[str]]


def read(path: Path) -> list[Sentence]:
    sentences: list[Sentence] = [([], [])]
    for line in path.read_text(encoding="utf-8").split("\n"):
        if fields := line.split():
            sentences[-1][0].append(fields[0])
            sentences[-1][1].append(fields[-1])
        elif sentences[-1][0]:
            sentences.append(([], []))
    return [sentence for sentence in sentences if sentence[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "train", "test"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    random = np.random.default_rng(arguments.seed)
    started = time.monotonic()

    tokenizer = AutoTokenizer.from_pretrained(arguments.base, local_files_only=True)
    train, test = read(arguments.train), read(arguments.test)
    tags = sorted({tag for _, sentence in train for tag in sentence})
    encoder = AutoModel.from_pretrained(arguments.base, local_files_only=True, dtype=torch.float32)
    head = nn.Linear(encoder.config.hidden_size, len(tags))
    dropout = nn.Dropout(0.1)
    encoder.train()  # It comes in evaluation mode.

    def encode(sentence: Sentence) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Sub-words, the target of each (that of its word on the first, -100 on others), and each first one's word."""
        encoded = tokenizer(sentence[0], is_split_into_words=True, truncation=True, max_length=256)
        targets, words, before = [], [], None
        for position, word in enumerate(encoded.word_ids()):
            first = word is not None and word != before
            targets.append(tags.index(sentence[1][word]) if first and sentence[1][word] in tags else -100)
            if first:
                words.append(position)
            before = word
        return torch.tensor(encoded.input_ids), torch.tensor(targets), words

    def logits(batch: list[torch.Tensor]) -> torch.Tensor:
        ids = nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=tokenizer.pad_token_id)
        mask = (torch.arange(ids.shape[1]) < torch.tensor([len(one) for one in batch])[:, None]).long()
        out: torch.Tensor = head(dropout(encoder(input_ids=ids, attention_mask=mask).last_hidden_state))
        return out

    examples = [encode(sentence) for sentence in train]
    lengths = np.array([len(ids) for ids, _, _ in examples])
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": encoder.parameters(), "lr": 3e-4}, {"params": head.parameters(), "lr": 1e-3}], weight_decay=0.01
    )
    steps = arguments.epochs * -(-len(examples) // 16)
    rising = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising))
    )
    for epoch in range(arguments.epochs):
        shuffled, total = random.permutation(len(examples)), 0.0
        pools = [shuffled[i : i + 800] for i in range(0, len(shuffled), 800)]
        ordered = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        batches = [ordered[i : i + 16] for i in range(0, len(ordered), 16)]
        for position in random.permutation(len(batches)):
            chosen = [examples[i] for i in batches[position]]
            targets = nn.utils.rnn.pad_sequence([t for _, t, _ in chosen], batch_first=True, padding_value=-100)
            loss = nn.functional.cross_entropy(logits([ids for ids, _, _ in chosen]).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / len(batches):.4f}, {time.monotonic() - started:.0f} s", flush=True)

    dropout.eval()
    encoder.eval()
    predicted = []
    with torch.inference_mode():
        for sentence in test:
            ids, _, words = encode(sentence)
            best = logits([ids])[0].argmax(-1)
            found = [tags[int(best[position])] for position in words]
            predicted.append(found + ["O"] * (len(sentence[0]) - len(found)))
    score = f1_score([sentence[1] for sentence in test], predicted, mode="strict", scheme=IOB2)
    print(f"entity F1 {score:.4f}, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
