"""Luthier beside Triton and MLServer: throughput and latency of the same models on the same machine.

    python benchmarks/serving [--quick] [--cases mlp,uint8] [--peers triton] [--in-flight 8]

Makes an environment for each peer under build/benchmarks, publishes the models there with Luthier, starts all servers,
checks that they give the same answers, and drives them in turns. A whole run, of about half an hour, writes
docs/performance.json and docs/performance.md; one that leaves anything out writes to build/benchmarks instead.
Ends with 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import environments
import limit
import publishing
import report
import sampling
import servers
from cases import CASES, INFER, QUESTIONS, Case, Questions, differs
from client import Channel, Load
from peers import answers

from luthier_client import Client

IN_FLIGHT = (1, 8, 32)
CONNECTIONS = 8
"""Of the client to each server: many callers, each with a connection of its own, as microservices have them."""
PROCESSES = len(os.sched_getaffinity(0))
"""Of Luthier: one for each core, as Triton and MLServer have it with their two."""
TURNS, SECONDS, WARM_UP = 5, 3.0, 0.5
QUICK_TURNS, QUICK_SECONDS, QUICK_WARM_UP = 2, 0.8, 0.2
LIVE = "/inference.GRPCInferenceService/ServerLive"
PROFILE_S = 5.0
QUIET = 0.5
"""A load above which somebody else is using the machine."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    cases: list[Case]
    peers: list[str]
    in_flight: list[int]
    turns: int
    seconds: float
    warm_up: float
    connections: int
    processes: int
    """Of Luthier."""
    workers: int
    """Of MLServer."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return (
            self.cases == [*CASES]
            and self.peers == [*environments.PEERS]
            and self.in_flight == [*IN_FLIGHT]
            and self.turns >= report.LEAST_TURNS
            and self.seconds >= SECONDS
            and (self.connections, self.processes) == (CONNECTIONS, PROCESSES)
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about three minutes, once everything is installed")
    parser.add_argument("--cases", default=",".join(case.id for case in CASES), help="[%(default)s]")
    parser.add_argument("--peers", default=",".join(environments.PEERS), help="empty: Luthier alone [%(default)s]")
    parser.add_argument("--in-flight", default=",".join(map(str, IN_FLIGHT)), help="[%(default)s]")
    parser.add_argument("--turns", type=int)
    parser.add_argument("--seconds", type=float, help="of each turn of a server in a row")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="of the client [%(default)s]")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="of Luthier [%(default)s, a core each]")
    parser.add_argument("--mlserver-workers", type=int, default=2, help="worker processes of MLServer [%(default)s]")
    parser.add_argument(
        "--page", action="store_true", help="write docs/performance.md from docs/performance.json again"
    )
    arguments = parser.parse_args()
    target = environments.ROOT / "docs" / "performance.json"
    if arguments.page:
        write(json.loads(target.read_text(encoding="utf-8")), target)
        return 0
    plan = Plan(
        cases=[case for case in CASES if case.id in chosen(parser, arguments.cases, [case.id for case in CASES])],
        peers=[peer for peer in environments.PEERS if peer in chosen(parser, arguments.peers, environments.PEERS)],
        in_flight=[int(count) for count in arguments.in_flight.split(",")],
        turns=arguments.turns or (QUICK_TURNS if arguments.quick else TURNS),
        seconds=arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS),
        warm_up=QUICK_WARM_UP if arguments.quick else WARM_UP,
        connections=arguments.connections,
        processes=arguments.processes,
        workers=arguments.mlserver_workers,
    )
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}"))
    record = measure(plan)
    if not plan.is_whole:
        target = environments.BUILD / target.name
    write(record, target)
    print(f"\nwritten: {target.with_suffix('.md')}\n")
    missed = 0
    for one in report.verdicts(record):
        missed += not one.is_met
        print(f"{one.case}: {one.what} {one.reached:.3f}, limit {one.limit}: {'met' if one.is_met else 'MISSED'}")
    return int(missed > 0)


def chosen(parser: argparse.ArgumentParser, names: str, known: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The names of a list with commas."""
    found = [name for name in names.split(",") if name]
    if strange := [name for name in found if name not in known]:
        parser.error(f"there is no {', '.join(strange)}; there are {', '.join(known)}")
    return found


def measure(plan: Plan) -> dict[str, Any]:
    """The record of a run; raises SystemExit where a server does not start, fails or answers otherwise."""
    options = limit.options()
    homes = {peer: environments.create(peer) for peer in plan.peers}
    packages = {"Luthier and its limit": {"luthier": version("luthier")} | own_packages()}
    packages |= {peer: environments.packages(home) for peer, home in homes.items()}
    print("\n".join(f"{place}: {found}" for place, found in packages.items()), flush=True)
    if len({found["onnxruntime"] for found in packages.values()}) > 1:
        raise SystemExit("the versions of onnxruntime differ")
    home, bundles = publishing.publish(sorted({case.model for case in plan.cases}))
    questions = {case.id: case.questions(bundles[case.model]) for case in plan.cases}
    load = os.getloadavg()[0]
    if load > QUIET:
        print(f"WARNING: the machine's load is {load:.2f}: somebody else is using it, and figures will vary")
    with running(plan, home, bundles, homes) as started:
        together = most_together(started["luthier"], plan)
        for case in plan.cases:
            check(case, questions[case.id], started)
        contenders = {case.id: contend(plan, case, questions[case.id], started, bundles) for case in plan.cases}
        ceiling = client_limit(plan, questions, started) if "triton" in plan.peers else {}
        found, idle = take_turns(plan, contenders, started)
        profile = profiles(plan, contenders, started["luthier"].pid)
    return {
        "command": shlex.join(["python", "benchmarks/serving", *sys.argv[1:]]),
        "machine": machine(),
        "load": load,
        "packages": packages,
        "options": options,
        "threads": {case.model: answers.threads(bundles[case.model]) for case in plan.cases},
        "connections": plan.connections,
        "processes": plan.processes,
        "instances": servers.INSTANCES,
        "mlserver_workers": plan.workers,
        "together": together,
        "turns": plan.turns,
        "seconds": plan.seconds,
        "warm_up": plan.warm_up,
        "idle": idle,
        "counts": [str(count) for count in plan.in_flight],
        "ceiling": ceiling,
        "profile": profile,
        "looks": sampling.LOOKS_A_S,
        "cases": [
            {"id": case.id, "title": case.title, "over_triton": case.over_triton, "in_flight": found[case.id]}
            for case in plan.cases
        ],
    }


@contextmanager
def running(
    plan: Plan, home: Path, bundles: Mapping[str, Path], homes: Mapping[str, Path]
) -> Iterator[dict[str, servers.Server]]:
    """Luthier and the peers, with all models."""
    deployments = [servers.Deployment(c.deployment, c.kind, bundles[c.model], c.raw_outputs) for c in plan.cases]
    with ExitStack() as stack:
        models = sorted({case.model for case in plan.cases})
        flags = ["--trainings", "0", "--jobs", "0", "--processes", str(plan.processes)]
        started = {"luthier": servers.luthier(home, models, *flags)}
        if "triton" in homes:
            started["triton"] = servers.triton(homes["triton"], deployments)
        if "mlserver" in homes:
            started["mlserver"] = servers.mlserver(homes["mlserver"], deployments, plan.workers)
        yield {name: stack.enter_context(server) for name, server in started.items()}


def most_together(server: servers.Server, plan: Plan) -> dict[str, int]:
    """How many calls Luthier puts together, by model: it was measured at publication."""
    with Client(server.address) as client:
        return {case.model: max(1, client.get_model_version(case.model).serving.most_rows) for case in plan.cases}


def requests_of(case: Case, questions: Questions, server: servers.Server) -> tuple[str, list[bytes]]:
    """The call that a server is sent, and its requests."""
    return (case.method, questions.luthier) if server.name == "luthier" else (INFER, questions.peers)


def check(case: Case, questions: Questions, started: Mapping[str, servers.Server]) -> None:
    """Raises SystemExit where a peer does not answer as Luthier does."""
    said = {}
    for name, server in started.items():
        method, requests = requests_of(case, questions, server)
        channel = Channel(server.address, method)
        read = case.said_by_luthier if name == "luthier" else case.said_by_peer
        said[name] = [read(channel.call(request)) for request in requests]
        channel.close()
    for name, answered in said.items():
        for index, (one, other) in enumerate(zip(said["luthier"], answered, strict=True)):
            if differs(one, other):
                raise SystemExit(f"{case.id}, question {index}: luthier answers {one}, {name} {other}")
    print(f"{case.id}: {len(said)} servers give the same {QUESTIONS} answers", flush=True)


Drive = Callable[[int, float], Load]
Figures = dict[str, dict[str, dict[str, list[dict[str, float]]]]]
"""By case, calls in flight and contender, one for each turn."""


def contend(
    plan: Plan, case: Case, questions: Questions, started: Mapping[str, servers.Server], bundles: Mapping[str, Path]
) -> dict[str, Drive]:
    """How each contender in a case is driven."""
    found: dict[str, Drive] = {"limit": limit.Limit(bundles[case.model], questions.arrays).drive}
    for name, server in started.items():
        method, requests = requests_of(case, questions, server)
        found[name] = _driver(Channel(server.address, method, connections=plan.connections), requests)
    return found


def _driver(channel: Channel, requests: list[bytes]) -> Drive:
    return lambda in_flight, seconds: channel.drive(requests, in_flight, seconds)


def client_limit(
    plan: Plan, questions: Mapping[str, Questions], started: Mapping[str, servers.Server]
) -> dict[str, dict[str, float]]:
    """Calls a second that the client makes where there is no work: Triton's ServerLive skips what it is sent."""
    channel = Channel(started["triton"].address, LIVE, connections=plan.connections)
    found: dict[str, dict[str, float]] = {}
    for case in plan.cases:
        drive = _driver(channel, questions[case.id].peers)
        drive(8, plan.warm_up)
        found[case.id] = {str(count): drive(count, plan.seconds).per_s for count in plan.in_flight}
        print(
            f"{case.id}: the client makes at most", *(f"{rate:.0f}/s" for rate in found[case.id].values()), flush=True
        )
    channel.close()
    return found


def take_turns(
    plan: Plan, contenders: Mapping[str, Mapping[str, Drive]], started: Mapping[str, servers.Server]
) -> tuple[Figures, float]:
    """What was measured, and the most that all servers that waited for their turn used of a core."""
    found: Figures = {
        case.id: {str(count): {name: [] for name in contenders[case.id]} for count in plan.in_flight}
        for case in plan.cases
    }
    idle = 0.0
    for turn in range(plan.turns):
        for case in plan.cases:
            for count in plan.in_flight:
                names = [*contenders[case.id]]
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    drive = contenders[case.id][name]
                    drive(count, plan.warm_up)
                    before = {each: server.cpu_s() for each, server in started.items()}
                    began = time.monotonic()
                    load = drive(count, plan.seconds)
                    elapsed = time.monotonic() - began
                    used = {each: server.cpu_s() - before[each] for each, server in started.items()}
                    figures = figures_of(load, used.pop(name, None))
                    idle = max(idle, sum(used.values()) / elapsed)
                    found[case.id][str(count)][name].append(figures)
                    print(
                        f"turn {turn + 1}  {case.id:<14} {count:>2} in flight  {name:<8} {load.per_s:>9.1f}/s"
                        f"  p50 {load.p50_ms:.2f} ms  p99 {load.p99_ms:.2f} ms",
                        flush=True,
                    )
    return found, idle


def profiles(plan: Plan, contenders: Mapping[str, Mapping[str, Drive]], pid: int) -> dict[str, dict[str, float]]:
    """By case, whose code holds Luthier's interpreter lock with the calls in flight at which it is judged."""

    def drive(case: str) -> Callable[[float], Load]:
        return lambda seconds: contenders[case]["luthier"](int(report.JUDGED), seconds)

    found = {case.id: sampling.look(pid, drive(case.id), PROFILE_S) for case in plan.cases}
    return {case: shares for case, shares in found.items() if shares}


def figures_of(load: Load, server_cpu_s: float | None) -> dict[str, float]:
    """What is kept of a turn. Without a server the work was done in this process."""
    in_process = server_cpu_s is None
    server, client = (load.client_cpu_s, 0.0) if in_process else (server_cpu_s, load.client_cpu_s)
    return {
        "per_s": round(load.per_s, 2),
        "p50_ms": round(load.p50_ms, 4),
        "p99_ms": round(load.p99_ms, 4),
        "server_cpu_ms": round(server / load.calls * 1000, 4),
        "client_cpu_ms": round(client / load.calls * 1000, 4),
    }


def write(record: dict[str, Any], target: Path) -> None:
    """The record, and its page beside it."""
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    target.with_suffix(".md").write_text(report.page(record), encoding="utf-8")


def own_packages() -> dict[str, str]:
    return {name: version(name) for name in ("grpcio", "numpy", "onnxruntime", "pillow", "tokenizers")}


def machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of an {model}, Linux {platform.release()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
