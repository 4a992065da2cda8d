"""An image classifier whose graph takes float32 [batch, 3, 224, 224], as most servers are sent images.

Luthier's own classifiers take bytes. This one lets the benchmark send float tensors to a model that Luthier published.
It computes as long as a trained one and has learnt nothing: its images are noise, drawn from a seed.
"""

import json

import numpy as np

from float_images.v1 import float_images_pb2 as pb
from luthier.hookspecs import hookimpl
from luthier.task import Codec, Evaluation, Task

SHAPE = (3, 224, 224)


class FloatImages(Task):
    id = "float-images"
    title = "Classification of float images, for a benchmark"
    service = pb.DESCRIPTOR.services_by_name["FloatImagesService"]
    config = pb.Config
    example = pb.Example
    primary_metric = "accuracy"

    def trainer(self):
        from float_images import training

        return training

    def open(self, directory):
        return FloatImagesCodec(json.loads((directory / "labels.json").read_text()))

    def instances(self, examples):
        return [pb.Instance(seed=seed) for seed in examples["seed"].to_pylist()]

    def score(self, examples, predictions):
        hits = [p.label == label for p, label in zip(predictions, examples["label"].to_pylist(), strict=True)]
        return Evaluation(num_examples=len(hits), metrics={"accuracy": sum(hits) / len(hits)})


class FloatImagesCodec(Codec):
    def __init__(self, labels):
        self.labels = labels

    def encode(self, instances):
        return {"images": draw(instances)}

    def decode(self, outputs, instances):
        return [predicted(self.labels, row) for row in outputs["probabilities"]]


def draw(instances):
    """Images of normal noise: float32 [instances, 3, 224, 224]."""
    return np.stack([np.random.default_rng(i.seed).standard_normal(SHAPE, np.float32) for i in instances])


def predicted(labels, probabilities):
    best = int(probabilities.argmax())
    return pb.Prediction(label=labels[best], score=probabilities[best])


@hookimpl
def luthier_tasks():
    return [FloatImages()]
