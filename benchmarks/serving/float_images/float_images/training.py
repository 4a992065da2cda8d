"""A MobileNetV3 small with random weights."""

import json

import timm
import torch
from torch import nn
from torch.export import Dim

from float_images import SHAPE, draw, predicted
from luthier.toolkit.export import export_onnx


class Model(nn.Module):
    """Float images [batch, 3, 224, 224] to probabilities [batch, classes]."""

    def __init__(self, labels):
        super().__init__()
        self.labels = labels
        self.backbone = timm.create_model("mobilenetv3_small_100", pretrained=False, num_classes=len(labels))

    def forward(self, images):
        return self.backbone(images).softmax(-1)


def fine_tune(run):
    torch.manual_seed(run.seed)
    model = Model(sorted(set(run.parts["train"]["label"].to_pylist()))).eval()
    run.report(1, 1)
    return model


def predict(model, instances):
    with torch.inference_mode():
        return [predicted(model.labels, row) for row in model(torch.from_numpy(draw(instances))).numpy()]


def export(model, directory):
    export_onnx(model, {"images": torch.zeros(2, *SHAPE)}, ["probabilities"], {0: Dim("batch")}, directory)
    (directory / "labels.json").write_text(json.dumps(model.labels))
