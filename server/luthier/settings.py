"""What an operator can set: by flags, by environment (`LUTHIER_…`), or in `luthier.toml` of the home, in this order."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)


class Settings(BaseSettings):
    """Settings of a server process."""

    model_config = SettingsConfigDict(
        env_prefix="LUTHIER_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="luthier serve",
        extra="ignore",
    )

    home: Path = Field(Path(".luthier"), description="Folder of the database, the artefacts and luthier.toml.")
    listen: str = Field("127.0.0.1:50051", description="Address and port to listen on; port 0 takes a free one.")
    insecure: bool = Field(False, description="Allow an address other than loopback, open to whoever reaches it.")
    database_url: str = Field("", description="SQLAlchemy URL of the database. Empty: SQLite in the home.")
    artefacts: str = Field(
        "", description="Where several homes share artefacts, such as s3://bucket/luthier. Empty: each has its own."
    )
    processes: int = Field(
        1, ge=1, description="Server processes on the port, each with models of its own in memory; for many cores."
    )
    prediction_threads: int = Field(
        default_factory=lambda others: max(1, len(os.sched_getaffinity(0)) // others["processes"]),
        ge=1,
        description="Threads that predict, in each process. Default: as many as cores, shared by the processes.",
    )
    most_waiting: int = Field(64, ge=1, description="Most predictions that may wait for one model; others are refused.")
    control_threads: int = Field(8, ge=1, description="Threads for calls that use the database.")
    stream_threads: int = Field(256, ge=1, description="Most streams (watches, uploads, downloads) open at once.")
    max_request_bytes: int = Field(16 * 2**20, ge=2**20, description="Largest message taken in.")
    trainings: int = Field(1, ge=0, description="Fine-tunes run at once by this process; 0: none.")
    jobs: int = Field(1, ge=0, description="Other operations run at once by this process; 0: none.")
    train_device: str = Field("cpu", description="Where this process's trainings compute: cpu, cuda, or cuda:1.")
    serve_device: str = Field("cpu", description="Where predictions compute: cpu, cuda, or cuda:1.")
    serve_memory_mb: int = Field(
        0, ge=0, description="Most MB that the serving process is to hold, models and all else; 0: no limit."
    )
    lease_s: float = Field(
        15.0, gt=0, description="Seconds after which a silent worker's operation is given to another."
    )
    checkpoint_s: float = Field(
        60.0, ge=0, description="Least seconds between two saves of where a training stands, to go on from there."
    )
    poll_s: float = Field(0.1, gt=0, le=0.25, description="Seconds between looks at what other processes changed.")
    upload_idle_s: float = Field(60.0, gt=0, description="Seconds after which an upload that brings nothing is ended.")
    keep_operations_days: float = Field(
        90.0, ge=0, description="Days that operations are kept after their end, with their events; 0: for good."
    )
    metrics_listen: str = Field(
        "", description="Address and port of the metrics for Prometheus, such as 127.0.0.1:9464. Empty: none."
    )
    traces_endpoint: str = Field(
        "", description="URL of a collector of traces that speaks OTLP over gRPC. Empty: nothing is traced."
    )
    traces_ratio: float = Field(
        1.0, ge=0, le=1, description="Part of the calls traced, of those whose callers do not say themselves."
    )
    drain_s: float = Field(20.0, ge=0, description="Seconds that calls in flight get to finish at SIGTERM.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before environment before the file."""
        home = init_settings().get("home") or os.environ.get("LUTHIER_HOME") or ".luthier"
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, Path(home) / "luthier.toml")

    @model_validator(mode="after")
    def _closed_by_default(self) -> Self:
        for listen in (self.listen, self.metrics_listen):
            host = listen.rpartition(":")[0].strip("[]")
            if self.insecure or not listen or _is_loopback(host):
                continue
            raise ValueError(
                f"{listen} can be reached from other machines and this server asks nobody who they are; "
                "listen on 127.0.0.1, or add --insecure where a network of your own protects it"
            )
        return self

    @field_validator("metrics_listen")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if address and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\[\]]+):\d{1,5}", address):
            raise ValueError(f"{address} is no address with a port, such as 127.0.0.1:9464")
        return address

    @field_validator("traces_endpoint")
    @classmethod
    def _is_of_a_collector(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^/]+/?", url):
            raise ValueError(f"{url} is no URL of a collector, such as http://127.0.0.1:4317")
        return url

    @field_validator("artefacts")
    @classmethod
    def _is_of_s3(cls, url: str) -> str:
        if url and not re.fullmatch(r"s3://[^/]+(/[^/]+)*/?", url):
            raise ValueError(f"{url} is no URL of a bucket or a folder in one, such as s3://bucket/luthier")
        return url

    @field_validator("train_device", "serve_device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise ValueError(f"{device} is none of cpu, cuda, and cuda with a number, such as cuda:1")
        return device

    @property
    def database(self) -> str:
        """URL of the database."""
        return self.database_url or f"sqlite:///{self.home.absolute() / 'luthier.db'}"


class WorkerSettings(Settings):
    """The same of a process that only does operations."""

    model_config = SettingsConfigDict(cli_prog_name="luthier worker")


class BackupSettings(Settings):
    """What to write a home into."""

    model_config = SettingsConfigDict(cli_prog_name="luthier backup")

    file: CliPositionalArg[Path] = Field(description="File to write.")


class RestoreSettings(Settings):
    """What to make a home of."""

    model_config = SettingsConfigDict(cli_prog_name="luthier restore")

    file: CliPositionalArg[Path] = Field(description="File that `luthier backup` wrote.")


OF_PROGRAMS: dict[str, type[Settings]] = {
    "serve": Settings,
    "worker": WorkerSettings,
    "backup": BackupSettings,
    "restore": RestoreSettings,
}


def from_flags(program: str, arguments: list[str]) -> Settings:
    """Settings of a program from command-line flags, then environment, then file."""
    # The home is needed before the rest, to find the file in it.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--home")
    home = parser.parse_known_args(arguments)[0].home
    given: dict[str, Any] = {"home": home} if home else {}
    return CliApp.run(OF_PROGRAMS[program], cli_args=arguments, **given)


_HANDED = "LUTHIER_HANDED_SETTINGS"


def handed(settings: Settings) -> dict[str, str]:
    """The environment for a process that is to have the same settings. All of a machine see what arguments say."""
    return {**os.environ, _HANDED: settings.model_dump_json()}


def taken() -> Settings:
    """The settings that this process was handed. Those that it starts in turn do not find them."""
    return Settings.model_validate_json(os.environ.pop(_HANDED))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
