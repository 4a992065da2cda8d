"""A runtime of MLServer."""

import answers
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse, ResponseOutput


class OnnxModel(MLModel):
    async def load(self):
        extra = self.settings.parameters.extra
        self.answer = answers.KINDS[extra["kind"]](extra["bundle"])
        return True

    async def predict(self, payload):
        outputs = self.answer({tensor.name: decoded(tensor) for tensor in payload.inputs})
        return InferenceResponse(
            model_name=self.name, outputs=[encoded(name, array) for name, array in outputs.items()]
        )


def decoded(tensor):
    # Its own codec takes strings for rows of single bytes.
    return np.array(list(tensor.data), object) if tensor.datatype == "BYTES" else NumpyCodec.decode_input(tensor)


def encoded(name, array):
    if array.dtype == object:
        return ResponseOutput(name=name, datatype="BYTES", shape=list(array.shape), data=array.tolist())
    return NumpyCodec.encode_output(name, array)
