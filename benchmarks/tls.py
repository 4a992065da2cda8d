"""What TLS and tokens cost a prediction: the same server three times, open, with TLS, and with TLS and tokens.

    python benchmarks/tls.py [--cases mlp,recommendation,float] [--ways open,tls,tokens] [--turns 15] [--seconds 1]

All three serve the same models and take turns, with 8 calls in flight by the client of `benchmarks/serving`, whose
models these are too; the first run publishes them. Ends with status 1 where a way's throughput is more than 15 % below
the open server's, by the median of all turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "serving"), str(HERE.parent / "tests")]

import grpc  # noqa: E402 -- after the path
import publishing  # noqa: E402
import servers  # noqa: E402
from cases import CASES, Case, Questions  # noqa: E402
from client import Channel, Load  # noqa: E402

from certificates import Authority  # noqa: E402

LIMIT = 0.85
"""Least throughput, in the open server's."""
IN_FLIGHT = 8
WARM_UP_S = 0.3
OPEN, TLS, TOKENS = "open", "tls", "tokens"


def channel_to(address: str, method: str, way: str, authority: Authority, home: Path) -> Channel:
    """A connection in one of the ways."""
    credentials = None if way == OPEN else grpc.ssl_channel_credentials(authority.certificate)
    token = (home / "admin.token").read_text(encoding="utf-8").strip() if way == TOKENS else ""
    return Channel(address, method, credentials, (("authorization", f"Bearer {token}"),) if token else ())


def take_turns(
    channels: Mapping[str, Channel], requests: list[bytes], turns: int, seconds: float
) -> dict[str, list[Load]]:
    """What each way did in each turn; the order moves on from turn to turn."""
    found: dict[str, list[Load]] = {way: [] for way in channels}
    order = [*channels]
    for _ in range(turns):
        for way in order:
            channels[way].drive(requests, IN_FLIGHT, WARM_UP_S)
            found[way].append(channels[way].drive(requests, IN_FLIGHT, seconds))
        order.append(order.pop(0))
    return found


def report(case: Case, found: Mapping[str, list[Load]], cpu_ms: Mapping[str, float]) -> bool:
    """Prints the figures of a case; whether all ways keep the limit."""
    kept = True
    for way, loads in found.items():
        ratio = statistics.median(one.per_s / open.per_s for one, open in zip(loads, found[OPEN], strict=True))
        line = (
            f"{case.id:<14} {way:<6} {statistics.median(one.per_s for one in loads):>8.1f}/s"
            f"  p50 {statistics.median(one.p50_ms for one in loads):.2f} ms"
            f"  p99 {statistics.median(one.p99_ms for one in loads):.2f} ms  server {cpu_ms[way]:.2f} ms of processors"
        )
        if way != OPEN:
            kept = kept and ratio >= LIMIT
            line += f"  {ratio:.3f} of open, at least {LIMIT}: {'met' if ratio >= LIMIT else 'MISSED'}"
        print(line, flush=True)
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="mlp,recommendation,float", help="[%(default)s]")
    parser.add_argument("--ways", default=f"{OPEN},{TLS},{TOKENS}", help="[%(default)s]")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn of each way")
    arguments = parser.parse_args()
    cases = [case for case in CASES if case.id in arguments.cases.split(",")]
    models = sorted({case.model for case in cases})
    home, bundles = publishing.publish(models)
    authority = Authority()
    kept = True
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pem, key = authority.server().write(Path(folder), "server")
        flags = {OPEN: (), TLS: ("--tls-certificate", str(pem), "--tls-key", str(key))}
        flags[TOKENS] = (*flags[TLS], "--tokens")
        started = {}
        for way in arguments.ways.split(","):
            server = servers.luthier(home, [], "--trainings", "0", "--jobs", "0", *flags[way], log=f"luthier-{way}.log")
            started[way] = stack.enter_context(server)
        for case in cases:
            questions: Questions = case.questions(bundles[case.model])
            channels = {
                way: channel_to(server.address, case.method, way, authority, home) for way, server in started.items()
            }
            for channel in channels.values():
                channel.drive(questions.luthier, IN_FLIGHT, 1.0)
            cpu = {way: server.cpu_s() for way, server in started.items()}
            found = take_turns(channels, questions.luthier, arguments.turns, arguments.seconds)
            calls = {way: sum(load.calls for load in loads) for way, loads in found.items()}
            # The warm-up's calls are a third of the turns' and not counted, alike for all ways.
            cpu_ms = {way: (server.cpu_s() - cpu[way]) / calls[way] * 1000 for way, server in started.items()}
            kept &= report(case, found, cpu_ms)
            for channel in channels.values():
                channel.close()
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
