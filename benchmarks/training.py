"""Compares Luthier's fine-tune with a bare PyTorch loop of the same steps, precision, buckets and threads.

    python benchmarks/training.py --base DIR [--epochs 4] [--rows 2000] [--turns 3]

DIR holds an encoder as the Hugging Face library saves it. The texts are banking77's, in the folder that
LUTHIER_REALDATA names. The two take turns, each time in a fresh process; Luthier's has the environment that its worker
gives a trainer, unless this process has another one. What is timed is loading the base, tokenising,
training and validating after each epoch, not imports. Luthier also reports its progress and keeps its best checkpoint;
the loop does neither. With the same seed both take the same steps, which the equal accuracies show. Exits with 1 where
the ratio of the medians is above the limit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from luthier import fields
from luthier.task import DataFile, Run, Split
from luthier.worker.child import ENVIRONMENT
from luthier_text_classification import TextClassification

if TYPE_CHECKING:
    import pyarrow as pa

LIMIT = 1.05
SEED = 0
ROOT = Path(__file__).parent.parent
REALDATA = Path(os.environ.get("LUTHIER_REALDATA", ROOT.parent / "shared"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the encoder and its tokenizer")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", type=int, help="training examples to take; all of them if not given")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--child", choices=("luthier", "bare"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments)))
        return 0

    seconds: dict[str, list[float]] = {"luthier": [], "bare": []}
    for turn in range(1, arguments.turns + 1):
        for child, taken in seconds.items():
            command = [sys.executable, *sys.argv, "--child", child]
            environment = (ENVIRONMENT if child == "luthier" else {}) | os.environ
            result = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
            figures = json.loads(result.stdout)
            taken.append(figures["seconds"])
            print(f"turn {turn}  {child:<8}", "  ".join(f"{name} {shown(value)}" for name, value in figures.items()))
    medians = {child: median(taken) for child, taken in seconds.items()}
    ratio = medians["luthier"] / medians["bare"]
    print(f"median of {arguments.turns}: luthier {medians['luthier']:.1f} s, bare {medians['bare']:.1f} s")
    print(f"ratio {ratio:.3f}, limit {LIMIT}")
    return int(ratio > LIMIT)


def shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains once, in this process."""
    task = TextClassification()
    config = task.config(epochs=arguments.epochs, patience=0)
    fields.resolve(config)
    path = REALDATA / "data" / "text-banking77" / "train.csv"
    examples = task.read(DataFile(path=path, name=path.name, format="csv", columns={"label": "category"}))
    parts = task.split(examples, Split(method="hash", fractions=[0.9, 0.1, 0.0]))
    if arguments.rows:
        parts["train"] = spread(parts["train"], arguments.rows)
        parts["validation"] = spread(parts["validation"], arguments.rows // 9)
    if arguments.child == "bare":
        return bare(arguments.base, parts, config)
    return luthier(arguments.base, parts, config)


def spread(part: pa.Table, count: int) -> pa.Table:
    """Rows at even distances, so that every class is met."""
    return part.take([i * part.num_rows // count for i in range(count)])


def luthier(base: Path, parts: dict[str, pa.Table], config: Any) -> dict[str, Any]:
    from luthier_text_classification import training

    measured: dict[str, float] = {}

    def keep(event: dict[str, Any]) -> None:
        measured.update(event.get("metrics", {}).get("values", {}))

    with tempfile.TemporaryDirectory() as folder:
        run = Run(parts=parts, config=config, base=base, seed=SEED, directory=Path(folder), emit=keep)
        started, cpu_started = time.monotonic(), time.process_time()
        model = training.fine_tune(run)
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "steps": run.figures["steps"],
        "accuracy": measured["validation/accuracy"],
        "weights": digest(model.classifier),
    }


def digest(module: Any) -> str:
    """The first digits of the SHA-256 of all weights: equal in all turns, as the seed fixes the result."""
    hash = hashlib.sha256()
    for tensor in module.state_dict().values():
        hash.update(tensor.contiguous().numpy())
    return hash.hexdigest()[:16]


def bare(base: Path, parts: dict[str, pa.Table], config: Any) -> dict[str, Any]:
    import numpy as np
    import torch
    from torch import nn
    from transformers import AutoModel, AutoTokenizer

    from luthier.toolkit.precision import wants_bfloat16

    bfloat16 = wants_bfloat16(config.precision, torch.device("cpu"))
    started, cpu_started = time.monotonic(), time.process_time()
    torch.manual_seed(SEED)
    random = np.random.default_rng(SEED)

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    labels = sorted(set(parts["train"]["label"].to_pylist()))

    def load(part: pa.Table) -> tuple[list[torch.Tensor], Any, torch.Tensor]:
        encoded = tokenizer(part["text"].to_pylist(), truncation=True, max_length=config.max_length).input_ids
        targets = torch.tensor([labels.index(label) for label in part["label"].to_pylist()])
        return [torch.tensor(ids) for ids in encoded], np.array([len(ids) for ids in encoded]), targets

    encoder = AutoModel.from_pretrained(base, local_files_only=True, dtype=torch.float32)
    head = nn.Linear(encoder.config.hidden_size, len(labels))
    dropout = nn.Dropout(config.dropout)
    ids, lengths, targets = load(parts["train"])
    held_out, held_out_lengths, held_out_targets = load(parts["validation"])

    def forward(sequences: list[torch.Tensor]) -> torch.Tensor:
        padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=tokenizer.pad_token_id)
        mask = (torch.arange(padded.shape[1]) < torch.tensor([len(s) for s in sequences])[:, None]).long()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            states = encoder(input_ids=padded, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(states.dtype)
            logits: torch.Tensor = head(dropout((states * weights).sum(1) / weights.sum(1)))
        return logits.float()

    groups = []
    for module, rate in ((encoder, config.learning_rate), (head, config.head_learning_rate)):
        matrices = [p for p in module.parameters() if p.ndim >= 2]
        others = [p for p in module.parameters() if p.ndim < 2]
        groups += [{"params": matrices, "lr": rate, "weight_decay": config.weight_decay}]
        groups += [{"params": others, "lr": rate, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    parameters = [*encoder.parameters(), *head.parameters()]
    steps_per_epoch = -(-len(targets) // config.batch_size)
    steps = config.epochs * steps_per_epoch
    rising = max(1, round(steps * config.warmup))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising))
    )

    accuracy = 0.0
    for _ in range(config.epochs):
        encoder.train()
        dropout.train()
        shuffled = random.permutation(len(targets))
        batches = []
        for start in range(0, len(targets), 50 * config.batch_size):
            pool = shuffled[start : start + 50 * config.batch_size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [pool[i : i + config.batch_size] for i in range(0, len(pool), config.batch_size)]
        for position in random.permutation(len(batches)):
            batch = batches[position]
            loss = nn.functional.cross_entropy(forward([ids[i] for i in batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
        encoder.eval()
        dropout.eval()
        order, correct = np.argsort(held_out_lengths, kind="stable"), 0
        with torch.inference_mode():
            for start in range(0, len(order), 64):
                batch = order[start : start + 64]
                correct += int((forward([held_out[i] for i in batch]).argmax(-1) == held_out_targets[batch]).sum())
        accuracy = correct / len(order)
    return {
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "steps": steps,
        "accuracy": accuracy,
    }


if __name__ == "__main__":
    sys.exit(main())
