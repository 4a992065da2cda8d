"""PullBase: fetches a base's files ahead of its first use."""

from __future__ import annotations

from luthier import bases, names
from luthier.v1 import base_pb2
from luthier.worker.job import Job, Publish


def work(job: Job) -> Publish:
    """Pulls the base that the request names."""
    request: base_pb2.PullBaseRequest = job.request(base_pb2.PullBaseRequest)
    entry = job.tools.catalogue.get(names.parse("bases/{base}", request.name)[0])
    bases.pull(entry, job.tools.store.bases, job.progress)
    return lambda connection: bases.proto(entry, job.tools.store.bases)
