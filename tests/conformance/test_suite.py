"""The suite itself: a sound plugin passes it, and each fault fails the test that is there to find it."""

from pathlib import Path

# What the runs inside this process share; each would import the rest anew.
import acme_regression  # noqa: F401
import onnx  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pytest

import luthier.testing  # noqa: F401

pytest_plugins = ["pytester"]

SOUND = (Path(__file__).parents[1] / "plugins" / "linear" / "linear_regression.py").read_text()

SUBCLASS = """
import numpy as np
import pyarrow as pa
from acme_regression.v1 import regression_pb2 as pb
from linear_regression import LinearTask

from luthier.testing import TaskConformance


def rows(seed, num_rows):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(num_rows, 2))
    return pa.table({"features": x.tolist(), "target": x @ [3, -2] + draw.normal(size=num_rows)})


class TestLinear(TaskConformance):
    task = LinearTask()
    config = pb.Config(epochs=40, rate=0.2)
    invalid_instances = ((pb.Instance(features=[1.0]), "features"),)
    trivial_score = 3.5

    @classmethod
    def parts(cls):
        return {"train": rows(1, 50), "validation": rows(2, 10), "test": rows(3, 10)}
"""

BAD_DEFAULT = """
from acme_regression.v1 import regression_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from luthier.v1 import options_pb2

file = descriptor_pb2.FileDescriptorProto(name="bad.proto", package="bad", syntax="proto3")
file.dependency.append("luthier/v1/options.proto")
regression_pb2.Config.DESCRIPTOR.CopyToProto(file.message_type.add())
file.message_type[0].field[0].options.Extensions[options_pb2.field].default = "0"
pool = descriptor_pool.Default()
pool.AddSerializedFile(file.SerializeToString())
Config = message_factory.GetMessageClass(pool.FindMessageTypeByName("bad.Config"))
"""

FAULTS = {
    "the seed is ignored": ("default_rng(run.seed)", "default_rng()", "test_same_seed_same_weights"),
    "the step goes uphill": ("weights - run.config.rate", "weights + run.config.rate", "test_it_learns"),
    "nothing is learnt": ("- run.config.rate *", "- 1e-6 *", "test_it_learns"),
    "no loss is reported": (", loss=float(error @ error)", "", "test_it_learns"),
    "progress runs backwards": ("run.report(epoch,", "run.report(100 - epoch,", "test_progress_rises_to_its_total"),
    "Cancelled is swallowed": (
        "            run.report(epoch",
        "            import contextlib\n            with contextlib.suppress(Exception): run.report(epoch",
        "test_cancel",
    ),
    "other weights are exported": ("from_array(model,", "from_array(model * 1.01,", "test_onnx_equals_source"),
    "a batch is standardised by itself": (
        "        return arrays",
        "        return {'features': arrays['features'] - arrays['features'].mean(0)}",
        "test_batch_equals_singles[2]",
    ),
    "the codec keeps a call's state": (
        "        return arrays",
        "        self.number = self.number + 1 if hasattr(self, 'number') else 0\n"
        "        return {'features': arrays['features'] + np.float32(self.number)}",
        "test_threads_share_a_predictor",
    ),
    "a bad instance is a ValueError": (
        "        arrays = super().encode(instances)",
        "        arrays = {'features': np.array([i.features for i in instances], np.float32)}",
        "test_bad_instances_are_named",
    ),
    "a bad instance is named without its place": (
        "        arrays = super().encode(instances)",
        "        from luthier.task import InvalidArgument\n"
        "        if any(len(i.features) != 2 for i in instances): raise InvalidArgument({'features': 'is too short'})\n"
        "        arrays = super().encode(instances)",
        "test_bad_instances_are_named",
    ),
    "a prediction is lost": (
        "decode(outputs, instances)\n",
        "decode(outputs, instances)[:-1]\n",
        "test_instances_and_predictions_are_of_the_first_method",
    ),
    "score keys follow the data": (
        "    def trainer(self):",
        "    def score(self, examples, predictions):\n"
        "        scores = super().score(examples, predictions)\n"
        "        scores.metrics[f'rmse_of_{len(examples)}'] = 0\n"
        "        return scores\n\n"
        "    def trainer(self):",
        "test_score_keys_are_stable",
    ),
    "the primary metric has another name": (
        '    id = "linear-regression"',
        '    id = "linear-regression"\n    primary_metric = "error"',
        "test_score_keys_are_stable",
    ),
    "the plugin imports torch": ("import json\n", "import json\nimport torch\n", "test_import_leaves_torch_alone"),
    "the codec imports torch": (
        "        return LinearCodec",
        "        import torch\n        return LinearCodec",
        "test_serving_leaves_torch_alone",
    ),
    "the bundle holds its folder": (
        '{"num_features": len(model)}',
        '{"num_features": len(model), "folder": str(directory)}',
        "test_bundle_knows_nothing_of_its_folder",
    ),
    "the hook is misspelt": ("def luthier_tasks", "def luthier_task", "test_plugin_loads"),
    "the config has no help": (
        '    id = "linear-regression"',
        '    id = "linear-regression"\n    config = pb.Instance',
        "test_config_fields_are_documented",
    ),
    "a default is out of bounds": (
        '    id = "linear-regression"',
        '    id = "linear-regression"\n    from bad_default import Config as config',
        "test_config_defaults_are_within_bounds",
    ),
    "the columns have no help": (
        '    id = "linear-regression"',
        '    id = "linear-regression"\n    example = pb.Prediction',
        "test_example_fields_are_documented",
    ),
    "its own data is refused": (
        "    def trainer(self):",
        "    def validate(self, parts):\n"
        "        from luthier.task import DataProblem\n"
        "        yield True, DataProblem(message='too few rows')\n\n"
        "    def trainer(self):",
        "test_examples_are_accepted",
    ),
    "the service has no method": (
        '    id = "linear-regression"',
        '    id = "linear-regression"\n'
        "    from luthier.v1 import task_pb2\n"
        "    service = task_pb2.DESCRIPTOR.services_by_name['TaskService']",
        "test_methods_are_valid",
    ),
}


# Plugins of pytest that no test here needs and that each run would load anew.
QUIET = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with the subclass, and a `torch` that costs nothing to import."""
    pytester.makepyfile(test_linear=SUBCLASS, bad_default=BAD_DEFAULT, torch="")
    monkeypatch.syspath_prepend(pytester.path)
    return pytester


def test_a_sound_plugin_passes(suite: pytest.Pytester) -> None:
    suite.makepyfile(linear_regression=SOUND)
    passed, skipped, failed = suite.inline_run(*QUIET).listoutcomes()
    assert not skipped
    assert not failed
    assert len(passed) > 20


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, suite: pytest.Pytester) -> None:
    old, new, test = FAULTS[fault]
    assert SOUND.count(old) == 1
    suite.makepyfile(linear_regression=SOUND.replace(old, new))
    _, _, failed = suite.inline_run(*QUIET, f"test_linear.py::TestLinear::{test}").listoutcomes()
    assert [report.nodeid.rsplit("::", 1)[1] for report in failed] == [test]
