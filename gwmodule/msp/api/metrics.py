"""Numbers for Prometheus (text format). No label names a device, a gateway or a person."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from gwmodule.errors import Code
from gwmodule.msp.records import State
from gwmodule.msp.seam import SessionsSeam
from gwmodule.msp.strangers import Strangers
from gwmodule.msp.traffic import Direction
from gwmodule.wire.frames import Priority

# From a LAN answer to the deadline of a slow call.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# From the next town to a satellite.
_ROUND_TRIPS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
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
        self._devices = Gauge(
            "devices", "Devices of all tenants by state", ["state"],
            registry=self._registry,
        )  # fmt: skip

    def sessions(self, sessions: SessionsSeam) -> None:
        """What the gateways' sessions of this process carry."""
        self._registry.register(_Sessions(sessions))

    def strangers(self, ports: Sequence[Strangers[Any]]) -> None:
        """Who stands at the TCP ports and is not known yet, and what the bound on them has cost."""
        self._registry.register(_Strangers(ports))

    def devices(self, states: Mapping[State, int]) -> None:
        """What the registry says now; nothing when it cannot be asked."""
        self._devices.clear()
        for state, number in states.items():
            self._devices.labels(state.value).set(number)

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


class _Strangers(Collector):
    def __init__(self, ports: Sequence[Strangers[Any]]) -> None:
        self._ports = ports

    def collect(self) -> Iterable[Metric]:
        here = GaugeMetricFamily(
            "strangers", "Connections that nobody knows yet, by port", labels=["port"]
        )
        cut = CounterMetricFamily(
            "strangers_cut", "Of them, cut off because there were too many", labels=["port"]
        )
        for strangers in self._ports:
            here.add_metric([strangers.port], len(strangers))
            cut.add_metric([strangers.port], strangers.refused + strangers.displaced)
        yield here
        yield cut


class _Sessions(Collector):
    def __init__(self, sessions: SessionsSeam) -> None:
        self._sessions = sessions

    def collect(self) -> Iterable[Metric]:
        traffic = self._sessions.traffic
        carried = CounterMetricFamily(
            "stream_bytes", "Bytes of streams by class", labels=["class", "direction"]
        )
        for priority, direction in product(Priority, Direction):
            labels = [priority.name.lower(), direction.value]
            carried.add_metric(labels, traffic.carried[priority, direction])
        yield carried
        resumes = CounterMetricFamily(
            "stream_resumes", "Streams whose link broke, by what became of them", labels=["result"]
        )
        resumes.add_metric(["ok"], traffic.resumed)
        resumes.add_metric(["lost"], traffic.lost)
        yield resumes
        yield _by_reason("denied_opens", "Streams that were not opened", traffic.refused)
        yield _by_reason("reconnects", "Links that were lost", traffic.links_lost)
        yield GaugeMetricFamily(
            "buffered_bytes",
            "Bytes for gateways that they have not acknowledged",
            value=sum(session.buffered for session in self._sessions.all()),
        )
        yield self._round_trips()

    def _round_trips(self) -> Metric:
        """How they are spread over the gateways now; each has measured its own last."""
        family = GaugeHistogramMetricFamily(
            "gateway_rtt_seconds", "Round trips to the gateways that are connected"
        )
        known = [s.rtt for s in self._sessions.all() if s.connected and s.rtt is not None]
        buckets = [(str(b), float(sum(rtt <= b for rtt in known))) for b in _ROUND_TRIPS]
        family.add_metric([], [*buckets, ("+Inf", float(len(known)))], sum(known))
        return family


def _by_reason(name: str, text: str, counted: Mapping[Code, int]) -> Metric:
    family = CounterMetricFamily(name, f"{text}, by reason", labels=["reason"])
    for code, number in counted.items():
        family.add_metric([code.name.lower()], number)
    return family
