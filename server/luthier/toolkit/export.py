"""Writing a module as ONNX, and proving that the file computes what the module does."""

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import onnxruntime as ort
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn
from torch.export import Dim

from luthier.errors import ParityFailed
from luthier.task import MODEL_FILE


def export_onnx(
    module: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[int, Dim],
    directory: Path,
) -> Path:
    """Writes a module in evaluation mode to `model.onnx`, weights included, and returns the file's path.

    `inputs` are example tensors by the names of `forward`'s parameters, in their order; `outputs` names what it
    returns, a tensor or a tuple of them; `dynamic` gives, by its number from 0, each axis that may have another length
    in all inputs. An axis of length 1 in the example would be taken as fixed: give 2 or more.
    """
    path = directory / MODEL_FILE
    # It warns where torchvision is missing, whose operators it would add.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        # Axes of several inputs share a name on purpose.
        warnings.filterwarnings("ignore", message=r"# The axis name: \w+ will not be used", category=UserWarning)
        program = torch.onnx.export(
            module,
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes={name: dict(dynamic) for name in inputs},
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the dynamo exporter returns a program where it is given no file"
    # The exporter notes with each operator the stack it came from, with the paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    program.save(path, external_data=False)
    return path


def check_onnx(
    path: Path,
    module: nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    tolerance: float,
    comparable: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]] = tuple,
) -> float:
    """Returns the largest absolute difference between the outputs of the file and of the module.

    Give batches other than the one that was exported, and `comparable` where the order within the outputs says nothing.
    Raises ParityFailed where the difference is above the tolerance.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    differences = []
    for batch in batches:
        with torch.inference_mode():
            expected = module(**batch)
        outputs = session.run(None, {name: tensor.cpu().numpy() for name, tensor in batch.items()})
        theirs = (expected,) if torch.is_tensor(expected) else expected
        sides = comparable([torch.from_numpy(output) for output in outputs]), comparable([t.cpu() for t in theirs])
        differences += [(one - other).abs().max().float() for one, other in zip(*sides, strict=True)]
    worst = torch.stack(differences).max().item()
    if not worst <= tolerance:  # So that NaN is refused too.
        raise ParityFailed(f"the exported model differs from the trained one by {worst:.2g}, over {tolerance:g}")
    return worst
