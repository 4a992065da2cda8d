"""FineTune: train and export in a trainer process, prove the bundle here without torch, publish."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import structlog
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from luthier import bases, bundle, datasets, drift, names
from luthier.errors import Cancelled, ParityFailed
from luthier.task import PARTS, Task
from luthier.v1 import dataset_pb2, evaluation_pb2, model_pb2
from luthier.worker import evaluate, pace, report, variants
from luthier.worker.job import Job, Paused, Publish
from luthier.worker.trainer_process import train

if TYPE_CHECKING:
    import pyarrow as pa

log = structlog.get_logger()

PROFILED = 10_000
"""Most examples of the test part that a profile is made of."""

PARITY_EXAMPLES = 5000
"""Most examples that both sides of the parity measurement predict."""

PARITY_TOLERANCE = 0.005
"""How far the served primary metric may fall behind the source's where the request does not say."""


def work(job: Job) -> Publish:
    """Does what a FineTune asks for."""
    return tune(job, job.request(model_pb2.FineTuneRequest))


def tune(job: Job, request: model_pb2.FineTuneRequest) -> Publish:
    """From a data set and a base to a bundle that was measured and is ready to publish."""
    task = job.tools.plugins.task(request.task)
    dataset = job.tools.registry.dataset_version(names.parse_versioned("datasets", request.dataset, "dataset"))
    data = job.tools.store.bring(job.tools.store.dataset(dataset.digest))
    base = _base(job, request.base)
    judged, examples = _parity_examples(data, request.seed)
    config = task.config()
    request.config.Unpack(config)

    outcome = train(job, task, config, data, base, request, task.instances(examples))

    predictions = evaluate.predict(task, outcome.bundle, task.instances(examples), job.progress)
    parity = _parity(task, request, examples, outcome.predictions, predictions)
    float32 = variants.Form("float32", outcome.bundle, predictions, parity.served)
    served, measured = variants.choose(job, task, request, data, examples, float32)
    compared = task.compare(config, outcome.predictions, served.predictions)
    evaluation, draft = _evaluation(job, task, served, data, dataset, examples)
    version = model_pb2.ModelVersion(
        task=task.id,
        base=request.base,
        dataset_version=dataset.name,
        dataset_digest=dataset.digest,
        config=request.config,
        seed=request.seed,
        metrics=evaluation.metrics if evaluation else {},
        parity=parity,
        training={**outcome.figures, **compared},
        packages=outcome.packages,
        servable=True,
        variants=measured,
        serving=pace.measure(task, served.directory, task.instances(examples)),
    )
    _seal(job, task, version, config, judged, served.directory)
    job.check()
    job.tools.store.publish(served.directory, job.tools.store.bundle(version.digest))

    def record(connection: sa.Connection) -> Message:
        registry = job.tools.registry
        registry.add_model_version(connection, request.model_id, version, job.claim.operation)
        if evaluation:
            evaluation.model_version = version.name
            registry.add_evaluation(connection, job.claim.operation, evaluation)
            report.keep(job, draft, version, evaluation)
        return version

    return record


def _base(job: Job, name: str) -> Path | None:
    """Files to start from: a base, pulled where it is not there yet, or the bundle of an earlier version."""
    if not name:
        return None
    if name.startswith("bases/"):
        entry = job.tools.catalogue.get(names.parse("bases/{base}", name, "base")[0])
        if entry.imported:
            job.tools.store.bring(job.tools.store.bases / entry.folder)
        return bases.pull(entry, job.tools.store.bases, job.progress)
    version = job.tools.registry.model_version(*job.tools.registry.resolve(name, "base"))
    directory = job.tools.store.bring(job.tools.store.bundle(version.digest))
    bundle.verify(directory, version.digest)
    return directory


def _parity_examples(data: Path, seed: int) -> tuple[str, pa.Table]:
    """The part that parity is judged on, and examples of it: of test, or where that is empty of validation or train."""
    for part in reversed(PARTS):
        examples = datasets.load(data, [part])[part]
        if examples.num_rows:
            break
    if examples.num_rows > PARITY_EXAMPLES:
        examples = examples.take(sorted(random.Random(seed).sample(range(examples.num_rows), PARITY_EXAMPLES)))
    return part, examples


def _parity(
    task: Task, request: model_pb2.FineTuneRequest, examples: pa.Table, source: list[Message], served: list[Message]
) -> model_pb2.Parity:
    """Compares both sides on the primary metric; raises ParityFailed where the bundle falls behind too far."""
    parity = model_pb2.Parity(
        metric=task.primary_metric,
        source=evaluate.score_rows(task, examples, source),
        served=evaluate.score_rows(task, examples, served),
        tolerance=request.parity_tolerance if request.HasField("parity_tolerance") else PARITY_TOLERANCE,
        num_examples=examples.num_rows,
    )
    loss = evaluate.shortfall(task, parity.source, parity.served)
    # A metric that is not a number compares as false, and must not pass for that.
    if not loss <= parity.tolerance:
        raise ParityFailed(
            f"the exported bundle reaches {parity.metric} {parity.served:.4f}, the model it was exported from "
            f"{parity.source:.4f}: a loss of {loss:.4f} where {parity.tolerance:.4f} is allowed; nothing was published"
        )
    return parity


def _evaluation(
    job: Job,
    task: Task,
    served: variants.Form,
    data: Path,
    dataset: dataset_pb2.DatasetVersion,
    examples: pa.Table,
) -> tuple[evaluation_pb2.Evaluation | None, report.Draft | None]:
    """Scores of the bundle that will be served on the whole test part, and their report; None without such a part.

    What the test part and the predictions for it look like goes into the bundle, for live ones to be compared with.
    """
    test = datasets.load(data, ["test"])["test"]
    if not test.num_rows:
        return None, None
    predictions = served.predictions
    if test.num_rows != examples.num_rows:
        predictions = evaluate.predict(task, served.directory, task.instances(test), job.progress)
    evaluation = task.score(test, predictions)
    _profile(job, task, served.directory, task.instances(test), predictions)
    evaluation.dataset_version, evaluation.split = dataset.name, "test"
    return evaluation, report.prepare(job, task, job.claim.operation, test, predictions)


def _profile(
    job: Job, task: Task, directory: Path, instances: Sequence[Message], predictions: Sequence[Message]
) -> None:
    """Writes the profile of at most PROFILED examples into the bundle. A version is not lost for want of one."""
    chosen = sorted(random.Random(0).sample(range(len(instances)), min(len(instances), PROFILED)))
    facts = []
    try:
        for done, index in enumerate(chosen):
            if not done % 100:
                job.progress("profiling", done, len(chosen))
            facts.append(task.features(instances[index], predictions[index]))
        drift.save(drift.profile_of(facts), directory)
    except (Cancelled, Paused):
        raise
    except Exception as error:  # Whatever a plugin's code trips over.
        log.warning("published without a profile", operation=job.claim.operation, exc_info=error)


def _seal(job: Job, task: Task, version: model_pb2.ModelVersion, config: Message, judged: str, directory: Path) -> None:
    """Writes the manifest into the bundle, and files and digest into the version."""
    plugin = job.tools.plugins.loaded[task.id]
    manifest: dict[str, Any] = {
        "task": task.id,
        "plugin": {"distribution": plugin.distribution, "version": plugin.version},
        "lineage": {
            "base": version.base,
            "dataset_version": version.dataset_version,
            "dataset_digest": version.dataset_digest,
            "config": MessageToDict(config, preserving_proto_field_name=True),
            "seed": version.seed,
            "packages": dict(version.packages),
            "operation": f"operations/{job.claim.operation}",
        },
        "measurements": {
            "metrics": dict(version.metrics),
            "parity": {**MessageToDict(version.parity, preserving_proto_field_name=True), "part": judged},
            "training": dict(version.training),
            "variants": [MessageToDict(v, preserving_proto_field_name=True) for v in version.variants],
            "serving": MessageToDict(version.serving, preserving_proto_field_name=True),
        },
    }
    version.digest = bundle.seal(directory, manifest)
    files = json.loads((directory / bundle.MANIFEST).read_text(encoding="utf-8"))["files"]
    version.files.extend(model_pb2.BundleFile(**file) for file in files)
