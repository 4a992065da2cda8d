"""What Triton's Python client asks of a server, run in an environment of its own: python calls.py ADDRESS.

Prints as JSON what it was told, for the test to check.
"""

import asyncio
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

FEATURES = np.array([[0.5, 0.5], [-1.0, 0.25], [0.0, 0.0]], np.float32)


def inputs(values: np.ndarray) -> list[triton.InferInput]:
    tensor = triton.InferInput("features", values.shape, "FP32")
    tensor.set_data_from_numpy(values)
    return [tensor]


def messages(values: np.ndarray) -> list[triton.InferInput]:
    tensor = triton.InferInput("user", values.shape, "BYTES")
    tensor.set_data_from_numpy(values)
    return [tensor]


def synchronous(address: str) -> dict[str, object]:
    client = triton.InferenceServerClient(address)
    found: dict[str, object] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("line"),
        "stranger_ready": client.is_model_ready("nobody"),
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata("line", as_json=True),
        "config": client.get_model_config("line", as_json=True),
        "infer": client.infer("line", inputs(FEATURES)).as_numpy("value").tolist(),
        "version": client.infer("line", inputs(FEATURES), model_version="1", request_id="seven").get_response(True),
    }
    answers: queue.Queue[object] = queue.Queue()
    client.async_infer("line", inputs(FEATURES), lambda result, error: answers.put(error or result))
    found["async_infer"] = answers.get(timeout=10).as_numpy("value").tolist()
    client.start_stream(lambda result, error: answers.put(error or result))
    for row in range(3):
        client.async_stream_infer("line", inputs(FEATURES[row : row + 1]), request_id=str(row))
    client.async_stream_infer("nobody", inputs(FEATURES))
    streamed = [answers.get(timeout=10) for _ in range(4)]
    client.stop_stream()
    found["stream"] = [result.as_numpy("value").tolist() for result in streamed[:3]]
    found["stream_error"] = str(streamed[3])
    found["strings"] = [
        text.decode()
        for text in client.infer("shop.instances", messages(np.array([[b"u1"], [b"u2"]], object)))
        .as_numpy("prediction")
        .ravel()
    ]
    try:
        client.infer("line", inputs(FEATURES.astype(np.float64).astype(np.float32)[:, :1]))
    except InferenceServerException as error:
        found["error"] = [error.status(), error.message()]
    found["index"] = client.get_model_repository_index(as_json=True)
    client.unload_model("line")
    found["unloaded"] = client.is_model_ready("line")
    client.load_model("line")
    found["loaded"] = client.is_model_ready("line")
    try:
        client.load_model("line", config='{"max_batch_size": 1}')
    except InferenceServerException as error:
        found["override"] = [error.status(), error.message()]
    found["statistics"] = client.get_inference_statistics("line", as_json=True)
    client.close()
    return found


async def asynchronous(address: str) -> dict[str, object]:
    async with triton_aio.InferenceServerClient(address) as client:
        found: dict[str, object] = {
            "infer": (await client.infer("line", inputs(FEATURES))).as_numpy("value").tolist(),
            "metadata": (await client.get_model_metadata("line", as_json=True))["name"],
        }

        async def requests():
            for row in range(3):
                yield {"model_name": "line", "inputs": inputs(FEATURES[row : row + 1])}

        streamed = []
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            streamed.append(result.as_numpy("value").tolist())
        return found | {"stream": streamed}


if __name__ == "__main__":
    address = sys.argv[1]
    print(json.dumps({"sync": synchronous(address), "aio": asyncio.run(asynchronous(address))}))
