"""What detection finds, and how that is scored and drawn."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxed_images import PNG, entry, table
from luthier import images
from luthier.tasks.object_detection.v1 import object_detection_pb2 as pb
from luthier_object_detection import ObjectDetection, metrics, picture
from luthier_object_detection.codec import LABELS_FILE, PREPROCESSING_FILE, ObjectDetectionCodec, suppress


def prediction(*detections: tuple[str, float, float, float, float, float]) -> pb.Prediction:
    return pb.Prediction(
        detections=[
            pb.Detection(label=label, score=score, box=pb.Box(x_min=x0, y_min=y0, x_max=x1, y_max=y1))
            for label, score, x0, y0, x1, y1 in detections
        ]
    )


# Predictions.


@pytest.fixture
def codec(tmp_path: Path) -> ObjectDetectionCodec:
    (tmp_path / LABELS_FILE).write_text('["dog", "cat"]')
    (tmp_path / PREPROCESSING_FILE).write_text('{"height": 32, "width": 64, "nms_iou": 0.5, "score_threshold": 0.25}')
    return ObjectDetectionCodec(tmp_path)


def test_boxes_come_back_in_pixels_of_the_image_as_shown(codec: ObjectDetectionCodec) -> None:
    stream = io.BytesIO()
    turned = Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(stream, "JPEG", exif=exif)
    instances = [pb.Instance(image=PNG), pb.Instance(image=stream.getvalue())]
    assert codec.encode(instances)["pixels"].shape == (2, 32, 64, 3)
    scores = np.array([[[0.2, 0.9], [0.3, 0.1], [0.25, 0.8]]] * 2, dtype=np.float32)
    boxes = np.array([[[0.5, 0.25, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0.25, 1, 0.9]]] * 2, dtype=np.float32)
    first, second = codec.decode({"scores": scores, "boxes": boxes}, instances)
    # The second cat overlaps the first; as a dog the same box stands alone.
    assert [(d.label, round(d.score, 2)) for d in first.detections] == [("cat", 0.9), ("dog", 0.3), ("dog", 0.25)]
    box = first.detections[0].box
    assert (box.x_min, box.y_min, box.x_max, box.y_max) == (30, 10, 60, 40)
    assert (first.image_width, first.image_height) == (60, 40)
    box = second.detections[0].box
    assert (box.x_min, box.y_min, box.x_max, box.y_max) == (20, 15, 40, 60)
    assert (second.image_width, second.image_height) == (40, 60)


def test_thresholds_and_limits(codec: ObjectDetectionCodec) -> None:
    scores = np.linspace(0, 1, 101, dtype=np.float32)[None, :, None] * np.array([1, 0], dtype=np.float32)
    places = np.arange(101, dtype=np.float32)[None, :, None]
    boxes = np.concatenate([places, places, places + 1, places + 1], -1) / 102
    for instance, count in [
        (pb.Instance(image=PNG), 76),
        (pb.Instance(image=PNG, score_threshold=0.99), 2),
        (pb.Instance(image=PNG, score_threshold=1, max_detections=5), 1),
        (pb.Instance(image=PNG, score_threshold=0, max_detections=5), 5),
    ]:
        (found,) = codec.decode({"scores": scores, "boxes": boxes}, [instance])
        assert len(found.detections) == count
        assert [d.score for d in found.detections] == sorted((d.score for d in found.detections), reverse=True)
    (nothing,) = codec.decode({"scores": scores * 0, "boxes": boxes}, [pb.Instance(image=PNG)])
    assert (len(nothing.detections), nothing.image_width) == (0, 60)


def test_suppression_equals_torchvisions() -> None:
    import torch
    from torchvision.ops import batched_nms

    random = np.random.default_rng(0)
    for count in (0, 1, 7, 400):
        corners = random.random((count, 2, 2), dtype=np.float32)
        boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
        classes = random.integers(0, 3, count)
        scores = -np.arange(count, dtype=np.float32)
        expected = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes), 0.4)
        assert suppress(boxes, classes, 0.4, count) == expected.tolist()
        assert suppress(boxes, classes, 0.4, 3) == expected.tolist()[:3]


def test_a_picture_shows_the_boxes() -> None:
    drawn = picture.draw(PNG, prediction(("dog", 0.9, 10, 20, 50, 35), ("dog", 0.4, 20, 25, 40, 30)), 0.5)
    pixels = images.decode(drawn.content)
    assert drawn.media_type == "image/png"
    assert pixels.shape == (40, 60, 3)
    edge = pixels[35, 30]
    assert (edge == pixels[30, 50]).all()
    assert (edge != 99).any()
    assert (pixels[28, 30] == 99).all()


# Metrics.


def test_perfect_and_useless_predictions() -> None:
    truth = [[entry("dog", 0, 0, 50, 50), entry("cat", 60, 0, 160, 100)], []]
    perfect = [prediction(("dog", 0.9, 0, 0, 50, 50), ("cat", 0.8, 60, 0, 160, 100)), prediction()]
    scores = metrics.score(truth, perfect)
    assert scores.metrics["map"] == pytest.approx(1)
    assert scores.metrics["map_small"] == -1
    assert scores.metrics["map_medium"] == pytest.approx(1)
    assert [(c.label, c.support) for c in scores.per_class] == [("cat", 1), ("dog", 1)]
    assert [c.metrics["ap"] for c in scores.per_class] == pytest.approx([1, 1])
    useless = metrics.score(truth, [prediction(), prediction(("horse", 0.5, 0, 0, 9, 9))])
    assert (useless.metrics["map"], useless.metrics["recall"]) == (0, 0)
    assert useless.metrics.keys() == scores.metrics.keys()


def test_average_precision_of_a_worked_case() -> None:
    """One hit of IoU 0.8, then a miss, then a hit of IoU 1, of two objects: precision 1 and 2/3 at IoU 0.5."""
    truth = [[entry("dog", 0, 0, 100, 100), entry("dog", 200, 0, 300, 100)]]
    found = [prediction(("dog", 0.9, 0, 0, 100, 80), ("dog", 0.8, 400, 0, 500, 100), ("dog", 0.7, 200, 0, 300, 100))]
    scores = metrics.score(truth, found)
    at_half = (51 * 1 + 50 * 2 / 3) / 101  # 101 recalls from 0 to 1.
    above = 51 / 3 / 101  # From 0.85 on the first one misses too: 1 of 3 is right, and the recall ends at a half.
    assert scores.metrics["map_50"] == pytest.approx(at_half)
    assert scores.metrics["map_75"] == pytest.approx(at_half)
    assert scores.metrics["map"] == pytest.approx((7 * at_half + 3 * above) / 10)
    (curve,) = scores.curves
    assert (list(curve.x), list(curve.y)) == ([0.5, 1], pytest.approx([1, 2 / 3]))


def test_crowds_count_neither_way() -> None:
    truth = [[entry("dog", 0, 0, 50, 50), entry("dog", 100, 0, 200, 100, crowd=True)]]
    found = [prediction(("dog", 0.9, 100, 0, 150, 50), ("dog", 0.8, 0, 0, 50, 50))]
    scores = metrics.score(truth, found)
    assert scores.metrics["map"] == pytest.approx(1)
    assert scores.per_class[0].support == 1
    assert metrics.score(truth, [prediction()]).metrics["map"] == 0


def test_without_any_object_there_is_nothing_to_measure() -> None:
    assert set(metrics.score([[]], [prediction(("dog", 0.9, 0, 0, 5, 5))]).metrics.values()) == {-1.0}


def test_the_threshold_is_that_of_the_best_f1() -> None:
    """Right, right, wrong, right, wrong of four objects: F1 is 0.4, 0.67, 0.57, 0.75, 0.67."""
    boxes = [entry("dog", x, 0, x + 50, 50) for x in (0, 100, 200, 300)]
    found = [(0.9, 0), (0.8, 100), (0.7, 400), (0.6, 200), (0.5, 500)]
    results = metrics.measure([boxes], [prediction(*(("dog", score, x, 0, x + 50, 50) for score, x in found))])
    assert metrics.best_threshold(results, 4) == 0.55
    nothing = metrics.measure([boxes], [prediction()])
    assert metrics.best_threshold(nothing, 4) == metrics.SCORE_THRESHOLD
    assert metrics.best_threshold(metrics.measure([], []), 0) == metrics.SCORE_THRESHOLD


def test_grades_tell_good_from_bad_images() -> None:
    truth = [[entry("dog", 0, 0, 50, 50)], [entry("dog", 0, 0, 50, 50)], [], []]
    hit, doubtful = prediction(("dog", 0.9, 0, 0, 50, 50)), prediction(("dog", 0.25, 0, 0, 50, 50))
    grades = ObjectDetection().grades(table(*truth), [hit, prediction(), prediction(), doubtful])
    assert grades == pytest.approx([1, 0, 1, 0.75])


def test_a_picture_leaves_out_what_only_an_evaluation_asks_for() -> None:
    (evaluated,) = ObjectDetection().instances(table([]))
    found = prediction(("dog", 0.1, 10, 20, 50, 35))
    found.score_threshold = 0.3
    plain = ObjectDetection().render(evaluated, prediction()).content
    assert ObjectDetection().render(evaluated, found).content == plain
    assert ObjectDetection().render(pb.Instance(image=PNG, score_threshold=0.05), found).content != plain
