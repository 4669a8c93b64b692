"""Numbers for Prometheus (text format). No label names a device, a gateway or a person."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

# From a LAN answer to the deadline of a slow call.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        # Memory, descriptors and CPU of the service.
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "http_requests", "Requests by route and status", ["method", "route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self.logins = Counter("logins", "Logins by outcome", ["outcome"], registry=self._registry)
        self.calls = Histogram(
            "amt_request_seconds", "Calls by function and result", ["op", "result"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip

    def gauge(
        self, name: str, text: str, read: Callable[[], dict[str, float]], label: str = ""
    ) -> None:
        """A number that is looked up when it is asked for; by `label` where it has one."""
        self._registry.register(_Gauge(name, text, read, label))

    def answered(self, method: str, route: str, status: int) -> None:
        self.requests.labels(method, route, str(status)).inc()

    def login(self, outcome: str) -> None:
        self.logins.labels(outcome).inc()

    def called(self, function: str, result: str, seconds: float) -> None:
        self.calls.labels(function, result).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Gauge(Collector):
    def __init__(
        self, name: str, text: str, read: Callable[[], dict[str, float]], label: str
    ) -> None:
        self._name = name
        self._text = text
        self._read = read
        self._labels = [label] if label else []

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for value, number in self._read().items():
            family.add_metric([value] if self._labels else [], number)
        yield family
