"""The stops of the demo, one for each task: data, a fine-tune and its measure, predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.v1.dataset_pb2 import Split
from luthier_client.cli import output
from luthier_demo import bookshop, letters
from luthier_demo.tour import Tour

REVIEWS = Path(__file__).with_name("beer_reviews.csv")
"""500 reviews of craft beers: review, sentiment."""

NEW_REVIEWS = (
    "I took one sip, called my brother and told him that this is the best beer in the whole wide world!",
    "An ordinary lager in a nice way. Decent price, good with a sandwich.",
    "Wonderful aroma of peach, but the body is thin and the finish far too bitter.",
    "Flat, sour, and the bartender said that it was supposed to be like that. Never again.",
)
READER = "r0017"
SIMILAR_TO = "The Salt Gate"
HISTORY = ("Perihelion", "Airlock Nine", "Scrap Star")
NEW_LETTER = "Mr Okonjo of Halcyon Rail wants to be in Tromsø before Monday, asks Greta Lindqvist."
VISION, TEXT = "luthier-vision", "luthier-text"
"""Luthier's own small bases, which need no network."""


def text_classification(tour: Tour) -> None:
    """Moods of beer reviews, beside the same encoder without a fine-tune."""
    tour.step("Reviews of craft beers, each of one of four moods")
    task = "text-classification"
    split = Split(method="hash", fractions=[0.7, 0.1, 0.2])
    tour.create("beer-reviews", REVIEWS, task, {"text": "review", "label": "sentiment"}, split)
    beer = tour.tune("beer", task, "beer-reviews", epochs=6)
    untuned = tour.tune("beer-untuned", task, "beer-reviews", epochs=0)
    tour.compare("beer reviews", ("accuracy", "f1_macro", "precision_macro", "recall_macro"), beer, untuned)
    predictions = tour.client.predict(output.short(beer.name), [{"text": text} for text in NEW_REVIEWS])
    rows = [(p.label, p.score, text) for p, text in zip(predictions, NEW_REVIEWS, strict=True)]
    tour.table("sentiment", "probability", "review", rows=rows)


def recommendation(tour: Tour) -> None:
    """Books for readers, beside what sells best."""
    tour.step("Purchases of a bookshop")
    purchases, books = bookshop.write(tour.folder)
    columns = {"user": "reader", "item": "book", "weight": "copies"}
    split = Split(method="per-user", fractions=[0.25])
    tour.create("bookshop", {"": purchases, "titles": books}, "recommendation", columns, split)
    tuned = tour.tune("books", "recommendation", "bookshop")
    popular = tour.tune("books-popular", "recommendation", "bookshop", algorithm="popularity")
    tour.compare("bookshop", ("ndcg_at_10", "recall_at_10", "precision_at_10", "map_at_10"), tuned, popular)

    def titles(title: str, prediction: Any) -> None:
        tour.table("book", "score", rows=[(item.title, item.score) for item in prediction.items], title=title)

    model, ids = output.short(tuned.name), {book.title: book.id for book in bookshop.read_catalogue()}
    history = [ids[title] for title in HISTORY]
    known, unknown = tour.client.predict(model, [{"user": READER, "k": 5}, {"history": history, "k": 5}])
    [similar] = tour.client.predict(model, [{"item": ids[SIMILAR_TO], "k": 5}], method="SimilarItems")
    titles(f"for reader {READER}", known)
    titles(f"for a stranger who read {', '.join(HISTORY)}", unknown)
    titles(f"like {SIMILAR_TO}", similar)


def entity_recognition(tour: Tour) -> None:
    """People, places, companies and days in letters, beside a random start."""
    tour.step("Letters to a travel desk, with the names in them")
    task = "entity-recognition"
    tour.create("letters", letters.write(tour.folder / "letters.jsonl"), task)
    tuned = tour.tune("letters", task, "letters", TEXT)
    scratch = tour.tune("letters-scratch", task, "letters", TEXT, from_scratch=True)
    tour.compare("letters", ("f1", "precision", "recall"), tuned, scratch)
    prediction = tour.picture(tuned, NEW_LETTER, "letter.svg")
    rows = [(entity.label, entity.text, entity.score) for entity in prediction.entities]
    tour.table("entity", "text", "score", rows=rows, title=NEW_LETTER)


def image_classification(tour: Tour) -> None:
    """Kinds of fruit, beside a random start."""
    from luthier_demo import orchard

    tour.step("Pictures of fruit, each of one of six kinds")
    task = "image-classification"
    tour.create("fruit", orchard.write_folders(tour.folder / "fruit"), task)
    tuned = tour.tune("fruit", task, "fruit", VISION)
    scratch = tour.tune("fruit-scratch", task, "fruit", VISION, from_scratch=True)
    tour.compare("fruit", ("accuracy", "f1_macro"), tuned, scratch)
    photograph = _photograph(tour.folder / "pear.png", "pear", height=240, width=240)
    prediction = tour.picture(tuned, photograph, "fruit.png")
    tour.table("kind", "probability", rows=[(prediction.label, prediction.score)])


def object_detection(tour: Tour) -> None:
    """Fruit on tables, with their boxes, beside a random start."""
    from luthier_demo import orchard

    tour.step("Pictures of tables, with a box around each fruit")
    task = "object-detection"
    tour.create("tables", orchard.write_coco(tour.folder / "tables"), task)
    tuned = tour.tune("tables", task, "tables", VISION, epochs=10)
    scratch = tour.tune("tables-scratch", task, "tables", VISION, epochs=10, from_scratch=True)
    tour.compare("tables", ("map_50", "map"), tuned, scratch)
    photograph = _photograph(tour.folder / "table.png", *orchard.KINDS, "pear")
    prediction = tour.picture(tuned, photograph, "boxes.png")
    rows = [
        (found.label, found.score, *(round(v) for v in (b.x_min, b.y_min, b.x_max, b.y_max)))
        for found in prediction.detections
        for b in [found.box]
    ]
    tour.table("kind", "score", "left", "top", "right", "bottom", rows=rows)


def semantic_segmentation(tour: Tour) -> None:
    """Fruit on tables, pixel by pixel, beside a random start."""
    from luthier_demo import orchard

    tour.step("Pictures of tables, with a mask of each kind of fruit")
    task = "semantic-segmentation"
    tour.create("masks", orchard.write_masks(tour.folder / "masks"), task)
    tuned = tour.tune("masks", task, "masks", VISION, epochs=10)
    scratch = tour.tune("masks-scratch", task, "masks", VISION, epochs=10, from_scratch=True)
    tour.compare("masks", ("miou", "pixel_accuracy"), tuned, scratch)
    photograph = _photograph(tour.folder / "bowl.png", *orchard.KINDS)
    prediction = tour.picture(tuned, photograph, "masks.png")
    tour.table("class", "share of the picture", rows=[(area.label, area.share) for area in prediction.classes])


STOPS: dict[str, Callable[[Tour], None]] = {
    "text-classification": text_classification,
    "recommendation": recommendation,
    "entity-recognition": entity_recognition,
    "image-classification": image_classification,
    "object-detection": object_detection,
    "semantic-segmentation": semantic_segmentation,
}
"""By task, in the order of the tour."""
FIRST = ("text-classification", "recommendation")
"""The stops of a short visit."""


def _photograph(path: Path, *kinds: str, height: int = 320, width: int = 400) -> Path:
    """Draws a fresh picture of fruit of these kinds."""
    import numpy as np
    from PIL import Image

    from luthier_demo import orchard

    radius = (0.3, 0.42) if len(kinds) == 1 else (0.14, 0.22)
    scene = orchard.draw(np.random.default_rng(98), height, width, list(kinds), radius)
    Image.fromarray(scene.image).save(path)
    return path
