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
    http_listen: str = Field(
        "",
        description="Address and port for HTTP, such as 127.0.0.1:8080; port 0 takes a free one. Empty: none.",
    )
    http_origins: list[str] = Field(
        [], description="Origins of the pages that may call over HTTP, such as https://shop.example; `*`: all."
    )
    insecure: bool = Field(False, description="Allow an address other than loopback, open to whoever reaches it.")
    tls_certificate: Path | None = Field(
        None, description="PEM file of the certificate to show, with those of the authorities between. None: no TLS."
    )
    tls_key: Path | None = Field(None, description="PEM file of the certificate's key, without a passphrase.")
    tls_client_ca: Path | None = Field(
        None, description="PEM file of the authorities that sign for clients, each of whom then needs a certificate."
    )
    tokens: bool = Field(False, description="Ask callers for tokens, and hold each to its role, scope and quotas.")
    policy: Path | None = Field(
        None, description="TOML file of what principals may do at most, and use. None: no bounds."
    )
    jwt_keys: str = Field(
        "",
        description="JSON Web Key Set that tokens are verified by: a file, or an https URL. Empty: static tokens only.",
    )
    jwt_audience: str = Field("", description="Audience that JSON Web Tokens must be for; needed with keys.")
    jwt_issuer: str = Field("", description="Issuer that JSON Web Tokens must be from. Empty: whoever holds a key.")
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
    keep_audit_days: float = Field(365.0, ge=0, description="Days that it is kept who changed what; 0: for good.")
    keep_predictions_days: float = Field(
        30.0, ge=0, description="Days that recorded predictions are kept, with their feedback; 0: for good."
    )
    most_predictions: int = Field(
        1_000_000, ge=0, description="Most recorded predictions that are kept, the newest; 0: no limit."
    )
    drift_interval_s: float = Field(
        900.0, ge=0, description="Seconds between looks at live predictions for drift; 0: nobody looks by itself."
    )
    drift_window_s: float = Field(
        24 * 3600.0, gt=0, description="Seconds of live predictions that each such look compares with the test part."
    )
    metrics_listen: str = Field(
        "", description="Address and port of the metrics for Prometheus, such as 127.0.0.1:9464. Empty: none."
    )
    health_listen: str = Field(
        "", description="Address and port that say without TLS whether this server serves, and no more. Empty: none."
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
    def _is_all_that_tls_takes(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("--tls-certificate and --tls-key go together: the one is no use without the other")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError(
                "--tls-client-ca asks clients for certificates, which takes --tls-certificate and --tls-key"
            )
        return self

    @model_validator(mode="after")
    def _closed_by_default(self) -> Self:
        if self.insecure:
            return self
        for flag, listen in (("--listen", self.listen), ("--http-listen", self.http_listen)):
            if not listen or is_loopback(listen) or (self.tls_certificate and self.tokens):
                continue
            lacks = [
                *([] if self.tls_certificate else ["encrypts nothing (--tls-certificate, --tls-key)"]),
                *([] if self.tokens else ["asks nobody who they are (--tokens)"]),
            ]
            raise ValueError(
                f"{listen} can be reached from other machines and this server {' and '.join(lacks)}. Go on with\n"
                f"  luthier serve {flag} {listen} --tls-certificate server.pem --tls-key server.key --tokens\n"
                "or listen on 127.0.0.1, or add --insecure where a network of your own protects it"
            )
        if self.metrics_listen and not is_loopback(self.metrics_listen) and not self.tls_client_ca:
            raise ValueError(
                f"{self.metrics_listen} can be reached from other machines and the metrics' port takes no tokens. "
                "Go on with --tls-client-ca, so that a scraper needs a certificate,\n"
                "or listen on 127.0.0.1, or add --insecure where a network of your own protects it"
            )
        return self

    @model_validator(mode="after")
    def _asks_for_what_it_knows(self) -> Self:
        unused = [name for name in ("policy", "jwt_keys") if getattr(self, name) and not self.tokens]
        if unused:
            raise ValueError(f"{_flags(unused)} would not be heeded; add --tokens")
        if self.jwt_keys and not self.jwt_audience:
            raise ValueError("--jwt-keys needs --jwt-audience: a token that is for another service must not be taken")
        unused = [name for name in ("jwt_audience", "jwt_issuer") if getattr(self, name) and not self.jwt_keys]
        if unused:
            raise ValueError(f"{_flags(unused)} would not be heeded; add --jwt-keys")
        return self

    @field_validator("jwt_keys")
    @classmethod
    def _is_a_set_of_keys(cls, source: str) -> str:
        if "://" in source and not re.fullmatch(r"https://[^/@]+/.*", source):
            raise ValueError(f"{source} is neither a file nor an https URL such as https://id.example.com/keys")
        return source

    @field_validator("listen")
    @classmethod
    def _is_no_file(cls, address: str) -> str:
        # Whoever calls by a socket that is a file is taken for the HTTP front.
        if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\[\]]*):\d{1,5}", address):
            raise ValueError(f"{address} is no address with a port, such as 127.0.0.1:50051")
        return address

    @field_validator("http_listen", "metrics_listen", "health_listen")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if address and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\[\]]+):\d{1,5}", address):
            raise ValueError(f"{address} is no address with a port, such as 127.0.0.1:9464")
        return address

    @field_validator("http_origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
                raise ValueError(f"{origin} is no origin, such as https://shop.example, without a path")
        return origins

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


def _flags(names: list[str]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


def is_loopback(listen: str) -> bool:
    """Whether an address with a port is of this machine alone."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
