"""Recommends items to users from who took what: EASE, ALS, BM25, BPR or popularity, chosen on validation data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.message import Message

from luthier.hookspecs import hookimpl
from luthier.task import Codec, DataFile, DataProblem, Evaluation, Split, Task, Trainer
from luthier.tasks.recommendation.v1 import recommendation_pb2 as pb

if TYPE_CHECKING:
    import pyarrow as pa

TITLES = "titles"
"""Role of the file that gives items their titles."""


FALLS_OFF = 5
"""Items of an answer that its facts are about: fewer than most requests ask for, so that they compare."""


class Recommendation(Task):
    """Examples are interactions, one for each distinct pair of user and item; an evaluation asks once for each user."""

    id = "recommendation"
    title = "Recommendation"
    description = "Recommends items to users, known ones or by their history, and finds items like a given one."
    service = pb.DESCRIPTOR.services_by_name["RecommendationService"]
    config = pb.Config
    example = pb.Example
    primary_metric = "ndcg_at_10"
    averages = True
    extra_files = (TITLES,)
    splits = ("hash", "per-user")

    def read(self, file: DataFile) -> pa.Table:
        """Reads interactions, or titles where that is the file's role."""
        from luthier_recommendation import data

        return data.read_titles(file) if file.role == TITLES else super().read(file)

    def split(self, examples: pa.Table, split: Split) -> dict[str, pa.Table]:
        """Divides by user and item: all rows of a pair go to one part; see `data.split_per_user` for `per-user`."""
        from luthier import tabular
        from luthier_recommendation import data

        if split.method == "per-user":
            return data.split_per_user(examples, split)
        return tabular.split_by_hash(examples, split, key=("user", "item"))

    def validate(self, parts: Mapping[str, pa.Table]) -> Iterable[tuple[bool, DataProblem]]:
        """Yields missing interactions, bad ids and weights; warns of repeated pairs and strangers in the test part."""
        from luthier_recommendation import data

        return data.problems(parts)

    def describe(self, parts: Mapping[str, pa.Table]) -> dict[str, Any]:
        """Counts, density, interactions of users and of items, and the most popular items."""
        from luthier_recommendation import data

        return data.describe(parts)

    def trainer(self) -> Trainer:
        """Imports implicit and scipy."""
        from luthier_recommendation import training

        return cast(Trainer, training)

    def open(self, directory: Path) -> Codec:
        """Opens a bundle."""
        from luthier_recommendation.codec import RecommendationCodec

        return RecommendationCodec(directory)

    def instances(self, examples: pa.Table) -> list[Message]:
        """One request for 10 items for each user, in the order of their first examples."""
        from luthier_recommendation import metrics

        users = examples["user"].unique().to_pylist()
        return [pb.Instance(user=user, k=metrics.CUTOFF, allow_unknown=True) for user in users]

    def compare(self, config: Any, source: Sequence[Message], served: Sequence[Message]) -> Mapping[str, float]:
        """With an approximate index, `index_recall_at_10`: the share of the model's best 10 that the bundle finds."""
        from luthier_recommendation import metrics

        if config.index != pb.INDEX_HNSW:
            return {}
        recall = metrics.recall_of_index(
            cast(Sequence[pb.Prediction], source), cast(Sequence[pb.Prediction], served), config.min_recall
        )
        return {"index_recall_at_10": recall}

    def features(self, instance: Any, prediction: Any) -> dict[str, float | str | Sequence[str]]:
        """Length of the history that the request gives and the share of it that is unknown; whether there was an
        answer; the best score, how far the scores fall off, and the items, which tell how popular they are.

        Similar items have no facts, and a request with a list of its own or for what was seen says nothing of items.
        """
        found: dict[str, float | str | Sequence[str]] = {}
        if isinstance(instance, pb.SimilarItemsInstance):
            return found
        if instance is not None:
            if instance.history:
                found["history"] = float(len(instance.history))
                found["unknown_history"] = len(prediction.unknown_items) / len(instance.history)
            if instance.allow or instance.deny or instance.include_seen:
                return found
        found["answered"] = "yes" if prediction.items else "no"
        if prediction.items:
            best = prediction.items[:FALLS_OFF]
            found["best_score"] = best[0].score
            if len(best) == FALLS_OFF:
                found["scores_fall"] = best[0].score - best[-1].score
            found["recommended"] = [scored.item for scored in best]
        return found

    def rows(self, examples: pa.Table) -> list[list[int]]:
        """All examples of a user, for each user in the order of `instances`."""
        rows: dict[str, list[int]] = {}
        for row, user in enumerate(examples["user"].to_pylist()):
            rows.setdefault(user, []).append(row)
        return list(rows.values())

    def score(self, examples: pa.Table, predictions: Sequence[Message]) -> Evaluation:
        """Ranking metrics at 10, see `metrics.score`."""
        from luthier_recommendation import metrics

        return metrics.score(examples, cast(Sequence[pb.Prediction], predictions))


@hookimpl
def luthier_tasks() -> Iterable[Task]:
    """Brings the task `recommendation`."""
    return [Recommendation()]
