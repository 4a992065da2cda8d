"""Regression on rows of numbers, as a stranger to Luthier writes it."""

import math

from acme_regression.v1 import regression_pb2 as pb
from luthier.hookspecs import hookimpl
from luthier.task import Codec, DataProblem, Evaluation, InvalidArgument, Task


class RegressionTask(Task):
    id = "acme-regression"
    title = "Regression on rows of numbers"
    service = pb.DESCRIPTOR.services_by_name["RegressionService"]
    config = pb.Config
    example = pb.Example
    primary_metric = "rmse"
    lower_is_better = True

    def validate(self, parts):
        width = len(parts["train"]["features"][0])
        for part, table in parts.items():
            for row, features in enumerate(table["features"], 1):
                if len(features) != width:
                    why = f"{part}: {len(features)} numbers, the first row has {width}"
                    yield True, DataProblem(row=row, field="features", message=why)

    def trainer(self):
        from acme_regression import training

        return training

    def open(self, directory):
        return RegressionCodec(int((directory / "num_features").read_text()))

    def instances(self, examples):
        return [pb.Instance(features=features) for features in examples["features"].to_pylist()]

    def score(self, examples, predictions):
        target = examples["target"].to_numpy()
        squares = (target - [prediction.value for prediction in predictions]) ** 2
        r2 = 1 - squares.sum() / max(((target - target.mean()) ** 2).sum(), 1e-12)
        return Evaluation(num_examples=len(target), metrics={"rmse": math.sqrt(squares.mean()), "r2": r2})


class RegressionCodec(Codec):
    def __init__(self, num_features):
        self.num_features = num_features

    def encode(self, instances):
        import numpy as np

        rows = [instance.features for instance in instances]
        wrong = [i for i, row in enumerate(rows) if len(row) != self.num_features or not np.isfinite(row).all()]
        if wrong:
            why = f"needs {self.num_features} finite numbers"
            raise InvalidArgument({f"instances[{i}].features": why for i in wrong})
        return {"features": np.array(rows, np.float32)}

    def decode(self, outputs, instances):
        return [pb.Prediction(value=value) for value in outputs["value"]]


@hookimpl
def luthier_tasks():
    return [RegressionTask()]
