"""The documents say what is there: commands, options, settings, hooks, links, and code that runs."""

from __future__ import annotations

import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup

from luthier import errors, hookspecs
from luthier.settings import OF_PROGRAMS, Settings
from luthier.task import Task
from luthier_client.cli.app import app
from luthier_demo import bookshop
from support import ROOT, Server

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`(luthier [^`]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PROGRAMS = {"cd", "curl", "docker", "export", "grpcurl", "helm", "kubectl", "luthier", "make", "pip", "printf"}

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(path):
        if "://" not in link:
            assert (path.parent / link.partition("#")[0]).exists(), f"{link} of {path.name} leads nowhere"


@every_document
def test_shell_blocks_parse(path: Path) -> None:
    for words in shell_lines(path):
        assert words[0] in PROGRAMS, f"{' '.join(words)!r} is no command that a reader has"


@every_document
def test_commands_are_those_of_the_program(path: Path) -> None:
    for words in luthier_commands(path):
        check_command(words)


@every_document
def test_code_blocks_parse(path: Path) -> None:
    for block in blocks(path):
        if block.language == "python":
            compile(block.text, path.name, "exec")
        elif block.language == "toml":
            tomllib.loads(block.text)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {words[1] for words in shell_lines(ROOT / "README.md") if words[0] == "make"}
    assert targets == {"demo", "test"}
    assert all(f"\n{target}:" in makefile for target in targets)


def test_every_setting_is_documented() -> None:
    rows = table_rows(ROOT / "docs" / "operations.md")
    documented = {row[0].strip("`"): row for row in rows if row[0].startswith("`--")}
    flags = {f"--{name.replace('_', '-')}": field for name, field in Settings.model_fields.items()}
    assert documented.keys() == flags.keys()
    for flag, field in flags.items():
        default = documented[flag][2]
        if isinstance(field.default, bool):
            assert default == f"`{str(field.default).lower()}`", flag
        elif isinstance(field.default, int | float):
            assert float(default) == field.default, flag


def test_every_hook_is_documented() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "luthier_spec")]
    assert hooks
    for hook in hooks:
        assert f"### `{hook}(" in text, hook


def test_the_contract_of_a_task_is_documented() -> None:
    rows = table_rows(ROOT / "docs" / "plugins.md")
    documented = {name.strip("` ").partition("(")[0] for row in rows for name in row[0].split(",")}
    methods = {name for name, value in vars(Task).items() if inspect.isfunction(value) and not name.startswith("_")}
    attributes = {name for name in Task.__annotations__ if not name.startswith("_")}
    assert methods | attributes <= documented


def test_every_kind_of_error_is_documented() -> None:
    rows = table_rows(ROOT / "docs" / "api.md")
    documented = {row[1].strip("`") for row in rows if len(row) == 4}
    reasons = {value.reason for value in vars(errors).values() if inspect.isclass(value) and hasattr(value, "reason")}
    assert reasons <= documented


def test_the_python_block_of_the_readme_runs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [block] = [block for block in blocks(ROOT / "README.md") if block.language == "python"]
    bookshop.write(tmp_path, num_readers=200)
    monkeypatch.chdir(tmp_path)
    code = block.text.replace("127.0.0.1:50051", server.address).replace('"books"', '"readme-books"')
    exec(compile(code, "README.md", "exec"), {})
    name, *recommended = capsys.readouterr().out.splitlines()
    assert name.startswith("models/readme-books/versions/")
    assert len(recommended) == 3


def check_command(words: list[str]) -> None:
    """Fails unless the words are a command of the program, or the beginning of one, with options that it has."""
    if words[0] in OF_PROGRAMS:
        flags = {f"--{name.replace('_', '-')}" for name in OF_PROGRAMS[words[0]].model_fields}
        unknown = [word for word in words[1:] if word.startswith("--") and word not in flags | {"--help"}]
        assert not unknown, f"luthier {' '.join(words)}"
        return
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while rest and isinstance(command, TyperGroup):
        if rest[0].startswith("-"):
            break
        assert rest[0] in command.commands, f"luthier {' '.join(words)}: there is no {rest[0]}"
        command = command.commands[rest.pop(0)]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        name = word.partition("=")[0]
        assert not name.startswith("--") or name in options | {"--help"}, f"luthier {' '.join(words)}: {name}"
    required = [p for p in command.params if p.required and p.param_type_name == "option"]
    if len(rest) > 1:
        missing = [option.opts[0] for option in required if not set(option.opts) & set(rest)]
        assert not missing, f"luthier {' '.join(words)}: without {missing}"


def table_rows(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    return [Block(language, text) for language, text in _FENCE.findall(path.read_text(encoding="utf-8"))]


def links(path: Path) -> list[str]:
    return _LINK.findall(_FENCE.sub("", path.read_text(encoding="utf-8")))


def shell_lines(path: Path) -> Iterator[list[str]]:
    """The commands of the blocks without a language that are no transcripts, as words."""
    for block in blocks(path):
        if not block.language and not is_drawing(block.text):
            for line in block.text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


def luthier_commands(path: Path) -> Iterator[list[str]]:
    """Every command line that begins with `luthier`, in blocks and in running text, without that word."""
    for words in shell_lines(path):
        if words[0] == "luthier":
            yield words[1:]
    prose = _FENCE.sub("", path.read_text(encoding="utf-8"))
    for code in _CODE.findall(prose):
        yield shlex.split(code)[1:]


def is_drawing(text: str) -> bool:
    """Whether a block shows folders or messages and not commands."""
    return "├──" in text or text.startswith("luthier.")
