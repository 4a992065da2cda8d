"""Data sets, models, versions, aliases and evaluations in the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from luthier import database as db
from luthier import names, rollouts
from luthier.access import quotas
from luthier.access.principal import actor
from luthier.database import Database, bump, insert_or_skip, now
from luthier.errors import FailedPrecondition, NotFound
from luthier.names import Versioned
from luthier.operations import timestamp
from luthier.v1 import dataset_pb2, evaluation_pb2, model_pb2

_MODELS_REVISION = sa.select(db.revisions.c.value).where(db.revisions.c.name == "models")


@dataclass(frozen=True)
class Leftovers:
    """What a deletion left on disk for nobody."""

    digests: list[str]
    """Of bundles."""
    evaluations: list[str]
    """Ids, of reports."""


class Registry:
    """Reads and writes of resources. Methods with a `connection` belong to a larger transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def artefacts(self) -> dict[str, set[str]]:
        """By folder of a home, the names of the files and folders that rows name at present."""
        with self._database.read() as connection:
            return artefacts(connection)

    # Uploads.

    def add_upload(self, id: str, upload: dataset_pb2.Upload) -> None:
        """Records a file that is on disk; raises QuotaExceeded."""
        values = {"filename": upload.filename, "size_bytes": upload.size_bytes, "sha256": upload.sha256}
        with self._database.write() as connection:
            quotas.check_storage(connection, upload.size_bytes)
            connection.execute(db.uploads.insert().values(id=id, create_time=now(), principal=actor(), **values))

    def check_room(self, size_bytes: int) -> None:
        """Raises QuotaExceeded where whoever calls may not keep so much more."""
        with self._database.read() as connection:
            quotas.check_storage(connection, size_bytes)

    def upload(self, id: str) -> dataset_pb2.Upload:
        """Returns an upload or raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(db.uploads).where(db.uploads.c.id == id)).first()
        if row is None:
            raise NotFound(f"uploads/{id}")
        return dataset_pb2.Upload(
            name=f"uploads/{id}", filename=row.filename, size_bytes=row.size_bytes, sha256=row.sha256
        )

    def forget_uploads(self, before: float) -> None:
        """Forgets uploads that came before a time."""
        with self._database.write() as connection:
            connection.execute(db.uploads.delete().where(db.uploads.c.create_time < before))

    # Data sets.

    def dataset(self, id: str) -> dataset_pb2.Dataset:
        """Returns a data set with its newest version, or raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(db.datasets).where(db.datasets.c.id == id)).first()
            if row is None:
                raise NotFound(f"datasets/{id}")
            return self._dataset(connection, row)

    def datasets(self, task: str, after: str, limit: int) -> list[dataset_pb2.Dataset]:
        """Data sets in order of their ids, behind `after`."""
        query = sa.select(db.datasets).where(db.datasets.c.id > after).order_by(db.datasets.c.id).limit(limit)
        if task:
            query = query.where(db.datasets.c.task == task)
        with self._database.read() as connection:
            return [self._dataset(connection, row) for row in connection.execute(query).all()]

    def dataset_version(self, wanted: Versioned) -> dataset_pb2.DatasetVersion:
        """Returns a version, the newest where the number is 0, or raises NotFound."""
        found = self.dataset_versions(wanted.id, None, 1) if not wanted.number else []
        if wanted.number:
            query = sa.select(db.dataset_versions.c.record).where(
                db.dataset_versions.c.dataset == wanted.id, db.dataset_versions.c.number == wanted.number
            )
            with self._database.read() as connection:
                found = [dataset_pb2.DatasetVersion.FromString(r) for r in connection.execute(query).scalars()]
        if not found:
            name = names.dataset_version(wanted.id, wanted.number) if wanted.number else f"datasets/{wanted.id}"
            raise NotFound(name)
        return found[0]

    def dataset_versions(self, id: str, before: int | None, limit: int) -> list[dataset_pb2.DatasetVersion]:
        """Versions, newest first, from below a number on."""
        table = db.dataset_versions
        query = sa.select(table.c.record).where(table.c.dataset == id).order_by(table.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(table.c.number < before)
        with self._database.read() as connection:
            return [dataset_pb2.DatasetVersion.FromString(r) for r in connection.execute(query).scalars()]

    def add_dataset_version(
        self, connection: sa.Connection, id: str, version: dataset_pb2.DatasetVersion, operation: str = ""
    ) -> dataset_pb2.DatasetVersion:
        """Gives a version its name and records it; returns the one with the same content where there is one.

        It is held by whoever asked for the operation that made it.
        """
        row = _parent(connection, db.datasets, id, version.task)
        table = db.dataset_versions
        same = sa.select(table.c.record).where(table.c.dataset == id, table.c.digest == version.digest)
        if (record := connection.execute(same).scalar()) is not None:
            return dataset_pb2.DatasetVersion.FromString(record)
        number = row.last_number + 1
        version.name = names.dataset_version(id, number)
        version.create_time.CopyFrom(timestamp(now()))
        connection.execute(db.datasets.update().where(db.datasets.c.id == id).values(last_number=number))
        record = version.SerializeToString()
        owner = connection.execute(sa.select(db.operations.c.principal).where(db.operations.c.id == operation)).scalar()
        held = {"principal": owner or "", "size_bytes": version.size_bytes}
        values = {"dataset": id, "number": number, "digest": version.digest, "record": record, **held}
        connection.execute(table.insert().values(values))
        return version

    def delete_dataset(self, id: str) -> list[str]:
        """Deletes a data set; returns the digests that no data set holds any more. Raises NotFound."""
        with self._database.write() as connection:
            table = db.dataset_versions
            digests = connection.execute(sa.select(table.c.digest).where(table.c.dataset == id)).scalars().all()
            if not connection.execute(db.datasets.delete().where(db.datasets.c.id == id)).rowcount:
                raise NotFound(f"datasets/{id}")
            return _unreferenced(connection, table, digests)

    # Models.

    def model(self, id: str) -> model_pb2.Model:
        """Returns a model with aliases and newest version, or raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(db.models).where(db.models.c.id == id)).first()
            if row is None:
                raise NotFound(f"models/{id}")
            return self._model(connection, row)

    def models(self, task: str, after: str, limit: int) -> list[model_pb2.Model]:
        """Models in order of their ids, behind `after`."""
        query = sa.select(db.models).where(db.models.c.id > after).order_by(db.models.c.id).limit(limit)
        if task:
            query = query.where(db.models.c.task == task)
        with self._database.read() as connection:
            return [self._model(connection, row) for row in connection.execute(query).all()]

    def model_version(self, model: str, number: int) -> model_pb2.ModelVersion:
        """Returns a version or raises NotFound."""
        table = db.model_versions
        query = sa.select(table.c.record).where(table.c.model == model, table.c.number == number)
        with self._database.read() as connection:
            record = connection.execute(query).scalar()
        if record is None:
            raise NotFound(names.model_version(model, number))
        return model_pb2.ModelVersion.FromString(record)

    def model_versions(self, model: str, before: int | None, limit: int) -> list[model_pb2.ModelVersion]:
        """Versions, newest first, from below a number on."""
        table = db.model_versions
        query = sa.select(table.c.record).where(table.c.model == model).order_by(table.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(table.c.number < before)
        with self._database.read() as connection:
            return [model_pb2.ModelVersion.FromString(r) for r in connection.execute(query).scalars()]

    def operation_of(self, model: str, number: int) -> str:
        """The id of the operation that published a version; raises NotFound where there is no such version."""
        table = db.model_versions
        query = sa.select(table.c.operation).where(table.c.model == model, table.c.number == number)
        with self._database.read() as connection:
            operation: str | None = connection.execute(query).scalar()
        if operation is None:
            raise NotFound(names.model_version(model, number))
        return operation

    def models_revision(self) -> int:
        """A number that grows with every change to a model, version or alias."""
        with self._database.read() as connection:
            revision: int = connection.execute(_MODELS_REVISION).scalar_one()
        return revision

    def served(self) -> tuple[int, dict[tuple[str, str], int], dict[tuple[str, int], model_pb2.ModelVersion]]:
        """The revision, the number that each (model, alias) points at, and every version, all of one moment."""
        with self._database.read() as connection:
            # Read first: what follows is at least as new.
            revision = connection.execute(_MODELS_REVISION).scalar_one()
            aliases: dict[tuple[str, str], int] = {
                (row.model, row.alias): row.number for row in connection.execute(sa.select(db.aliases))
            }
            versions: dict[tuple[str, int], model_pb2.ModelVersion] = {
                (row.model, row.number): model_pb2.ModelVersion.FromString(row.record)
                for row in connection.execute(sa.select(db.model_versions))
            }
        return revision, aliases, versions

    def resolve(self, name: str, field: str) -> tuple[str, int]:
        """Model and number that a resource name of a model, version or alias stands for."""
        if "/aliases/" in name:
            model, alias = names.parse("models/{model}/aliases/{alias}", name, field)
            number = 0
        else:
            model, number = names.parse_versioned("models", name, field)
            alias = names.PRODUCTION
        if not number:
            query = sa.select(db.aliases.c.number).where(db.aliases.c.model == model, db.aliases.c.alias == alias)
            with self._database.read() as connection:
                number = connection.execute(query).scalar() or 0
            if not number:
                self.model(model)
                raise NotFound(f"models/{model}/aliases/{alias}")
        self.model_version(model, number)
        return model, number

    def add_model_version(
        self, connection: sa.Connection, id: str, version: model_pb2.ModelVersion, operation: str
    ) -> model_pb2.ModelVersion:
        """Gives a version its name and records it. The first that a model has takes the alias `production`."""
        row = _parent(connection, db.models, id, version.task)
        number = row.last_number + 1
        version.name = names.model_version(id, number)
        version.create_time.CopyFrom(timestamp(now()))
        connection.execute(db.models.update().where(db.models.c.id == id).values(last_number=number))
        connection.execute(
            db.model_versions.insert().values(
                model=id,
                number=number,
                digest=version.digest,
                operation=operation,
                record=version.SerializeToString(),
            )
        )
        if row.last_number == 0:
            connection.execute(db.aliases.insert().values(model=id, alias=names.PRODUCTION, number=number))
        bump(connection, "models")
        return version

    def set_alias(
        self, model: str, alias: str, number: int, recording: model_pb2.Recording | None = None
    ) -> model_pb2.Alias:
        """Points an alias at a version, which ends its rollout where it moves; raises NotFound where there is none.

        `recording` is what to keep of its predictions from now on; None: as before.
        """
        where = (db.aliases.c.model == model, db.aliases.c.alias == alias)
        record = recording.SerializeToString() if recording is not None else None
        with self._database.write() as connection:
            _locked_version(connection, model, number, shared=True)
            moved = f"the alias was pointed at {names.model_version(model, number)} by hand"
            rollouts.end_with_alias(connection, model, alias, moved, number)
            row = {"model": model, "alias": alias, "number": number, "recording": record}
            if not insert_or_skip(connection, db.aliases, row):
                changed = {"number": number} if recording is None else {"number": number, "recording": record}
                connection.execute(db.aliases.update().where(*where).values(**changed))
            bump(connection, "models")
            return _alias(connection.execute(sa.select(db.aliases).where(*where)).one())

    def delete_alias(self, model: str, alias: str) -> None:
        """Removes an alias, which ends its rollout, or raises NotFound."""
        with self._database.write() as connection:
            rollouts.end_with_alias(connection, model, alias, "the alias was removed")
            where = (db.aliases.c.model == model, db.aliases.c.alias == alias)
            if not connection.execute(db.aliases.delete().where(*where)).rowcount:
                raise NotFound(f"models/{model}/aliases/{alias}")
            bump(connection, "models")

    def delete_model(self, id: str) -> Leftovers:
        """Deletes a model with its evaluations; returns what no other holds any more. Raises NotFound."""
        with self._database.write() as connection:
            table = db.model_versions
            digests = connection.execute(sa.select(table.c.digest).where(table.c.model == id)).scalars().all()
            evaluations = _evaluations(connection, db.evaluations.c.model == id)
            recorded = db.predictions.c.version.startswith(f"models/{id}/versions/", autoescape=True)
            connection.execute(db.predictions.delete().where(recorded))
            if not connection.execute(db.models.delete().where(db.models.c.id == id)).rowcount:
                raise NotFound(f"models/{id}")
            bump(connection, "models")
            return Leftovers(_unreferenced(connection, table, digests), evaluations)

    def delete_model_version(self, model: str, number: int) -> Leftovers:
        """Deletes a version as `delete_model` a model; FailedPrecondition where an alias or a rollout needs it."""
        with self._database.write() as connection:
            digest = _locked_version(connection, model, number, shared=False)
            query = sa.select(db.aliases.c.alias).where(db.aliases.c.model == model, db.aliases.c.number == number)
            if held := connection.execute(query).scalars().all():
                raise FailedPrecondition(f"the alias {', '.join(sorted(held))} points at it; move the alias first")
            if rollouts.in_use(connection, model, number):
                raise FailedPrecondition("a rollout under way needs it; stop the rollout first")
            table, of = db.model_versions, db.evaluations
            evaluations = _evaluations(connection, (of.c.model == model) & (of.c.model_number == number))
            connection.execute(table.delete().where(table.c.model == model, table.c.number == number))
            recorded = db.predictions.c.version == names.model_version(model, number)
            connection.execute(db.predictions.delete().where(recorded))
            bump(connection, "models")
            return Leftovers(_unreferenced(connection, table, [digest]), evaluations)

    # Evaluations.

    def add_evaluation(
        self, connection: sa.Connection, id: str, evaluation: evaluation_pb2.Evaluation
    ) -> evaluation_pb2.Evaluation:
        """Names and records an evaluation; raises NotFound where its version was deleted meanwhile."""
        evaluation.name = f"evaluations/{id}"
        time = now()
        evaluation.create_time.CopyFrom(timestamp(time))
        model, number = names.parse("models/{model}/versions/{number}", evaluation.model_version)
        dataset, dataset_number = names.parse("datasets/{dataset}/versions/{number}", evaluation.dataset_version)
        _locked_version(connection, model, int(number), shared=True)
        connection.execute(
            db.evaluations.insert().values(
                id=id,
                model=model,
                model_number=int(number),
                dataset=dataset,
                dataset_number=int(dataset_number),
                create_time=time,
                record=evaluation.SerializeToString(),
            )
        )
        return evaluation

    def evaluation(self, id: str) -> evaluation_pb2.Evaluation:
        """Returns an evaluation or raises NotFound."""
        with self._database.read() as connection:
            record = connection.execute(sa.select(db.evaluations.c.record).where(db.evaluations.c.id == id)).scalar()
        if record is None:
            raise NotFound(f"evaluations/{id}")
        return evaluation_pb2.Evaluation.FromString(record)

    def evaluations(
        self, model: Versioned | None, dataset: Versioned | None, after: tuple[float, str] | None, limit: int
    ) -> list[tuple[float, str, evaluation_pb2.Evaluation]]:
        """Evaluations with their times and ids, newest first, behind the given time and id."""
        table = db.evaluations
        query = sa.select(table).order_by(table.c.create_time.desc(), table.c.id).limit(limit)
        if model:
            query = query.where(table.c.model == model.id)
            query = query.where(table.c.model_number == model.number) if model.number else query
        if dataset:
            query = query.where(table.c.dataset == dataset.id)
            query = query.where(table.c.dataset_number == dataset.number) if dataset.number else query
        if after:
            time, id = after
            query = query.where((table.c.create_time < time) | ((table.c.create_time == time) & (table.c.id > id)))
        with self._database.read() as connection:
            return [
                (row.create_time, row.id, evaluation_pb2.Evaluation.FromString(row.record))
                for row in connection.execute(query)
            ]

    def _dataset(self, connection: sa.Connection, row: sa.Row[Any]) -> dataset_pb2.Dataset:
        table = db.dataset_versions
        newest = sa.select(table.c.record).where(table.c.dataset == row.id).order_by(table.c.number.desc()).limit(1)
        record = connection.execute(newest).scalar()
        return dataset_pb2.Dataset(
            name=f"datasets/{row.id}",
            task=row.task,
            create_time=timestamp(row.create_time),
            latest_version=dataset_pb2.DatasetVersion.FromString(record) if record is not None else None,
        )

    def _model(self, connection: sa.Connection, row: sa.Row[Any]) -> model_pb2.Model:
        table = db.model_versions
        newest = sa.select(table.c.record).where(table.c.model == row.id).order_by(table.c.number.desc()).limit(1)
        record = connection.execute(newest).scalar()
        aliases = sa.select(db.aliases).where(db.aliases.c.model == row.id).order_by(db.aliases.c.alias)
        return model_pb2.Model(
            name=f"models/{row.id}",
            task=row.task,
            create_time=timestamp(row.create_time),
            aliases=[_alias(alias) for alias in connection.execute(aliases)],
            latest_version=model_pb2.ModelVersion.FromString(record) if record is not None else None,
        )


def artefacts(connection: sa.Connection) -> dict[str, set[str]]:
    """By folder of a home, the names of the files and folders that rows name; not all reports and predictions exist."""
    columns = {
        "bundles": (db.model_versions.c.digest, ""),
        "datasets": (db.dataset_versions.c.digest, ""),
        "reports": (db.evaluations.c.id, ".html"),
        "predictions": (db.operations.c.id, ".jsonl"),
        "uploads": (db.uploads.c.id, ""),
    }
    return {
        folder: {f"{id}{ending}" for id in connection.execute(sa.select(column).distinct()).scalars()}
        for folder, (column, ending) in columns.items()
    }


def _alias(row: sa.Row[Any]) -> model_pb2.Alias:
    return model_pb2.Alias(
        name=f"models/{row.model}/aliases/{row.alias}",
        model_version=names.model_version(row.model, row.number),
        recording=model_pb2.Recording.FromString(row.recording) if row.recording else None,
    )


def _parent(connection: sa.Connection, table: sa.Table, id: str, task: str) -> sa.Row[Any]:
    """Locks the row of a data set or model, made where there is none; raises FailedPrecondition for another task."""
    query = sa.select(table).where(table.c.id == id).with_for_update()
    row = connection.execute(query).first()
    if row is None:
        # Another transaction may be about to make it too: the first that it has is of both.
        insert_or_skip(connection, table, {"id": id, "task": task, "last_number": 0, "create_time": now()})
        row = connection.execute(query).one()
    if row.task != task:
        raise FailedPrecondition(f"{table.name}/{id} belongs to the task {row.task}, not to {task}")
    return row


def _locked_version(connection: sa.Connection, model: str, number: int, *, shared: bool) -> str:
    """Keeps others from deleting a version, and where it is not `shared` from naming it too; returns its digest.

    Raises NotFound.
    """
    table = db.model_versions
    query = sa.select(table.c.digest).where(table.c.model == model, table.c.number == number)
    digest: str | None = connection.execute(query.with_for_update(read=shared)).scalar()
    if digest is None:
        raise NotFound(names.model_version(model, number))
    return digest


def _evaluations(connection: sa.Connection, where: sa.ColumnElement[bool]) -> list[str]:
    return list(connection.execute(sa.select(db.evaluations.c.id).where(where)).scalars())


def _unreferenced(connection: sa.Connection, table: sa.Table, digests: Sequence[str]) -> list[str]:
    held = connection.execute(sa.select(table.c.digest).where(table.c.digest.in_(digests))).scalars().all()
    return sorted(set(digests) - set(held))
