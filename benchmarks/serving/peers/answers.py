"""What a peer's model does with the arrays of a request: the same ONNX file, and the same work around it.

It runs in the peers' environments, where Luthier is not installed. `KINDS` says what a model is given: the graph's own
tensors, the bytes of an image, a string, or the id of a user.
"""

import io
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

BETWEEN = 1
ENTRIES = {"session.intra_op.allow_spinning": "0", "session.use_device_allocator_for_initializers": "1"}
"""Session options; the benchmark checks that they are Luthier's. The threads of a call are what the bundle says."""
ITEMS = 10


def threads(bundle):
    """The threads of a call, as Luthier settled them at publication."""
    manifest = json.loads((Path(bundle) / "manifest.json").read_text(encoding="utf-8"))
    return manifest["measurements"]["serving"]["threads"]


class Tensors:
    """The graph as it is."""

    def __init__(self, bundle):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads(bundle)
        options.inter_op_num_threads = BETWEEN
        for name, value in ENTRIES.items():
            options.add_session_config_entry(name, value)
        options.log_severity_level = 3
        self.bundle = Path(bundle)
        model = str(self.bundle / "model.onnx")
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, inputs):
        return dict(zip(self.outputs, self.session.run(self.outputs, inputs), strict=True))

    def read(self, name):
        return json.loads((self.bundle / name).read_text(encoding="utf-8"))


class Classifier(Tensors):
    """The best class of what `encode` makes of the bytes in `raw`."""

    def __init__(self, bundle):
        super().__init__(bundle)
        self.labels = [label.encode() for label in self.read("labels.json")]
        self.preprocessing = self.read("preprocessing.json")

    def __call__(self, inputs):
        [probabilities] = super().__call__(self.encode(inputs["raw"].item()))["probabilities"]
        best = probabilities.argmax()
        return {"label": np.array([self.labels[best]], object), "score": probabilities[best : best + 1]}


class Jpeg(Classifier):
    """The class of an image."""

    def __init__(self, bundle):
        from PIL import Image, ImageOps

        super().__init__(bundle)
        self.pillow, self.operations = Image, ImageOps
        self.size = (self.preprocessing["width"], self.preprocessing["height"])

    def encode(self, raw):
        image = self.operations.exif_transpose(self.pillow.open(io.BytesIO(raw))).convert("RGB")
        return {"images": np.asarray(image.resize(self.size, self.pillow.Resampling.BILINEAR))[None]}


class Text(Classifier):
    """The class of a text."""

    def __init__(self, bundle):
        from tokenizers import Tokenizer

        super().__init__(bundle)
        self.tokenizer = Tokenizer.from_file(str(self.bundle / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.preprocessing["max_length"])
        self.tokenizer.no_padding()

    def encode(self, raw):
        encoding = self.tokenizer.encode(raw.decode())
        return {
            "input_ids": np.array([encoding.ids], np.int64),
            "attention_mask": np.array([encoding.attention_mask], np.int64),
        }


class Recommendation(Tensors):
    """Items for the user whose id is in `raw`, without those that he took, by factors of users and items."""

    def __init__(self, bundle):
        super().__init__(bundle)
        self.users = {user: row for row, user in enumerate(self.ids("users"))}
        self.items = np.array(self.ids("items"), object)
        self.factors = self.array("user_factors")
        self.starts = self.array("seen.indptr")
        self.seen = self.array("seen.indices").astype(np.int64)

    def array(self, name):
        return np.load(self.bundle / f"{name}.npy")

    def ids(self, name):
        text, ends = self.array(f"{name}.text").tobytes(), self.array(f"{name}.ends").tolist()
        return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def __call__(self, inputs):
        user = self.users[inputs["raw"].item()]
        seen = self.seen[self.starts[user] : self.starts[user + 1]]
        found = super().__call__(
            {
                "query": self.factors[user : user + 1],
                "is_similar": np.array([[False]]),
                "k": np.array([[ITEMS]]),
                "adjusted": seen[None],
                "adjustments": np.full((1, len(seen)), -np.inf, np.float32),
                "allowed": np.full((1, 1), len(self.items)),
                "is_restricted": np.array([[False]]),
            }
        )
        return {"items": self.items[found["items"][0]], "scores": found["scores"][0]}


KINDS = {"tensors": Tensors, "jpeg": Jpeg, "text": Text, "recommendation": Recommendation}
