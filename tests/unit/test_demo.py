"""The demo's data, and the server that it starts."""

from __future__ import annotations

import csv
import json
import signal
import socket
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import luthier_demo
from luthier_demo import bookshop, demo, letters, orchard, stops
from luthier_demo.server import Server, ServerFailed, end, serve


@pytest.fixture(scope="module")
def reviews() -> list[dict[str, str]]:
    with stops.REVIEWS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def purchases() -> list[bookshop.Purchase]:
    return bookshop.simulate(bookshop.read_catalogue())


def test_reviews_are_many_distinct_and_balanced(reviews: list[dict[str, str]]) -> None:
    texts = {" ".join(row["review"].casefold().split()) for row in reviews}
    assert len(texts) == len(reviews) == 500
    assert Counter(row["sentiment"] for row in reviews) == dict.fromkeys(
        ("content", "delighted", "disappointed", "mixed"), 125
    )


def test_reviews_are_no_template_with_other_nouns(reviews: list[dict[str, str]]) -> None:
    openings = Counter(" ".join(row["review"].split()[:4]).casefold() for row in reviews)
    assert max(openings.values()) <= 3, openings.most_common(3)


def test_predicted_reviews_are_not_among_the_data(reviews: list[dict[str, str]]) -> None:
    assert not {row["review"] for row in reviews} & set(stops.NEW_REVIEWS)


def test_books_have_their_own_titles() -> None:
    books = bookshop.read_catalogue()
    assert len(books) == 360
    assert len({book.title for book in books}) == len({book.id for book in books}) == len(books)
    assert {stops.SIMILAR_TO, *stops.HISTORY} <= {book.title for book in books}


def test_purchases_are_as_many_as_a_shop_has(purchases: list[bookshop.Purchase]) -> None:
    assert 25_000 < len(purchases) < 35_000
    assert len({purchase.reader for purchase in purchases}) == bookshop.NUM_READERS
    assert stops.READER in {purchase.reader for purchase in purchases}
    assert len({(purchase.reader, purchase.book) for purchase in purchases}) == len(purchases)
    assert {purchase.copies for purchase in purchases} == {1, 2, 3}
    assert all(one.time <= other.time for one, other in pairwise(purchases))


def test_purchases_follow_from_the_seed() -> None:
    books = bookshop.read_catalogue()
    first = bookshop.simulate(books, seed=5, num_readers=20)
    assert first == bookshop.simulate(books, seed=5, num_readers=20)
    assert first != bookshop.simulate(books, seed=6, num_readers=20)


def test_volumes_of_a_series_are_bought_in_order(purchases: list[bookshop.Purchase]) -> None:
    books = {book.id: book for book in bookshop.read_catalogue()}
    reached: dict[tuple[str, str], int] = {}
    for purchase in purchases:
        book = books[purchase.book]
        if book.series:
            before = reached.get((purchase.reader, book.series), 0)
            assert book.volume > before
            reached[purchase.reader, book.series] = book.volume


def test_tastes_can_be_learnt_and_are_not_obvious(purchases: list[bookshop.Purchase]) -> None:
    """nDCG at 10 of popularity and of EASE (Steck 2019) on a quarter of each reader's books."""
    train, test = held_out(purchases)
    gram = np.linalg.inv(train.T @ train + 100 * np.eye(train.shape[1]))
    weights = -gram / np.diag(gram)
    np.fill_diagonal(weights, 0)
    assert 0.10 < ndcg(np.broadcast_to(train.sum(0), train.shape), train, test) < 0.20
    assert 0.30 < ndcg(train @ weights, train, test) < 0.50


def test_files_hold_the_purchases_and_the_titles(tmp_path: Path) -> None:
    purchases, books = bookshop.write(tmp_path, num_readers=10)
    with purchases.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["reader", "book", "copies", "time"]
    with books.open(encoding="utf-8", newline="") as file:
        titles = {row["book"]: row["title"] for row in csv.DictReader(file)}
    assert {row["book"] for row in rows} <= titles.keys()
    assert titles["b031"] == "The Salt Gate (The Lantern Roads 1), Ida Marrow"


def test_a_server_serves_and_is_ended(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        assert server.address.startswith("127.0.0.1:")
        process = server._process
        assert process.poll() is None
    assert process.poll() == 0


def test_a_server_is_ended_where_the_tour_fails(tmp_path: Path) -> None:
    started: list[Server] = []

    def tour() -> None:
        with serve(tmp_path) as server:
            started.append(server)
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        tour()
    assert started[0]._process.poll() == 0


def test_a_demo_that_is_terminated_takes_its_server_along(tmp_path: Path) -> None:
    script = "import pathlib, sys, luthier_demo; luthier_demo.run(exit_after=True, home=pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-u", "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = process.stdout.readline().split()[3].rstrip(";")
        with socket.create_connection(tuple(address.split(":"))):
            process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(tuple(address.split(":")))


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "luthier.toml").write_text("trainings = -1\n", encoding="utf-8")
    with pytest.raises(ServerFailed, match="trainings"), serve(tmp_path):
        pass


def test_a_process_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier_demo.server.END_S", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    end(process)
    assert process.poll() == -9


def test_the_demo_fails_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "luthier.toml").write_text("jobs = 'many'\n", encoding="utf-8")
    assert luthier_demo.run(exit_after=True, home=tmp_path) == 1
    assert "jobs" in capsys.readouterr().out


def test_the_demo_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "NEEDED", ("numpy", "a_package_that_nobody_has"))
    assert luthier_demo.run(exit_after=True) == 2
    assert "needs a_package_that_nobody_has: pip install 'luthier[train]'" in capsys.readouterr().out


def test_the_demo_knows_its_stops(capsys: pytest.CaptureFixture[str]) -> None:
    assert luthier_demo.run(["poetry"], exit_after=True) == 2
    assert "there is no demo of poetry; there are text-classification" in capsys.readouterr().out


def test_fruit_lie_where_their_boxes_and_masks_say() -> None:
    scenes = orchard.scenes(40, seed=5)
    assert sum(not scene.fruit for scene in scenes) in range(1, 6), "some tables are empty"
    for scene in scenes:
        assert scene.image.shape == (128, 160, 3)
        assert scene.mask.shape == (128, 160)
        for kind, (left, top, width, height) in scene.fruit:
            inside = scene.mask[top : top + height, left : left + width] == orchard.KINDS.index(kind) + 1
            assert inside.any(0)[[0, -1]].all()
            assert inside.any(1)[[0, -1]].all()


def test_pictures_follow_from_the_seed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        orchard.write_coco(tmp_path / name, count=4)
    files = [sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("one", "two")]
    assert len(files[0]) == 5
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_letters_mark_what_they_say(tmp_path: Path) -> None:
    written = [json.loads(line) for line in letters.write(tmp_path / "l.jsonl").read_text("utf-8").splitlines()]
    assert len(written) > 550
    marked = Counter(entity["label"] for letter in written for entity in letter["entities"])
    assert marked.keys() == {"PERSON", "PLACE", "COMPANY", "DATE"}
    assert min(marked.values()) > 150
    places = {one["text"][e["start"] : e["end"]] for one in written for e in one["entities"] if e["label"] == "PLACE"}
    assert places == set(letters._PLACES)
    assert not any("{" in letter["text"] for letter in written)


def held_out(purchases: list[bookshop.Purchase]) -> tuple[np.ndarray, np.ndarray]:
    """Readers by books, 1 where bought: what is learnt from, and a quarter of each reader's."""
    readers = {id: row for row, id in enumerate(sorted({purchase.reader for purchase in purchases}))}
    bought = np.zeros((len(readers), len(bookshop.read_catalogue())))
    for purchase in purchases:
        bought[readers[purchase.reader], int(purchase.book[1:]) - 1] = 1
    draw = np.where(bought, np.random.default_rng(0).random(bought.shape), np.inf)
    rank = draw.argsort(1).argsort(1)
    test = (rank < np.round(bought.sum(1, keepdims=True) / 4)) * bought
    return bought - test, test


def ndcg(scores: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    top = np.argsort(-np.where(train > 0, -np.inf, scores), axis=1)[:, :10]
    discounts = 1 / np.log2(np.arange(2, 12))
    gains = (np.take_along_axis(test, top, axis=1) * discounts).sum(1)
    ideal = np.cumsum(discounts)[np.minimum(test.sum(1).astype(int), 10) - 1]
    return float(np.mean(gains / ideal))
