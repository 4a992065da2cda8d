"""Which bases are suggested, in which order, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.bases import Catalogue
from luthier.entries import Entry
from luthier.suggestions import Needs, is_grey, size_of, suggest

ENTRIES = [entry for entry in Catalogue.load().all() if entry.sources[0].startswith(("hub:", "url:"))]
"""Those that others have published."""


def ids(needs: Needs, entries: list[Entry] = ENTRIES) -> list[str]:
    return [suggestion.entry.id for suggestion in suggest(entries, needs)[0]]


def test_little_data_takes_the_most_accurate_that_trains_within_the_hour():
    found, rejected = suggest(ENTRIES, Needs(task="image-classification", num_examples=500))
    assert rejected == {}
    assert found[0].entry.id == "convnext-tiny"
    assert found[0].latency_ms == pytest.approx(1000 * 4.456 / 25)
    assert found[0].training_s == pytest.approx(10 * 500 * 3 * 4.456 / 25)
    assert found[0].training_s < 3600
    # The slow ones come after all the others, the quickest of them first.
    assert [s.entry.id for s in found if s.training_s > 3600] == ["convnext-base"]
    assert found[-1].entry.id == "convnext-base"
    assert "over an hour" in " ".join(found[-1].reasons)


def test_much_data_takes_what_trains_soon():
    order = ids(Needs(task="image-classification", num_examples=50_000))
    assert order[0] == "mobilenetv3-small-100"
    assert order[-1] == "convnext-base"


def test_budgets_leave_out_and_say_why():
    needs = Needs(task="image-classification", num_examples=100, max_latency_ms=10, max_size_mb=15.5)
    found, rejected = suggest(ENTRIES, needs)
    assert [s.entry.id for s in found] == ["mobilenetv4-conv-small", "mobilenetv3-small-100"]
    assert rejected["efficientnet-b0"] == "its weights take 21 MB, over 16 MB"
    assert rejected["mobilenetv2-100"] == "about 12 ms a prediction on one core, over 10 ms"
    assert len(found) + len(rejected) == 13


def test_small_images_cost_less_and_large_ones_no_more_than_the_base_was_trained_at():
    def latency(**sizes: object) -> float:
        found, _ = suggest([Catalogue.load().get("resnet18")], Needs(task="image-classification", **sizes))
        return found[0].latency_ms

    assert latency(size=100) == pytest.approx(latency() * (128 / 224) ** 2)
    assert latency(size=4000) == latency()
    assert latency(size=448, exact_size=True) == pytest.approx(4 * latency())


def test_the_language_decides_for_text():
    found, rejected = suggest(ENTRIES, Needs(task="text-classification", language="de", num_examples=100))
    assert {s.entry.id for s in found} == {
        "e5-small-multilingual", "distilbert-multilingual", "bert-multilingual", "xlm-roberta-base"
    }  # fmt: skip
    assert rejected["minilm-l6"] == "it was trained on en, not de"
    assert "reads de" in found[0].reasons
    assert "minilm-l6" in ids(Needs(task="entity-recognition", language="en"))


def test_whole_detectors_before_backbones_and_ones_own_before_all():
    order = ids(Needs(task="object-detection", num_examples=200))
    assert order[:2] == ["fasterrcnn-mobilenet-320", "ssdlite"]
    own = replace(Catalogue.load().get("resnet18"), id="ours", sources=(), digest="0" * 64, published=None)
    found, _ = suggest([*ENTRIES, own], Needs(task="object-detection", num_examples=200))
    assert found[0].entry.id == "ours"
    assert found[0].reasons[0] == "your own checkpoint"


def test_what_cannot_be_estimated_is_left_out_of_a_latency_budget_only():
    unknown = replace(Catalogue.load().get("minilm-l6"), gmacs=0.0)
    assert ids(Needs(task="text-classification"), [unknown]) == ["minilm-l6"]
    _, rejected = suggest([unknown], Needs(task="text-classification", max_latency_ms=50))
    assert rejected == {
        "minilm-l6": "its multiply-accumulates are not recorded, so its latency cannot be estimated"
    }  # fmt: skip


def test_of_images_what_published_no_accuracy_stands_last():
    unknown = replace(Catalogue.load().get("resnet18"), id="unknown", published=None)
    order = ids(Needs(task="image-classification", num_examples=100), [unknown, *ENTRIES])
    assert order[-1] == "unknown"


def test_tasks_without_bases_get_none():
    assert suggest(ENTRIES, Needs(task="recommendation")) == ([], {})


def test_sizes_are_taken_from_what_statistics_there_are():
    assert size_of({}) == 0
    assert size_of({"width_pixels": {"p50": 320.0}, "height_pixels": {"p50": 240.0}}) == 320
    assert size_of({"text_characters": {"p50": 10.0, "p90": 81.0}}) == 21
    assert is_grey({"grey_share": 0.9})
    assert not is_grey({"grey_share": 0.1})
    grey = suggest(ENTRIES, Needs(task="image-classification", greyscale=True))[0][0]
    assert any(reason.startswith("grey images go in as three equal channels") for reason in grey.reasons)
