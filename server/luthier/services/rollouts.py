"""RolloutService."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from luthier import bundle, names, paging
from luthier.errors import FailedPrecondition, InvalidArgument, Unavailable
from luthier.judging import Judge
from luthier.plugins import Plugins
from luthier.registry import Registry
from luthier.revisions import Revisions
from luthier.rollouts import OPEN, Rollouts
from luthier.store import Store
from luthier.v1 import rollout_pb2 as pb
from luthier.v1 import rollout_pb2_grpc

_WAIT_S = 5.0
"""Seconds after which a silent stream looks whether its caller is still there."""


class RolloutService(rollout_pb2_grpc.RolloutServiceServicer):
    """Candidates beside an alias's version."""

    def __init__(
        self,
        rollouts: Rollouts,
        judge: Judge,
        registry: Registry,
        store: Store,
        plugins: Plugins,
        revisions: Revisions,
    ) -> None:
        self._rollouts = rollouts
        self._judge = judge
        self._registry = registry
        self._store = store
        self._plugins = plugins
        self._revisions = revisions

    def StartRollout(self, request: pb.StartRolloutRequest, context: grpc.ServicerContext) -> pb.Rollout:
        """Starts one, after proving that its versions can be served."""
        for name in filter(None, (request.candidate, *request.shadows)):
            model, number = names.parse("models/{model}/versions/{number}", name, "candidate")
            version = self._registry.model_version(model, int(number))
            if version.task not in self._plugins.loaded:
                raise FailedPrecondition(f"the plugin of its task {version.task} is not installed")
            bundle.verify(self._store.bring(self._store.bundle(version.digest)), version.digest)
        return self._rollouts.start(request)

    def GetRollout(self, request: pb.GetRolloutRequest, context: grpc.ServicerContext) -> pb.Rollout:
        """One, with figures."""
        return self._judge.with_figures(_id(request.name))

    def ListRollouts(self, request: pb.ListRolloutsRequest, context: grpc.ServicerContext) -> pb.ListRolloutsResponse:
        """A page, newest first."""
        model = names.parse("models/{model}", request.model, "model")[0] if request.model else ""
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token, float, str)
        found = self._rollouts.page(model, (key[0], key[1]) if key else None, size + 1)
        token = paging.token_of(*found[size - 1][:2]) if len(found) > size else ""
        return pb.ListRolloutsResponse(rollouts=[rollout for *_, rollout in found[:size]], next_page_token=token)

    def UpdateRollout(self, request: pb.UpdateRolloutRequest, context: grpc.ServicerContext) -> pb.Rollout:
        """Another share, a pause."""
        percent = request.percent if request.HasField("percent") else None
        return self._rollouts.update(_id(request.name), percent, request.paused if request.HasField("paused") else None)

    def StopRollout(self, request: pb.StopRolloutRequest, context: grpc.ServicerContext) -> pb.Rollout:
        """Ends one by hand."""
        why = f"by hand: {request.reason}" if request.reason else "by hand"
        match request.outcome:
            case pb.StopRolloutRequest.OUTCOME_PROMOTE:
                return self._rollouts.promote(_id(request.name), why)
            case pb.StopRolloutRequest.OUTCOME_ROLL_BACK:
                return self._rollouts.roll_back(_id(request.name), why)
        raise InvalidArgument({"outcome": "is neither OUTCOME_PROMOTE nor OUTCOME_ROLL_BACK"})

    def WatchRollout(self, request: pb.WatchRolloutRequest, context: grpc.ServicerContext) -> Iterator[pb.RolloutEvent]:
        """Sends events from a sequence number on, until the last."""
        id, sequence = _id(request.name), request.after_sequence
        while context.is_active() and not self._revisions.stopped:
            seen = self._revisions.operations()
            # Asked before the events are read: what ends in between is sent on the next round.
            ended = self._rollouts.get(id).state not in OPEN
            for event in self._rollouts.events(id, sequence):
                yield event
                sequence = event.sequence
            if ended:
                return
            self._revisions.wait(seen, _WAIT_S)
        raise Unavailable("the server is shutting down; watch on from the last sequence number")


def _id(name: str) -> str:
    return names.parse("rollouts/{rollout}", name)[0]
