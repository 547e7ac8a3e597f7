"""Prometheus, as far as a test needs it: scrapes, parsed by prometheus_client's own parser."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from urllib.request import urlopen

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.deadlines import within

Samples = Mapping[str, float]
PREFIX = "mqtt_fleet_broker_"


def fetch(url: str) -> str:
    """The text of one scrape."""
    with urlopen(url, timeout=within(10)) as answer:
        assert 200 == answer.status
        return str(answer.read().decode())


def families(text: str) -> dict[str, Metric]:
    """Each metric, by its name without `_total`."""
    return {family.name: family for family in text_string_to_metric_families(text)}


class Scraper:
    """Scrapes one broker. Every scrape checks that no counter has decreased since the one before."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._counters: Samples = {}

    def scrape(self) -> Samples:
        """The broker's own samples: by name without prefix, and `name{value}` where there is a label."""
        found, counters = {}, {}
        for family in text_string_to_metric_families(fetch(self.url)):
            for sample in family.samples:
                labels = "".join(f"{{{value}}}" for value in sample.labels.values())
                found[sample.name.removeprefix(PREFIX) + labels] = sample.value
                if family.type in ("counter", "histogram"):
                    counters[sample.name + labels] = sample.value
        for name, value in self._counters.items():
            assert counters[name] >= value, f"{name} has decreased"
        self._counters = counters
        return found

    def wait(self, is_it: Callable[[Samples], bool], seconds: float = 10) -> Samples:
        """The first scrape of which that is true. The broker paces scrapes. Raises: AssertionError at the deadline."""
        deadline = time.monotonic() + within(seconds)
        while True:
            found = self.scrape()
            if is_it(found):
                return found
            assert time.monotonic() < deadline, f"it was never so: {found}"
