"""Least squares by gradient descent in numpy: a task whose runs take milliseconds, for tests to break on purpose."""

import json

import numpy as np
from acme_regression import RegressionCodec, RegressionTask
from acme_regression.v1 import regression_pb2 as pb

from luthier.hookspecs import hookimpl


class LinearTask(RegressionTask):
    id = "linear-regression"

    def trainer(self):
        return Trainer()

    def open(self, directory):
        settings = json.loads((directory / "settings.json").read_text())
        return LinearCodec(settings["num_features"])


class LinearCodec(RegressionCodec):
    def encode(self, instances):
        arrays = super().encode(instances)
        return arrays

    def decode(self, outputs, instances):
        return super().decode(outputs, instances)


class Trainer:
    def fine_tune(self, run):
        draw = np.random.default_rng(run.seed)
        x = np.array(run.parts["train"]["features"].to_pylist())
        y = run.parts["train"]["target"].to_numpy()
        weights = draw.normal(size=x.shape[1])
        for epoch in range(1, run.config.epochs + 1):
            error = x @ weights - y
            weights = weights - run.config.rate * x.T @ error / len(y)
            run.report(epoch, run.config.epochs, loss=float(error @ error))
        return weights.astype(np.float32)

    def predict(self, model, instances):
        return [pb.Prediction(value=model @ np.array(instance.features, np.float32)) for instance in instances]

    def export(self, model, directory):
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        node = helper.make_node("MatMul", ["features", "weights"], ["value"])
        features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", len(model)])
        value = helper.make_tensor_value_info("value", TensorProto.FLOAT, ["batch"])
        graph = helper.make_graph([node], "linear", [features], [value], [numpy_helper.from_array(model, "weights")])
        opset = helper.make_opsetid("", 18)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), directory / "model.onnx")
        (directory / "settings.json").write_text(json.dumps({"num_features": len(model)}))


@hookimpl
def luthier_tasks():
    return [LinearTask()]
