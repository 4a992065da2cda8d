"""The parts that fine-tunes in PyTorch share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.export import Dim

from luthier.errors import Cancelled, FailedPrecondition, ParityFailed
from luthier.task import Run
from luthier.toolkit import precision, progress
from luthier.toolkit.batches import in_order_of_length, length_buckets, pad
from luthier.toolkit.checkpoint import BestCheckpoint
from luthier.toolkit.export import check_onnx, export_onnx
from luthier.toolkit.loop import Beat, Recipe, Validation, fit
from luthier.toolkit.optim import decay_matrices, warm_up_then_decay
from luthier.toolkit.precision import autocast, has_bfloat16, whole_gradients
from luthier.toolkit.progress import Progress
from luthier.toolkit.vision import shuffled_batches

LENGTHS = np.random.default_rng(0).integers(1, 100, 1003)


def test_buckets_hold_everything_once_and_little_padding() -> None:
    batches = list(length_buckets(LENGTHS, 8, np.random.default_rng(0)))
    assert len(batches) == 126
    assert sorted(np.concatenate(batches)) == list(range(1003))
    padded = sum(LENGTHS[batch].max() * len(batch) for batch in batches)
    assert padded < 1.1 * LENGTHS.sum()
    shortest_first = [LENGTHS[batch].max() for batch in batches]
    assert shortest_first != sorted(shortest_first)


def test_buckets_follow_from_the_seed_alone() -> None:
    first, again, other = (
        np.concatenate(list(length_buckets(LENGTHS, 8, np.random.default_rng(seed)))) for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_in_order_of_length() -> None:
    batches = list(in_order_of_length(np.array([5, 1, 3, 1]), 3))
    assert [batch.tolist() for batch in batches] == [[1, 3, 2], [0]]
    assert list(in_order_of_length(np.array([], dtype=np.int64), 3)) == []


def test_pad() -> None:
    ids, mask = pad([torch.tensor([7, 8, 9]), torch.tensor([5])], value=1)
    assert ids.tolist() == [[7, 8, 9], [5, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64


def test_only_matrices_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    matrices, others = decay_matrices(module, 0.1, 0.01)
    assert [tuple(p.shape) for p in matrices["params"]] == [(2, 3)]
    assert [tuple(p.shape) for p in others["params"]] == [(2,)] * 3
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.01, 0.0)


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"),
    [
        (6, 1 / 3, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        (4, 0.0, [1.0, 1.0, 2 / 3, 1 / 3]),
        (4, 1.0, [0.25, 0.5, 0.75, 1.0]),
        (1, 0.1, [1.0]),
    ],
)
def test_schedule(steps: int, warmup: float, expected: list[float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warm_up_then_decay(optimizer, steps, warmup)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected)


def test_the_best_weights_come_back(tmp_path: Path) -> None:
    module = nn.Linear(1, 1, bias=False)
    best = BestCheckpoint(module, tmp_path, patience=2)
    going_on = []
    for epoch, score in enumerate([0.5, 0.6, 0.9, 0.88, 0.7], start=1):
        nn.init.constant_(module.weight, epoch)
        going_on.append(best.update(epoch, score, error=0.03))
    best.restore()
    # The fourth cannot be told from the third; the fifth can.
    assert going_on == [True, True, True, True, False]
    assert best.epoch == module.weight.item() == 4


def test_small_losses_do_not_add_up(tmp_path: Path) -> None:
    best = BestCheckpoint(nn.Linear(1, 1), tmp_path, patience=0)
    for epoch, score in enumerate([0.9, 0.88, 0.86], start=1):
        best.update(epoch, score, error=0.03)
    assert best.epoch == 2


def test_patience_of_zero_never_stops(tmp_path: Path) -> None:
    best = BestCheckpoint(nn.Linear(1, 1), tmp_path, patience=0)
    assert all(best.update(epoch, -float(epoch), error=0.5) for epoch in range(1, 50))
    assert best.epoch == 1


def make_run(events: list[dict[str, Any]]) -> Run:
    return Run(parts={"train": pa.table({})}, config=None, base=None, seed=0, directory=Path(), emit=events.append)


def test_progress_reports_seldom_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    events: list[dict[str, Any]] = []
    watched = Progress(make_run(events), total=100)
    for step in range(1, 101):
        now[0] += 0.01
        watched.advance(examples=4, loss=torch.tensor(float(step)))
    metrics = [event["metrics"] for event in events if "metrics" in event]
    assert [entry["step"] for entry in metrics] == [20, 40, 60, 80, 100]
    assert metrics[0]["values"]["loss"] == pytest.approx(np.mean(range(1, 21)))
    assert events[-2]["progress"]["examples_per_s"] == pytest.approx(400.0)


def test_progress_notices_a_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    run = make_run([])
    watched = Progress(run, total=2)
    watched.beat()
    run.cancelled = lambda: True
    with pytest.raises(Cancelled):
        watched.beat()


def test_bfloat16_is_taken_from_what_the_processor_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    assert not has_bfloat16(cpu)
    for flags, expected in [("flags : avx2 avx512f", False), ("flags : avx2 avx512_bf16", True)]:
        precision.CPUINFO.write_text(flags, encoding="utf-8")
        assert has_bfloat16(cpu) is expected
    a = torch.ones(2, 2)
    with autocast(cpu, bfloat16=True):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(cpu, bfloat16=False):
        assert (a @ a).dtype == torch.float32


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


@pytest.mark.parametrize("groups", [1, 64])
@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, 1), (5, 2, 1), (3, 3, 2), (7, 2, 3), (3, 2, 9)])
def test_gradients_in_bfloat16_are_written_where_a_kernel_meets_padding_alone(
    groups: int, kernel: int, stride: int, size: int
) -> None:
    torch.manual_seed(0)
    part = nn.Conv2d(64, 64, kernel, stride, kernel // 2, groups=groups).to(memory_format=torch.channels_last)
    maps = torch.randn(8, 64, 11, size).to(memory_format=torch.channels_last)

    def gradient(bfloat16: bool) -> torch.Tensor:
        part.weight.grad = None
        # What is freed here is what is allocated next.
        del [torch.full((2**n,), torch.nan) for n in range(6, 20)][:]
        with autocast(torch.device("cpu"), bfloat16), whole_gradients(nn.Sequential(part), bfloat16):
            part(maps).float().square().mean().backward()
        assert part.weight.grad is not None
        return part.weight.grad

    expected = gradient(bfloat16=False)
    for _ in range(4):
        torch.testing.assert_close(gradient(bfloat16=True), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    assert "forward" not in vars(part)


def test_an_export_is_written_and_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = export_onnx(Times(2.0).eval(), {"x": torch.ones(2, 3)}, ["y"], {0: Dim("batch")}, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert capfd.readouterr() == ("", "")
    assert b"site-packages" not in path.read_bytes()
    assert str(Path(__file__).parent).encode() not in path.read_bytes()
    batches = [{"x": torch.ones(rows, 3)} for rows in (1, 5)]
    assert check_onnx(path, Times(2.0), batches, tolerance=0.0) == 0.0
    with pytest.raises(ParityFailed, match=r"differs from the trained one by 0\.5"):
        check_onnx(path, Times(2.5), batches, tolerance=1e-4)
    with pytest.raises(ParityFailed, match="by nan"):
        check_onnx(path, Times(float("nan")), batches, tolerance=1e-4)


class Line(nn.Module):
    """y = a x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        nn.init.zeros_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x)


def fit_line(directory: Path, scores: list[float] | None, *, rate: float = 0.1, **recipe: Any) -> tuple[Line, Run]:
    """Fits y = 3 x - 1 and takes the given scores for those of the epochs."""
    line, x = Line(), torch.linspace(-1, 1, 32)[:, None]
    random = np.random.default_rng(0)
    run = Run(parts={}, config=None, base=None, seed=0, directory=directory)
    given = iter(scores or [])

    def loss(indices: np.ndarray) -> torch.Tensor:
        return (line(x[indices]) - (3 * x[indices] - 1)).pow(2).mean()

    def validate(beat: Beat) -> Validation:
        assert not line.training
        return Validation(next(given), 0.0, {"validation/score": 1.0})

    fit(
        run,
        line,
        decay_matrices(line, rate, 0.0),
        Recipe(**{"epochs": 60, "batch_size": 8, "warmup": 0.1, **recipe}),
        32,
        lambda: shuffled_batches(32, 8, random),
        loss,
        validate if scores else None,
        random,
    )
    return line, run


class Killed(Exception):
    """Stands for a signal that no process can catch."""


def fit_noisy(directory: Path, die_at: int) -> tuple[list[torch.Tensor], list[int], list[dict[str, Any]]]:
    """Trains with dropout, batch normalisation and noise, and dies after the given number of steps.

    Returns the weights, the steps that were taken, and what was said.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    x, random = torch.linspace(-1, 1, 128).reshape(32, 4), np.random.default_rng(0)
    said: list[dict[str, Any]] = []
    run = Run(parts={}, config=None, base=None, seed=0, directory=directory, checkpoint_s=0.0, emit=said.append)
    taken: list[int] = []

    def loss(indices: np.ndarray) -> torch.Tensor:
        noise = torch.from_numpy(random.normal(size=(len(indices), 4))).float()
        taken.append(said[-1]["checkpoint"]["step"])
        if taken[-1] == die_at:
            raise Killed
        return (net(x[indices] + noise) - x[indices].sum(1, keepdim=True)).pow(2).mean()

    def validate(beat: Beat) -> Validation:
        return Validation(-float((net(x) - x.sum(1, keepdim=True)).pow(2).mean()), 0.0)

    recipe = Recipe(epochs=6, batch_size=5, warmup=0.1, patience=4)
    groups = decay_matrices(net, 0.05, 0.1)
    fit(run, net, groups, recipe, 32, lambda: shuffled_batches(32, 5, random), loss, validate, random)
    return [*net.state_dict().values()], taken, said


def test_a_training_that_was_killed_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.toolkit.checkpoint.LEAST_SHARE", 0)
    for name in ("undisturbed", "disturbed"):
        (tmp_path / name).mkdir()
    expected, taken, _ = fit_noisy(tmp_path / "undisturbed", -1)
    assert taken == list(range(42))
    for die_at in (1, 6, 7, 8, 20):
        with pytest.raises(Killed):
            fit_noisy(tmp_path / "disturbed", die_at)
    found, taken, said = fit_noisy(tmp_path / "disturbed", -1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert taken == list(range(20, 42))
    assert said[0] == {"message": "goes on after step 20 of 42"}


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_loop_fits(tmp_path: Path, decay: str) -> None:
    line, run = fit_line(tmp_path, None, decay=decay)
    assert line.line.weight.item() == pytest.approx(3, abs=0.01)
    assert line.line.bias.item() == pytest.approx(-1, abs=0.01)
    assert not line.training
    assert run.figures["steps"] == 240
    assert run.figures["best_epoch"] == run.figures["epochs_run"] == 60


def test_the_loop_keeps_the_best_epoch_and_stops(tmp_path: Path) -> None:
    line, run = fit_line(tmp_path, [0.1, 0.5, 0.3, 0.2, 0.9], patience=2)
    assert run.figures["epochs_run"] == 4
    assert run.figures["best_epoch"] == 2
    assert line.line.weight.item() < 1, "two epochs of warm-up do not lead far"


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="diverged"):
        fit_line(tmp_path, None, rate=float("inf"))


def test_cosine_and_line_meet_at_the_ends() -> None:
    def rates(decay: Any) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = warm_up_then_decay(optimizer, 100, 0.1, decay)
        found = []
        for _ in range(100):
            found.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return found

    line, cosine = rates("linear"), rates("cosine")
    assert line[:10] == cosine[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert line[55] == pytest.approx(0.5)
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[90] == pytest.approx((1 - math.cos(math.pi / 9)) / 2)
    assert line[99] == pytest.approx(1 / 90)
