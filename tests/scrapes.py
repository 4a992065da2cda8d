"""What Prometheus would see of a server."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from support import Server

Scrape = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def lines(server: Server, event: str) -> list[dict[str, str]]:
    """The lines of a server's log about an event."""
    found = [json.loads(line) for line in list(server.log) if line.startswith("{")]
    return [line for line in found if line["event"] == event]


def wait_for_lines(server: Server, event: str, count: int, **fields: str) -> list[dict[str, str]]:
    """The same, once there are so many of them with these fields."""
    deadline = time.monotonic() + 10
    while True:
        found = [line for line in lines(server, event) if fields.items() <= line.items()]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, f"{len(found)} lines of {event} with {fields}, not {count}"
        time.sleep(0.02)


def text_of(server: Server) -> str:
    """What a server with `--metrics-listen` answers to a scrape."""
    [line] = wait_for_lines(server, "metrics", 1)
    return text_at(line["address"])


def text_at(address: str) -> str:
    """What is answered there."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        content: bytes = answer.read()
        return content.decode()


def scrape(server: Server) -> Scrape:
    """The values of all series, by name and labels in order."""
    return parsed(text_of(server))


def parsed(text: str) -> Scrape:
    """The values in an answer."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Scrape, name: str, **labels: str) -> float:
    """The value of one series; 0 where there is none."""
    return found.get((name, tuple(sorted(labels.items()))), 0)


def names(found: Scrape) -> set[str]:
    """The names of Luthier's own metrics: a histogram's without the ending of its series."""
    own = {name for name, _ in found if name.startswith("luthier_")}
    histograms = {name.removesuffix("_bucket") for name in own if name.endswith("_bucket")}
    endings = ("_bucket", "_sum", "_count")
    return histograms | {name for name in own if name not in {h + e for h in histograms for e in endings}}
