"""The command line as people and scripts use it, against a real server."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from luthier import images
from luthier_client.cli.app import app
from support import Server, interactions

ENDLESS = (
    *("--set", "algorithm=bpr", "--set", "factors=512"),
    *("--set", "regularization=0.01", "--set", "iterations=10000"),
)
EASE = ("--set", "algorithm=ease", "--set", "regularization=10")

COMMANDS = (
    *("serve", "demo", "tasks", "bases", "datasets", "tune"),
    *("operations", "evaluate", "models", "predict", "plugins"),
)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def luthier(server: Server) -> Callable[..., Result]:
    """Runs `luthier` in this process, which saves a second, with the server as its address."""

    def run(*arguments: str, address: str = server.address) -> Result:
        result = CliRunner().invoke(app, arguments, env={"LUTHIER_ADDRESS": address, "COLUMNS": "160"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture(scope="module")
def as_json(luthier: Callable[..., Result]) -> Callable[..., Any]:
    """Runs `luthier --json`, which must succeed and print one document and nothing else."""

    def run(*arguments: str) -> Any:
        result = luthier(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with interactions and titles."""
    folder = tmp_path_factory.mktemp("cli")
    interactions(folder / "taken.csv")
    titles = [f"i{item},Volume {item}" for item in range(50)]
    (folder / "titles.csv").write_text("\n".join(["item,title", *titles]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tuned(as_json: Callable[..., Any], data: Path) -> Iterator[dict[str, Any]]:
    """What `tune --json` printed of the model cli-books."""
    version = as_json(
        *("datasets", "create", "cli-books", str(data / "taken.csv"), "--task", "recommendation"),
        *("--split", "per-user:0.25", "--seed", "42", "--titles", str(data / "titles.csv")),
    )
    assert version["name"] == "datasets/cli-books/versions/1"
    assert version["num_examples"]["test"] == 80 * 3
    assert version["split"] == {"method": "per-user", "fractions": [0.25], "seed": 42}
    yield as_json("tune", "cli-books", "--task", "recommendation", "--dataset", "cli-books", *EASE)
    as_json("models", "delete", "cli-books")
    as_json("datasets", "delete", "cli-books")


def test_tune_prints_the_version_and_its_metrics(tuned: dict[str, Any]) -> None:
    assert tuned["model"] == "models/cli-books"
    assert tuned["model_version"] == "models/cli-books/versions/1"
    assert tuned["metrics"]["ndcg_at_10"] > 0.4
    assert tuned["parity"]["metric"] == "ndcg_at_10"
    assert tuned["config"]["algorithm"] == "ALGORITHM_EASE"
    assert tuned["config"]["regularization"] == 10
    assert tuned["training"]


@pytest.mark.parametrize("model", ["cli-books", "cli-books@production", "cli-books/1"])
def test_evaluate_takes_each_form_of_a_name(as_json: Callable[..., Any], tuned: dict[str, Any], model: str) -> None:
    evaluation = as_json("evaluate", model, "--dataset", "cli-books")
    assert evaluation["metrics"] == tuned["metrics"]
    assert evaluation["per_class"] == []
    assert evaluation["model_version"] == tuned["model_version"]


def test_predict_by_a_bare_string_and_by_json(as_json: Callable[..., Any], tuned: dict[str, Any]) -> None:
    known, anyone = as_json("predict", "cli-books", "u1", '{"history": ["i0", "i3"], "k": 3}')
    assert len(known["items"]) == 10
    assert [item["title"] for item in anyone["items"]] == [f"Volume {item['item'][1:]}" for item in anyone["items"]]
    (similar,) = as_json("predict", "cli-books/1", "i4", "--method", "SimilarItems")
    assert "i4" not in {item["item"] for item in similar["items"]}


def test_people_get_tables(luthier: Callable[..., Result], tuned: dict[str, Any]) -> None:
    for arguments, pattern in {
        ("tasks", "list"): r"recommendation +Recommendation +Recommend, SimilarItems +ndcg_at_10",
        ("tasks", "show", "recommendation"): r"algorithm +auto, ease, als, bm25, bpr, popularity +auto",
        ("bases", "list"): r"minilm-l6",
        ("datasets", "list"): r"cli-books +recommendation +cli-books/1",
        ("datasets", "show", "cli-books"): r"split +per-user:0.25, seed 42",
        ("models", "list"): r"cli-books +recommendation +cli-books/1 +production → 1",
        ("models", "show", "cli-books"): r"ndcg_at_10 +0\.\d{4}[\s\S]+instances at once[\s\S]+ 32 ",
        ("models", "versions", "cli-books"): r"cli-books/1",
        ("datasets", "versions", "cli-books"): r"cli-books/1 .*per-user:0.25, seed 42",
        ("evaluations", "list", "--model", "cli-books"): r"cli-books/1 +cli-books/1 +test .*ndcg_at_10",
        ("operations", "list"): r"fine-tune +models/cli-books +succeeded",
        ("evaluate", "cli-books", "--dataset", "cli-books"): r"ndcg_at_10 +0\.\d{4}",
        ("predict", "cli-books", '{"user": "u1", "k": 1}'): r'\{"user": "u1", "k": 1\} +i\d+ +\d\.\d+ +Volume \d+',
        ("plugins",): r"luthier +\S+ +recommendation",
    }.items():
        result = luthier(*arguments)
        assert result.exit_code == 0, result.stderr
        assert re.search(pattern, result.stdout), (arguments, result.stdout)


def test_download_writes_the_bundle(as_json: Callable[..., Any], tuned: dict[str, Any], tmp_path: Path) -> None:
    downloaded = as_json("models", "download", "cli-books@production", "--output", str(tmp_path / "bundle"))
    assert downloaded["model_version"] == tuned["model_version"]
    assert "model.onnx" in downloaded["files"]
    assert all((tmp_path / "bundle" / path).is_file() for path in downloaded["files"])


def test_aliases(as_json: Callable[..., Any], luthier: Callable[..., Result], tuned: dict[str, Any]) -> None:
    changed = as_json("models", "alias", "set", "cli-books", "canary", "1")
    assert changed == {"name": "models/cli-books/aliases/canary", "model_version": "models/cli-books/versions/1"}
    assert as_json("models", "show", "cli-books@canary")["name"] == tuned["model_version"]
    as_json("models", "alias", "delete", "cli-books", "canary")
    gone = luthier("models", "show", "cli-books@canary")
    assert (gone.exit_code, gone.stdout) == (1, "")
    assert "models/cli-books/aliases/canary was not found" in gone.stderr


def test_what_an_evaluation_found_is_shown_again(
    as_json: Callable[..., Any], luthier: Callable[..., Result], tuned: dict[str, Any], tmp_path: Path
) -> None:
    evaluation = as_json("evaluate", "cli-books", "--dataset", "cli-books")
    shown = as_json("evaluations", "show", evaluation["name"], "--report", str(tmp_path / "report.html"))
    assert shown == evaluation
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert evaluation["name"] in {one["name"] for one in as_json("evaluations", "list", "--dataset", "cli-books")}
    operation = evaluation["name"].replace("evaluations", "operations")
    as_json("operations", "delete", operation)
    gone = luthier("operations", "show", operation)
    assert (gone.exit_code, gone.stdout) == (1, "")


def test_detach_watch_and_cancel(
    as_json: Callable[..., Any], luthier: Callable[..., Result], tuned: dict[str, Any]
) -> None:
    started = as_json("tune", "cli-endless", "--task", "recommendation", "--dataset", "cli-books", *ENDLESS, "--detach")
    operation = started["operation"]
    assert as_json("operations", "show", operation)["metadata"]["target"] == "models/cli-endless"
    as_json("operations", "cancel", operation)
    watched = luthier("operations", "watch", operation)
    assert watched.exit_code == 1
    assert operation in watched.stderr
    assert "cancelled" in watched.stderr


def test_ctrl_c_detaches(server: Server, luthier: Callable[..., Result], tuned: dict[str, Any]) -> None:
    arguments = ["tune", "cli-left", "--task", "recommendation", "--dataset", "cli-books", "--address", server.address]
    # A job that a shell put into the background ignores the signal, and so do its children unless told otherwise.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "luthier_client.main", *arguments, *ENDLESS]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    with process:
        # The first line says that the watch is on.
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = first + process.stderr.read()
    assert process.returncode == 130, said
    (hint,) = re.findall(r"luthier operations cancel (\S+)", said)
    assert luthier("operations", "cancel", hint).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tune", "x", "--task", "recommendation"), "--dataset"),
        (("tune", "x", "--task", "recommendation", "--dataset", "d", "--set", "epoch=3"), "no setting epoch"),
        (("tune", "x", "--task", "recommendation", "--dataset", "d", "--set", "factors"), "NAME=VALUE"),
        (("tune", "x", "--task", "recommendation", "--dataset", "d", "--set", "use_weights=3"), "true or false"),
        (("datasets", "create", "x", "/no/such/file.csv", "--task", "recommendation"), "does not exist"),
        (("datasets", "create", "x", "--task", "recommendation"), "at least one file"),
        (("datasets", "create", "x", __file__, "--task", "recommendation", "--split", "hash:a"), "hash:0.8,0.1,0.1"),
        (("datasets", "create", "x", __file__, "--task", "recommendation", "--format", "xls"), "xls"),
        (("predict", "cli-books"), "give at least one input"),
        (("predict", "cli-books", "{"), "not JSON"),
        (("predict", "cli-books", '{"usr": "u1"}'), "instances[0].usr"),
        (("predict", "cli-books", "u1", "--method", "Nope"), "Recommend, SimilarItems"),
        (("predict", "cli-books", "--file", __file__), "0 bytes fields"),
        (("predict", "cli-books", "nobody"), "instances[0].user"),
        (("nosuch",), "No such command"),
    ],
)
def test_wrong_use_is_told_and_exits_2(
    luthier: Callable[..., Result], tuned: dict[str, Any], arguments: tuple[str, ...], told: str
) -> None:
    result = luthier(*arguments)
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert told in result.stderr


def test_bad_rows_are_a_table_and_exit_1(luthier: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("user,item,weight\nu1,i1,1\nu2,,1\nu3,i3,heavy\n", encoding="utf-8")
    result = luthier("datasets", "create", "cli-bad", str(path), "--task", "recommendation")
    assert result.exit_code == 1
    assert "2 problems in the data" in result.stderr
    assert re.search(r"bad\.csv +2 +item ", result.stderr)
    assert re.search(r"bad\.csv +3 +weight ", result.stderr)


def test_bad_rows_are_left_out_or_odd_ones_refused(
    as_json: Callable[..., Any], luthier: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "bad.csv"
    rows = "".join(f"u{i % 7},i{i % 5},1\n" for i in range(40))
    path.write_text(f"user,item,weight\n{rows}u2,,1\nu3,i3,heavy\n", encoding="utf-8")
    command = ("datasets", "create", "cli-lenient", str(path), "--task", "recommendation", "--strictness")
    version = as_json(*command, "lenient")
    told = [warning["message"] for warning in version["warnings"]]
    assert told[0] == "2 rows are left out for what is wrong with them"
    assert {"there is no value", "`heavy` is not a number"} <= {*told}
    path.write_text(f"user,item,weight\n{rows}", encoding="utf-8")
    refused = luthier(*command, "strict")
    assert refused.exit_code == 1
    assert "2 problems in the data" in refused.stderr
    assert "same item more" in refused.stderr


def test_an_option_says_how_files_are_read(
    as_json: Callable[..., Any], luthier: Callable[..., Result], tmp_path: Path
) -> None:
    """Object detection's `boxes`: one that sticks out of its image is cut, left out or an error, as one chooses."""
    folder = tmp_path / "yolo"
    for name, box in {"a": "0 0.5 0.5 0.5 0.5", "b": "0 0.9 0.5 0.6 0.5"}.items():
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / "images" / f"{name}.png").write_bytes(images.encode_png(np.full((32, 32, 3), 90, dtype=np.uint8)))
        (folder / "labels" / f"{name}.txt").write_text(box)
    (folder / "data.yaml").write_text("names: [thing]\n")

    def create(name: str, *option: str) -> tuple[str, ...]:
        return ("datasets", "create", name, "--task", "object-detection", "--train", str(folder), *option)

    clipped = as_json(*create("cli-boxes"))
    dropped = as_json(*create("cli-boxes", "--option", "boxes=drop"))
    assert [version["name"][-1] for version in (clipped, dropped)] == ["1", "2"]
    assert clipped["digest"] != dropped["digest"]
    refused = luthier(*create("cli-boxes", "--option", "boxes=refuse"))
    assert refused.exit_code == 1
    assert "labels/b.txt" in refused.stderr
    wrong = luthier(*create("cli-boxes", "--option", "boxes=burn"))
    assert wrong.exit_code == 2
    assert all(word in wrong.stderr for word in ("boxes", "burn", "clip", "drop", "refuse"))


def test_no_server(luthier: Callable[..., Result]) -> None:
    result = luthier("tasks", "list", address="127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no server answers at 127.0.0.1:1" in result.stderr
    assert "luthier serve" in result.stderr


def test_a_process_of_its_own(server: Server, tuned: dict[str, Any]) -> None:
    arguments = ("predict", "cli-books", "u1", "--json", "--address", server.address)
    result = python("-m", "luthier_client.main", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(json.loads(result.stdout)[0]["items"]) == 10


def test_a_reader_that_has_enough(server: Server) -> None:
    arguments = ("-m", "luthier_client.main", "tasks", "list", "--json", "--address", server.address)
    command = f"{shlex.join([sys.executable, *arguments])} | head -c 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.stderr) == ("[", "")


def test_global_options_before_and_after_the_command(server: Server, luthier: Callable[..., Result]) -> None:
    before = luthier("--address", server.address, "--json", "tasks", "list", address="127.0.0.1:1")
    after = luthier("tasks", "list", "--json", "--address", server.address, address="127.0.0.1:1")
    assert (before.exit_code, after.exit_code) == (0, 0)
    assert json.loads(before.stdout) == json.loads(after.stdout)


def test_help_lists_every_command(luthier: Callable[..., Result]) -> None:
    listed = luthier("--help").stdout
    for name in COMMANDS:
        assert re.search(rf"│ {name} ", listed), name


def test_serve_hands_over_to_the_server() -> None:
    assert "--home" in python("-m", "luthier_client.main", "serve", "--help").stdout
    refused = python("-m", "luthier_client.main", "serve", "--listen", "0.0.0.0:0")
    assert refused.returncode == 2
    assert "--insecure" in refused.stderr


def test_serve_on_an_address_that_is_taken_says_so(server: Server, tmp_path: Path) -> None:
    refused = python("-m", "luthier", "--home", str(tmp_path / "home"), "--listen", server.address)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"luthier serve: cannot listen on {server.address}: ")


def test_serve_without_the_extra_says_which_to_install() -> None:
    script = (
        "import sys, importlib.util as util; from luthier_client import main, server\n"
        "server.find_spec = lambda name: None if name == 'onnxruntime' else util.find_spec(name)\n"
        "sys.argv = ['luthier', 'serve']; main.main()"
    )
    result = python("-c", script)
    assert result.returncode == 2
    assert "onnxruntime" in result.stderr
    assert "pip install 'luthier[serve]'" in result.stderr


def test_serve_starts_without_loading_the_client() -> None:
    script = (
        "import os, sys; from luthier_client import main\n"
        "os.execv = lambda *_: sys.exit(repr({'grpc', 'typer', 'rich', 'google.protobuf'} & sys.modules.keys()))\n"
        "sys.argv = ['luthier', 'serve', '--home', 'x']; main.main()"
    )
    assert python("-c", script).stderr.strip() == "set()"
