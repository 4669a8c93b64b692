"""Part g: the real `gwmodule-msp serve`, with a registry of many devices and its gateways."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from gwmodule.msp.client import ApiClient, ApiUnavailable
from gwmodule.msp.database import open_database
from gwmodule.msp.pki import Authority
from gwmodule.msp.registry import Event, Observed, Registry
from gwmodule.wire.notices import Lease, Presence, Provisioning
from tests.bench.cells import Say, Spread, percentile, pinned, private_memory
from tests.bench.functions import CALL, LOOPBACK, MAC, PASSWORD, USER, UUID_OF_PC
from tests.bench.many_gateways import name_of, write_bundle
from tests.bench.service import Load, registration
from tests.bench.tools import BenchError, Place, Started, Tool, Workshop
from tests.msp import postgres

SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"
DEVICES, PAGE = 2000, 100
# Those that tell of PCs, of which the first also has the PC that is called.
_TELLING = 4
_CONNECTIONS = 8
_LISTEN, _HTTP, _PEER = 4440, 4441, 4442
_OPERATOR, _OPERATORS_PASSWORD = "bench", "correct horse battery"
_PATIENCE = 20.0
# Gateways whose arrival fills the allocator's arenas and imports what is imported late.
_FIRST_SESSIONS = 50


@dataclass(slots=True)
class ReadRow:
    engine: str
    what: str
    way: str
    bytes: int
    per_second: float
    peer_per_second: float
    vs_peer: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    peer_cpu_us: float


@dataclass(slots=True)
class CallResult:
    """power.get by `GET /api/v1/amt/power/state/{guid}`, and by the session itself."""

    api: Spread
    session: Spread
    overhead_ms: float
    audit_entries: float


@dataclass(slots=True)
class ConnectResult:
    sessions: int
    per_second: float
    cpu_ms_each: float
    kib_each: float
    base_mib: float


@dataclass(slots=True)
class StormResult:
    """Gateways behind one address that all dial at the same moment, with the default back-off."""

    gateways: int
    half_seconds: float
    all_seconds: float
    refused: int


@dataclass(slots=True)
class RegistrationRow:
    """PCs that were not known: a lease and a presence answer each, until both are acknowledged."""

    engine: str
    devices: int
    per_second: float
    cpu_us_each: float


@dataclass(slots=True)
class ServiceResult:
    reads: list[ReadRow] = field(default_factory=list)
    registrations: list[RegistrationRow] = field(default_factory=list)
    call: CallResult | None = None
    connects: ConnectResult | None = None
    storm: StormResult | None = None


@dataclass(frozen=True, slots=True)
class ServiceEffort:
    rounds: int
    seconds: float
    calls: int
    sessions: int
    registrations: int


@dataclass(slots=True)
class Service:
    """A running one. `token` is that of a user who has logged in."""

    engine: str
    pid: int
    state: Path
    api: Path
    bundles: Path
    token: str = ""

    @property
    def cpu(self) -> float:
        return Tool("service", {}, [self.pid]).cpu()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """As the operator, by the unix socket."""

        async def request() -> Any:
            async with ApiClient(str(self.api)) as client:
                return await client.request(method, path, body)

        return asyncio.run(request())


def service(workshop: Workshop, effort: ServiceEffort, say: Say) -> ServiceResult:
    result = ServiceResult()
    with running(workshop, SQLITE, None, effort.sessions) as served:
        _measure(workshop, served, result, effort, say)
        result.call = calls(workshop, served, effort.calls, say)
        result.connects = connects(workshop, served, effort.sessions, say)
        result.storm = storm(workshop, served, effort.sessions, say)
    programs = postgres.programs()
    if programs is None:
        say(f"  {POSTGRESQL} is not installed (apt-get install postgresql): left out")
        return result
    server = postgres.Server(programs)
    try:
        # As it is deployed, not as tests start it.
        server.start(fsync=True)
        with running(workshop, POSTGRESQL, server.url(), _TELLING) as served:
            _measure(workshop, served, result, effort, say)
    finally:
        server.remove()
    return result


def _measure(
    workshop: Workshop, served: Service, result: ServiceResult, effort: ServiceEffort, say: Say
) -> None:
    result.reads += reads(workshop, served, effort.rounds, effort.seconds, say)
    result.registrations.append(registrations(workshop, served, effort.registrations, say))


# ---- the service --------------------------------------------------------------------------------


@contextlib.contextmanager
def running(workshop: Workshop, engine: str, url: str | None, gateways: int) -> Iterator[Service]:
    """On the last core; its clients have the others."""
    state = workshop.directory / f"service-{engine}"
    state.mkdir()
    bundles = state / "bundles"
    asyncio.run(_fill(state, url or str(state / "registry.db"), bundles, gateways, workshop.at))
    api = state / "api.sock"
    argv = [workshop.python, "-m", "gwmodule.msp.cli", "--api", str(api), "serve"]
    argv += ["--state", str(state), "--listen", f"127.0.0.1:{_LISTEN}", "--node", "bench"]
    argv += ["--http", f"127.0.0.1:{_HTTP}", "--log-level", "error"]
    argv += ["--database", url] if url else []
    with workshop.started() as started:
        with pinned(max(os.sched_getaffinity(0))):
            process = started.start(None, argv, environment=workshop.environment)
        served = Service(engine, process.pid, state, api, bundles)
        _until_ready(served, process, started)
        served.ask(
            "POST", "/api/v1/users",
            {"name": _OPERATOR, "role": "admin", "password": _OPERATORS_PASSWORD},
        )  # fmt: skip
        login = {"username": _OPERATOR, "password": _OPERATORS_PASSWORD}
        served.token = served.ask("POST", "/api/v1/authorize", login)["token"]
        yield served


def _until_ready(served: Service, process: subprocess.Popen[str], started: Started) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(ApiUnavailable):
            served.ask("GET", "/readyz")
            return
        time.sleep(0.1)
    raise BenchError(f"the service did not come up; logs in {started.directory}")


async def _fill(state: Path, url: str, bundles: Path, gateways: int, at: float) -> None:
    """Enrolled gateways, and what they told before."""
    authority = Authority.open(state, at)
    async with contextlib.aclosing(await open_database(url)) as database:
        registry = Registry(database, node="bench")
        for number in range(gateways):
            bundle = authority.gateway_bundle(name_of(number), at)
            write_bundle(bundle, bundles)
            await registry.add_gateway(bundle.name, bundle.fingerprint, at)
        observations = [
            (name_of(number % _TELLING), observation)
            for number in range(DEVICES - 1)
            for observation in registration(number)
        ]
        observations += [
            (name_of(0), Lease(MAC, LOOPBACK, 86400, "pc", UUID_OF_PC)),
            (name_of(0), Presence(MAC, LOOPBACK, Provisioning.POST, (16992,))),
        ]
        events: list[Event] = [
            Observed(gateway, "192.0.2.1", 4433, observation, 0.0, at)
            for gateway, observation in observations
        ]
        for first in range(0, len(events), 256):
            await registry.record(events[first : first + 256])


# ---- reads --------------------------------------------------------------------------------------


def reads(
    workshop: Workshop, served: Service, rounds: int, seconds: float, say: Say
) -> list[ReadRow]:
    """The service and a bare application with the same answers, on the same core in turn."""
    targets = {
        "one device": f"/api/v1/devices/{UUID_OF_PC}",
        f"{PAGE} of {DEVICES} devices": f"/api/v1/devices?$top={PAGE}",
    }
    answers = {path.partition("?")[0]: _answer_of(served, path) for path in targets.values()}
    file = served.state / "answers.json"
    file.write_text(json.dumps(answers))
    peer_path = str(served.state / "peer.sock")
    rows: list[ReadRow] = []
    with workshop.started() as started:
        module = [workshop.python, "-m", "tests.bench.service"]
        with pinned(max(os.sched_getaffinity(0))):
            argv = [*module, "peer", str(_PEER), peer_path, str(file)]
            peer = started.start(None, argv, talks=True, environment=workshop.environment)
        with pinned(min(os.sched_getaffinity(0))):
            reader = started.start(
                None, [*module, "reader"], talks=True, environment=workshop.environment
            )
        for what, path in targets.items():
            for way, ours, theirs, token in (
                ("http, JWT", f"127.0.0.1:{_HTTP}", f"127.0.0.1:{_PEER}", served.token),
                ("unix socket", str(served.api), peer_path, ""),
            ):
                if way == "unix socket" and what != "one device":
                    continue
                seen: dict[str, list[_Reading]] = {}
                for number in range(rounds):
                    both = [(ours, served.pid, token), (theirs, peer.pid, "")]
                    for where, pid, authorization in both[:: -1 if number % 2 else 1]:
                        load = Load(where, path, _CONNECTIONS, seconds, authorization)
                        seen.setdefault(where, []).append(_read(reader, load, pid, started))
                size = len(answers[path.partition("?")[0]][1])
                row = _read_row(served.engine, what, way, size, seen[ours], seen[theirs])
                say(
                    f"  {row.engine:10} {row.what:20} {row.way:11} {row.per_second:8.0f}/s,"
                    f" {row.vs_peer:.3f} of aiohttp alone, {row.cpu_us:.0f} us of CPU each"
                )
                rows.append(row)
    return rows


@dataclass(slots=True)
class _Reading:
    """Of one round: requests in a second, their times, CPU seconds of the server for each."""

    rate: float
    times: list[float]
    cpu: float


def _read(reader: subprocess.Popen[str], load: Load, pid: int, started: Started) -> _Reading:
    tool = Tool("", {}, [pid])
    before = tool.cpu()
    answer = _said(reader, msgspec.json.encode(load).decode(), started)
    used = tool.cpu() - before
    times = answer["times"]
    return _Reading(len(times) / answer["seconds"], times, used / len(times))


def _read_row(
    engine: str,
    what: str,
    way: str,
    size: int,
    ours: Sequence[_Reading],
    theirs: Sequence[_Reading],
) -> ReadRow:
    times = [time for reading in ours for time in reading.times]
    pairs = list(zip(ours, theirs, strict=True))
    return ReadRow(
        engine=engine,
        what=what,
        way=way,
        bytes=size,
        per_second=round(statistics.median(reading.rate for reading in ours), 1),
        peer_per_second=round(statistics.median(reading.rate for reading in theirs), 1),
        vs_peer=round(statistics.median(mine.rate / its.rate for mine, its in pairs), 4),
        p50_ms=round(percentile(times, 0.5) * 1e3, 3),
        p99_ms=round(percentile(times, 0.99) * 1e3, 3),
        cpu_us=round(statistics.median(reading.cpu for reading in ours) * 1e6, 1),
        peer_cpu_us=round(statistics.median(reading.cpu for reading in theirs) * 1e6, 1),
    )


def _answer_of(served: Service, path: str) -> tuple[dict[str, str], str]:
    """Headers and body, so that the peer's answer has the same bytes."""

    async def get() -> tuple[dict[str, str], str]:
        headers = {"Authorization": f"Bearer {served.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.get(f"http://127.0.0.1:{_HTTP}{path}", raise_for_status=True) as response,
        ):
            own = ("content-length", "transfer-encoding", "date", "server")
            kept = {n: v for n, v in response.headers.items() if n.lower() not in own}
            return kept, await response.text()

    return asyncio.run(get())


def _said(process: subprocess.Popen[str], line: str, started: Started) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise BenchError(f"{process.args!r} ended; logs in {started.directory}")
    return json.loads(answer)


# ---- calls --------------------------------------------------------------------------------------


def calls(workshop: Workshop, served: Service, count: int, say: Say) -> CallResult:
    """API, session, gateway, simulated device; and session, gateway, the same device."""
    guid = str(UUID_OF_PC)
    api: list[float] = []
    session: list[float] = []
    with workshop.started() as started, workshop.functions(Place(), 0.0) as ask:
        bundle = str(served.bundles / name_of(0))
        argv = [
            workshop.python,
            "-m",
            "tests.bench.functions",
            "gateway",
            f"127.0.0.1:{_LISTEN}",
            bundle,
        ]
        started.start(None, argv, environment=workshop.environment)
        argv = [workshop.python, "-m", "tests.bench.service", "reader"]
        reader = started.start(None, argv, talks=True, environment=workshop.environment)
        _until(lambda: served.ask("GET", f"/api/v1/devices/{guid}")["connectionStatus"], started)
        login = {"username": USER, "password": PASSWORD}
        first = {"function": "identity.get", "credential": login, "allow_password": True}
        served.ask("POST", f"/api/v1/devices/{guid}/call", {**first, "tls": "off"})
        served.ask("PUT", f"/api/v1/devices/{guid}/credential", login)
        before = _audit_entries(served)
        path = f"/api/v1/amt/power/state/{guid}"
        for _ in range(count):
            # One request, on a connection of its own as of a script.
            load = Load(f"127.0.0.1:{_HTTP}", path, 1, 0.0, served.token)
            api += _said(reader, msgspec.json.encode(load).decode(), started)["times"]
            session.append(ask(function="power.get", way=CALL)["seconds"])
        entries = (_audit_entries(served) - before) / len(api)
    result = CallResult(
        api=Spread.of(api),
        session=Spread.of(session),
        overhead_ms=round((statistics.median(api) - statistics.median(session)) * 1e3, 3),
        audit_entries=round(entries, 2),
    )
    say(
        f"  power.get {result.api.p50:.2f} ms by the API, {result.session.p50:.2f} ms by the"
        f" session; p99 {result.api.p99:.2f} and {result.session.p99:.2f};"
        f" {result.audit_entries:g} audit entries each"
    )
    return result


def _audit_entries(served: Service) -> int:
    with contextlib.closing(sqlite3.connect(served.state / "registry.db")) as db:
        (entries,) = db.execute("SELECT count(*) FROM audit").fetchone()
    return int(entries)


def _until(found: Callable[[], bool], started: Started) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if found():
            return
        time.sleep(0.1)
    raise BenchError(f"no gateway came; logs in {started.directory}")


# ---- gateways -----------------------------------------------------------------------------------


def connects(workshop: Workshop, served: Service, count: int, say: Say) -> ConnectResult:
    """TCP, TLS with a certificate, greeting, registry, welcome; then what each costs at rest."""
    with workshop.started() as started:
        argv = [workshop.python, "-m", "tests.bench.many_gateways", f"127.0.0.1:{_LISTEN}"]
        argv += [str(served.state), str(served.bundles)]
        many = started.start(None, argv, talks=True, environment=workshop.environment)
        first = min(_FIRST_SESSIONS, count // 2)
        _said(many, str(first), started)
        base, used = private_memory(served.pid), served.cpu
        begun = time.monotonic()
        _said(many, str(count), started)
        took, used = time.monotonic() - begun, served.cpu - used
        time.sleep(1.0)
        grown = private_memory(served.pid)
        up = sum(each["connectionStatus"] for each in served.ask("GET", "/api/v1/gateways"))
        if up != count:
            raise BenchError(f"{up} of {count} gateways are connected; logs in {started.directory}")
        many.kill()
    new = count - first
    result = ConnectResult(
        sessions=count,
        per_second=round(new / took, 1),
        cpu_ms_each=round(used / new * 1e3, 3),
        kib_each=round((grown - base) / new, 2),
        base_mib=round(base / 1024, 1),
    )
    say(
        f"  {result.per_second} gateways/s, {result.cpu_ms_each} ms of CPU and"
        f" {result.kib_each} KiB each"
    )
    return result


def storm(workshop: Workshop, served: Service, count: int, say: Say) -> StormResult:
    """As after a power cut behind a carrier's NAT: one address has all the strangers' places."""
    with workshop.started() as started:
        argv = [workshop.python, "-m", "tests.bench.many_gateways", f"127.0.0.1:{_LISTEN}"]
        argv += [str(served.state), str(served.bundles), str(count)]
        many = started.start(None, argv, talks=True, environment=workshop.environment)
        before = _refused(served)
        answer = _said(many, str(count), started)
        refused = _refused(served) - before
        many.kill()
    result = StormResult(count, round(answer["half"], 1), round(answer["all"], 1), refused)
    say(
        f"  {count} gateways at once: half after {result.half_seconds} s, all after"
        f" {result.all_seconds} s; {refused} were turned away on the way"
    )
    return result


def _refused(served: Service) -> int:
    async def request() -> str:
        connector = aiohttp.UnixConnector(str(served.api))
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.get("http://localhost/metrics") as answer,
        ):
            return await answer.text()

    (value,) = re.findall(r'strangers_cut_total\{port="link"\} (\S+)', asyncio.run(request()))
    return int(float(value))


def registrations(workshop: Workshop, served: Service, count: int, say: Say) -> RegistrationRow:
    with workshop.started() as started:
        argv = [workshop.python, "-m", "tests.bench.service", "notifier", f"127.0.0.1:{_LISTEN}"]
        argv += [str(served.bundles), str(_TELLING)]
        with pinned(min(os.sched_getaffinity(0))):
            notifier = started.start(None, argv, talks=True, environment=workshop.environment)
        _said(notifier, str(4 * _TELLING), started)
        before = served.cpu
        answer = _said(notifier, str(count), started)
        used = served.cpu - before
    told = answer["told"]
    row = RegistrationRow(
        served.engine,
        told,
        round(told / answer["seconds"], 1),
        round(used / told * 1e6, 1),
    )
    say(
        f"  {row.engine:10} {row.per_second:.0f} registrations/s committed,"
        f" {row.cpu_us_each:.0f} us of CPU each"
    )
    return row
