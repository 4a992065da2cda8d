"""What Triton's Python client asks of a server over HTTP, in an environment of its own: python calls_http.py ADDRESS.

Prints as JSON what it was told, for the test to check.
"""

import json
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def infer(client: triton.InferenceServerClient, binary: bool, **more: str) -> list[float]:
    tensor = triton.InferInput("features", [3, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((3, 1), np.float32), binary_data=binary)
    wanted = [triton.InferRequestedOutput("value", binary_data=binary)]
    return client.infer("table", [tensor], outputs=wanted, **more).as_numpy("value").tolist()


def main() -> None:
    client = triton.InferenceServerClient(sys.argv[1])
    users = triton.InferInput("user", [2, 1], "BYTES")
    users.set_data_from_numpy(np.array([[b"u1"], [b"u2"]], object))
    found = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("table"),
        "stranger_ready": client.is_model_ready("nobody"),
        "server": client.get_server_metadata(),
        "metadata": client.get_model_metadata("table"),
        "config": client.get_model_config("table"),
        "binary": infer(client, True),
        "json": infer(client, False),
        "compressed": infer(client, True, request_compression_algorithm="gzip"),
        "strings": [text.decode() for text in client.infer("shop.instances", [users]).as_numpy("prediction").ravel()],
        "index": client.get_model_repository_index(),
        "statistics": client.get_inference_statistics("table"),
    }
    try:
        client.infer("nobody", [users])
    except InferenceServerException as error:
        found["error"] = str(error)
    print(json.dumps(found))


main()
