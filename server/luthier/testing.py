"""The suite that a task has to pass, for authors of plugins to subclass in their own tests.

    class TestRegression(TaskConformance):
        task = RegressionTask()
        config = pb.Config(epochs=50)
        invalid_instances = [(pb.Instance(features=[1.0]), "features")]

        @classmethod
        def parts(cls):
            return {"train": pa.table(...), "validation": pa.table(...), "test": pa.table(...)}

pytest collects the tests with the subclass. Each trains for real, so keep the data and the config tiny: the suite makes
two whole runs, two exports and one run that is cancelled.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from luthier import drift, fields, plugins
from luthier.errors import Cancelled, InvalidArgument
from luthier.inference.predictor import Predictor
from luthier.task import PARTS, Evaluation, Run, Task

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TaskConformance"]

_SEED = 7

MOST_PROFILE_BYTES = 2**20
"""More facts than fit into so many bytes are too many to look at."""

_SERVE = """
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pyarrow.parquet as pq

from luthier import plugins
from luthier.inference.predictor import Predictor

plugin, task_id, bundle, examples, answer = sys.argv[1:]
task = plugins.load([EntryPoint(plugin, plugin, plugins.GROUP)]).task(task_id)
table = pq.read_table(examples)
predictions = Predictor(task, Path(bundle)).predict(task.instances(table))
Path(answer).write_bytes(task.score(table, predictions).SerializeToString(deterministic=True))
assert "torch" not in sys.modules, "torch was imported"
"""
"""What a serving process does with a bundle, from examples to scores."""


@dataclass(frozen=True)
class Tuned:
    """What a fine-tune of the suite left."""

    model: Any
    bundle: Path
    events: Sequence[Mapping[str, Any]]
    """What it emitted: progress and metrics, in order."""

    def metric(self, name: str) -> list[float]:
        """The values reported under a name, in order."""
        values = [event["metrics"]["values"] for event in self.events if "metrics" in event]
        return [step[name] for step in values if name in step]


class TaskConformance(ABC):
    """Subclass it, set `task`, `config` and `invalid_instances`, and define `parts`; the rest has defaults."""

    task: ClassVar[Task]
    config: ClassVar[Any]
    """A config message for a run of seconds; its unset fields take their defaults."""
    invalid_instances: ClassVar[Sequence[tuple[Message, str]]]
    """Instances that the codec has to refuse, at least one, each with the name of the field that is wrong."""
    edge_cases: ClassVar[Sequence[Message]] = ()
    """Instances beside those of the test part that have to be answered alike by model and bundle, alone and in batches:
    the empty, the very long, the unknown."""
    loss: ClassVar[str | None] = "loss"
    """The reported metric that has to fall over the run, such as `validation/loss` where the training loss is reported
    by the clock; None where training has none, as in closed form."""
    trivial_score: ClassVar[float | None] = None
    """The primary metric of a trivial model, which the tuned one has to beat. Needed where `loss` is None."""
    tolerance: ClassVar[float] = 1e-4
    """How far two numbers that should be equal may be apart, relative to the larger where that is above 1."""
    plugin: ClassVar[str] = ""
    """What the entry point names; as it stands, the package that the task's class is in."""

    @classmethod
    @abstractmethod
    def parts(cls) -> Mapping[str, pa.Table]:
        """Returns `train`, `validation`, `test` and the task's extra files by role, as tables as `Task.read` gives."""

    @classmethod
    def base(cls, directory: Path) -> Path | None:
        """Returns the files of the base, which may be made in an empty folder. As it stands: none."""
        return None

    # Fixtures. A run is made once for a class, except where a test is about a run of its own.

    @pytest.fixture(scope="class")
    @classmethod
    def base_files(cls, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
        """The base that all runs start from."""
        return cls.base(tmp_path_factory.mktemp("base"))

    @pytest.fixture(scope="class")
    @classmethod
    def tuned(cls, base_files: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
        """A whole run, its bundle moved away from where it was written."""
        return cls._tune(base_files, tmp_path_factory.mktemp("tuned"))

    @pytest.fixture(scope="class")
    @classmethod
    def predictor(cls, tuned: Tuned) -> Predictor:
        """The bundle as a server opens it."""
        return Predictor(cls.task, tuned.bundle)

    @pytest.fixture(scope="class")
    @classmethod
    def instances(cls) -> list[Message]:
        """What is asked of the test part, then the edge cases."""
        return [*cls.task.instances(cls.parts()["test"]), *cls.edge_cases]

    @pytest.fixture(scope="class")
    @classmethod
    def predictions(cls, predictor: Predictor, instances: list[Message]) -> list[Message]:
        """The answers, from one batch."""
        return predictor.predict(instances)

    # What the plugin declares.

    def test_plugin_loads(self) -> None:
        """The plugin's package brings the task through the hook, as an entry point would."""
        found = plugins.load([EntryPoint(self._plugin(), self._plugin(), plugins.GROUP)])
        assert not found.failures, found.failures
        assert self.task.id in found.tasks

    def test_import_leaves_torch_alone(self) -> None:
        """Serving processes import every plugin, and none may import torch."""
        _python(f"import {self._plugin()}, sys; assert 'torch' not in sys.modules, 'torch was imported'")

    def test_config_fields_are_documented(self) -> None:
        """Each field of the config is `optional` and has help."""
        for field in fields.of(self.task.config):
            assert field.is_repeated or field.has_presence, f"{field.name} is not declared optional"
            assert fields.help_of(field).help, f"{field.name} has no help"

    def test_config_defaults_are_within_bounds(self) -> None:
        """A config with nothing set is a good one, and `resolve` fills it."""
        config = self.task.config()
        fields.resolve(config)
        unset = [f.name for f in fields.of(self.task.config) if _takes_default(f) and not config.HasField(f.name)]
        assert not unset, f"not filled: {unset}"

    def test_example_fields_are_documented(self) -> None:
        """Each column of the data has help."""
        bare = [f.name for f in fields.of(self.task.example) if not fields.help_of(f).help]
        assert not bare, f"without help: {bare}"

    def test_methods_are_valid(self) -> None:
        """The service's unary methods have the fields that the server fills and reads."""
        assert self.task.methods, f"{self.task.service.full_name} has no unary method"

    def test_examples_are_accepted(self) -> None:
        """The suite's data has the columns of the example message, and the task finds nothing fatal in it."""
        parts = self.parts()
        columns = {field.name for field in fields.of(self.task.example)}
        for part in PARTS:
            assert set(parts[part].column_names) == columns, f"{part} has the columns {parts[part].column_names}"
        fatal = [problem.message for is_fatal, problem in self.task.validate(parts) if is_fatal]
        assert not fatal, fatal
        json.dumps(self.task.describe(parts), allow_nan=False)

    # Training.

    def test_it_learns(self, tuned: Tuned, predictions: list[Message]) -> None:
        """The loss falls, from the first quarter of the reports to the last; the trivial model is beaten."""
        assert self.loss or self.trivial_score is not None, "set trivial_score where there is no loss"
        if self.loss:
            losses = tuned.metric(self.loss)
            assert len(losses) > 1, f"the run reported {self.loss} {len(losses)} times"
            quarter = math.ceil(len(losses) / 4)
            assert sum(losses[-quarter:]) < sum(losses[:quarter]), f"it does not fall: {losses}"
        if self.trivial_score is not None:
            score = self._score(predictions).metrics[self.task.primary_metric]
            better = score < self.trivial_score if self.task.lower_is_better else score > self.trivial_score
            assert better, f"{self.task.primary_metric} is {score}, a trivial model's {self.trivial_score}"

    def test_progress_rises_to_its_total(self, tuned: Tuned) -> None:
        """Within each stage the steps rise and stay within the total."""
        progress = [event["progress"] for event in tuned.events if "progress" in event]
        for stage, reports in itertools.groupby(progress, key=lambda report: report["stage"]):
            steps = [(report["step"], report["total"]) for report in reports]
            assert steps == sorted(steps), f"{stage} goes back: {steps}"
            assert all(step <= total for step, total in steps), f"{stage} runs over its total: {steps}"

    def test_same_seed_same_weights(self, tuned: Tuned, base_files: Path | None, tmp_path: Path) -> None:
        """A second run with the same seed leaves the same bytes in every file of the bundle."""
        first, second = _contents(tuned.bundle), _contents(self._tune(base_files, tmp_path).bundle)
        assert first.keys() == second.keys()
        differing = [name for name in first if first[name] != second[name]]
        assert not differing, f"two runs with one seed differ in {differing}"

    def test_cancel(self, base_files: Path | None, tmp_path: Path) -> None:
        """A run that is cancelled ends at its next report; it neither goes on nor swallows the Cancelled."""
        reports = itertools.count()
        run = self._run(base_files, tmp_path, cancelled=lambda: next(reports) > 0)
        with pytest.raises(Cancelled):
            self.task.trainer().fine_tune(run)
        assert next(reports) == 2, "the run went on after it was cancelled"

    # Serving.

    def test_instances_and_predictions_are_of_the_first_method(
        self, instances: list[Message], predictions: list[Message]
    ) -> None:
        """There is one prediction for each instance, both of the types of the method that is used for evaluation."""
        method = self.task.methods[0]
        assert instances
        assert len(instances) == len(predictions)
        assert all(isinstance(instance, method.instance) for instance in instances)
        assert all(isinstance(prediction, method.prediction) for prediction in predictions)

    def test_onnx_equals_source(self, tuned: Tuned, instances: list[Message], predictions: list[Message]) -> None:
        """The bundle predicts what the model in its training framework predicts, each time and on the metric."""
        source = self.task.trainer().predict(tuned.model, instances)
        self._assert_alike(source, predictions)
        metric = self.task.primary_metric
        ours, theirs = self._score(source).metrics[metric], self._score(predictions).metrics[metric]
        assert _close(ours, theirs, self.tolerance), f"{metric} is {ours} at the source, {theirs} served"

    @pytest.mark.parametrize("size", [1, 2, 7])
    def test_batch_equals_singles(
        self, size: int, predictor: Predictor, instances: list[Message], predictions: list[Message]
    ) -> None:
        """An answer does not depend on the company that its question came in."""
        batches = [(instances * size)[start : start + size] for start in range(0, len(instances), size)]
        answers = [answer for batch in batches for answer in predictor.predict(batch)]
        self._assert_alike(predictions, answers[: len(instances)])

    def test_threads_share_a_predictor(
        self, predictor: Predictor, instances: list[Message], predictions: list[Message]
    ) -> None:
        """Codecs are called from many threads."""
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(predictor.predict, [instances] * 8))
        for answer in answers:
            self._assert_alike(predictions, answer)

    def test_bad_instances_are_named(self, predictor: Predictor, instances: list[Message]) -> None:
        """InvalidArgument names every bad field, and nothing else, by the instance's place in the batch."""
        assert self.invalid_instances, "invalid_instances is empty"
        batch = [instances[0], *(instance for instance, _ in self.invalid_instances)]
        expected = {f"instances[{i}].{field}" for i, (_, field) in enumerate(self.invalid_instances, 1)}
        with pytest.raises(InvalidArgument) as caught:
            predictor.predict(batch)
        assert caught.value.violations.keys() == expected
        assert all(caught.value.violations.values()), "a violation does not say what is wrong"

    def test_score_keys_are_stable(self, predictor: Predictor, predictions: list[Message]) -> None:
        """The same examples give the same scores, fewer examples the same keys; the primary metric is among them."""
        scores = self._score(predictions)
        assert self.task.primary_metric in scores.metrics
        assert all(math.isfinite(value) for value in scores.metrics.values()), dict(scores.metrics)
        assert scores.num_examples > 0
        assert scores == self._score(predictions)
        test = self.parts()["test"]
        fewer = test.slice(0, max(1, len(test) // 2))
        some = self.task.score(fewer, predictor.predict(self.task.instances(fewer)))
        assert some.metrics.keys() == scores.metrics.keys()

    def test_averages_are_means(self, predictions: list[Message]) -> None:
        """A primary metric that the task declares a mean is that of each prediction alone, averaged."""
        if not self.task.averages:
            return
        test, metric = self.parts()["test"], self.task.primary_metric
        pairs = zip(self.task.rows(test), predictions, strict=False)
        alone = [self.task.score(test.take(rows), [prediction]).metrics[metric] for rows, prediction in pairs]
        whole = self._score(predictions).metrics[metric]
        assert _close(sum(alone) / len(alone), whole, 1e-9), (
            f"{metric} is {whole}, the mean is {sum(alone) / len(alone)}"
        )

    def test_reports_can_show_examples(self, instances: list[Message], predictions: list[Message]) -> None:
        """Each prediction has its rows and a grade, from its rows alone its instance is made, and curves are whole."""
        test = self.parts()["test"]
        count = len(predictions) - len(self.edge_cases)
        rows, grades = self.task.rows(test), self.task.grades(test, predictions[:count])
        assert len(rows) == len(grades) == count
        assert any(math.isfinite(grade) for grade in grades), "no prediction has a grade"
        assert [self.task.instances(test.take(chosen)) for chosen in rows] == [[one] for one in instances[:count]]
        for curve in self._score(predictions).curves:
            assert len(curve.x) == len(curve.y), f"{curve.label} of {curve.title}: as many values of x as of y"

    def test_features_are_small_facts(self, instances: list[Message], predictions: list[Message]) -> None:
        """Numbers that are finite, categories or bags of words; one kind for a name, the same each time, some of them
        without the input too; and a profile of them fits a bundle."""
        pairs = list(zip(instances, predictions, strict=True))
        facts = [self.task.features(*pair) for pair in pairs]
        assert facts == [self.task.features(*pair) for pair in pairs], "the same input gave other facts"
        alone = [self.task.features(None, prediction) for prediction in predictions]
        assert any(facts), "no input has a fact"
        kinds: dict[str, set[str]] = {}
        for name, value in ((name, value) for row in [*facts, *alone] for name, value in row.items()):
            if not isinstance(value, float | int | str):
                assert all(isinstance(word, str) for word in value), f"{name} is no bag of words: {value!r}"
            elif not isinstance(value, str):
                assert math.isfinite(value), f"{name} is {value}"
            kinds.setdefault(name, set()).add(_kind_of(value))
        mixed = {name: found for name, found in kinds.items() if len(found) > 1}
        assert not mixed, f"of more than one kind: {mixed}"
        profile = json.dumps(drift.profile_of(facts), allow_nan=False)
        assert len(profile) < MOST_PROFILE_BYTES, f"a profile of {len(profile)} bytes"
        drift.compare(json.loads(profile), facts * math.ceil(drift.LEAST_WINDOW / len(facts)))

    def test_confidences_are_those_of_the_predictions(self, predictions: list[Message]) -> None:
        """None, or for each prediction of the test part a number between 0 and 1 and whether it is right."""
        test = self.parts()["test"]
        own = predictions[: len(predictions) - len(self.edge_cases)]
        found = self.task.confidences(test, own)
        assert len(found) in (0, len(own))
        assert all(0 <= confidence <= 1 for confidence, _ in found), found

    def test_serving_leaves_torch_alone(self, tuned: Tuned, predictions: list[Message], tmp_path: Path) -> None:
        """A fresh process opens the bundle, predicts and scores without torch, and comes to the same scores.

        The bundle was moved after it was written, so this also shows that it does not depend on its folder.
        """
        import pyarrow.parquet as pq

        examples, answer = tmp_path / "examples.parquet", tmp_path / "answer"
        pq.write_table(self.parts()["test"], examples)
        _python(_SERVE, self._plugin(), self.task.id, str(tuned.bundle), str(examples), str(answer))
        served, here = Evaluation.FromString(answer.read_bytes()), self._score(predictions)
        assert served.metrics.keys() == here.metrics.keys()
        for name, value in here.metrics.items():
            assert _close(value, served.metrics[name], self.tolerance), name

    def test_bundle_knows_nothing_of_its_folder(self, tuned: Tuned) -> None:
        """No file of a bundle holds the path of the folder that it was written into."""
        written = os.fsencode(tuned.bundle.parent)
        holding = [name for name, content in _contents(tuned.bundle).items() if written in content]
        assert not holding, f"the folder's path is in {holding}"

    # Helpers.

    @classmethod
    def _plugin(cls) -> str:
        return cls.plugin or type(cls.task).__module__.partition(".")[0]

    @classmethod
    def _run(cls, base: Path | None, directory: Path, **given: Any) -> Run:
        """A run on all parts but the test part."""
        config = type(cls.config)()
        config.CopyFrom(cls.config)
        fields.resolve(config)
        parts = {role: table for role, table in cls.parts().items() if role != "test"}
        checkpoints = directory / "run"
        checkpoints.mkdir()
        return Run(parts=parts, config=config, base=base, seed=_SEED, directory=checkpoints, **given)

    @classmethod
    def _tune(cls, base: Path | None, directory: Path) -> Tuned:
        """Fine-tunes and exports, and moves what was exported."""
        events: list[Mapping[str, Any]] = []
        trainer = cls.task.trainer()
        model = trainer.fine_tune(cls._run(base, directory, emit=events.append))
        exported = directory / "exported"
        exported.mkdir()
        trainer.export(model, exported)
        return Tuned(model, exported.rename(directory / "bundle"), events)

    def _score(self, predictions: Sequence[Message]) -> Evaluation:
        """The scores of the test part, whose predictions come before those of the edge cases."""
        return self.task.score(self.parts()["test"], predictions[: len(predictions) - len(self.edge_cases)])

    @classmethod
    def comparable(cls, prediction: Message) -> Message:
        """A prediction as it is compared with another; override it where what ties may come in any order."""
        return prediction

    def _assert_alike(self, expected: Sequence[Message], got: Sequence[Message]) -> None:
        assert len(expected) == len(got)
        for i, (one, other) in enumerate(zip(expected, got, strict=True)):
            differences = list(_differences(self.comparable(one), self.comparable(other), self.tolerance))
            assert not differences, f"prediction {i}: {differences}"


def _kind_of(value: object) -> str:
    if isinstance(value, str):
        return "category"
    return "number" if isinstance(value, float | int) else "words"


def _takes_default(field: FieldDescriptor) -> bool:
    return not field.is_repeated and not field.message_type


def _differences(one: Any, other: Any, tolerance: float, path: str = "") -> Iterator[str]:
    """Where two values of the same field differ: numbers by more than the tolerance, all else at all."""
    if isinstance(one, Message):
        for field in one.DESCRIPTOR.fields:
            left, right = getattr(one, field.name), getattr(other, field.name)
            if not field.is_repeated:
                yield from _differences(left, right, tolerance, f"{path}.{field.name}")
            elif len(left) != len(right):
                yield f"{path}.{field.name}: {len(left)} against {len(right)} entries"
            else:
                for i, (a, b) in enumerate(zip(left, right, strict=True)):
                    yield from _differences(a, b, tolerance, f"{path}.{field.name}[{i}]")
    elif not (_close(one, other, tolerance) if isinstance(one, float) else one == other):
        yield f"{path}: {one!r} against {other!r}"


def _close(one: float, other: float, tolerance: float) -> bool:
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)


def _contents(directory: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def _python(script: str, *arguments: str) -> None:
    """Runs a script in a fresh interpreter that finds the same packages."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
