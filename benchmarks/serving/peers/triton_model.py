"""A model of Triton's Python backend. It becomes `model.py` of each model, with `answers.py` beside it."""

import json

import answers
import triton_python_backend_utils as backend


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.answer = answers.KINDS[parameters["kind"]](parameters["bundle"])

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        outputs = self.answer({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
        return backend.InferenceResponse([backend.Tensor(name, array) for name, array in outputs.items()])
