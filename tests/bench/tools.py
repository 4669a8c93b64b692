r"""What is compared: each tool gives the technician local ports that lead to the device's ports.

technician -> [ MSP end == connection == gateway end ] -> device
              \____ these processes are the tool ____/
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from gwmodule.msp.enrolment import write_atomically
from gwmodule.msp.pki import Authority, GatewayBundle
from tests.bench.msp_end import GATEWAY
from tests.lab.line import FAR_ADDRESS, NEAR_ADDRESS

ECHO, SINK, SOURCE = "echo", "sink", "source"
OURS, OURS_HERE = "gwmodule", "gwmodule, this Python"
SERVICES = (ECHO, SINK, SOURCE)
DEVICE_PORTS = {ECHO: 16994, SINK: 16995, SOURCE: 5900}
# Of the MSP's end, where a tool needs one of its own.
_LISTEN_PORT = 4433
_PATIENCE = 15.0

PROGRAMS = {"ssh": "openssh-client", "sshd": "openssh-server", "socat": "socat"}
PROGRAMS |= {"haproxy": "haproxy", "ip": "iproute2", "nsenter": "util-linux"}
_SBIN = "/usr/sbin"


class BenchError(Exception):
    """The measurement cannot be made; the message says what is missing or failed."""


def find(program: str) -> str:
    path = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")
    if path is None:
        raise BenchError(f"{program} is not installed")
    return path


def missing_packages() -> list[str]:
    search = f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"
    return [pkg for name, pkg in PROGRAMS.items() if shutil.which(name, path=search) is None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the two ends run: network namespaces (None: ours) and the MSP's address."""

    msp: Path | None = None
    gateway: Path | None = None
    address: str = "127.0.0.1"
    gateway_address: str = "127.0.0.1"

    @classmethod
    def on_line(cls, near: Path, far: Path) -> Place:
        """The gateway is near, the MSP far: upstream is what the gateway sends."""
        return cls(msp=far, gateway=near, address=FAR_ADDRESS, gateway_address=NEAR_ADDRESS)


def _distribution_python() -> str:
    """The interpreter that gateways and services run on: the distribution's, as its OpenSSH is.

    A CPython from somebody's own build may take twice the time (no profile-guided optimisation,
    a shared libpython). Another version cannot load what is installed for this one.
    """
    done = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
    )
    same = done.stdout.strip() == f"{sys.version_info.major} {sys.version_info.minor}"
    return "/usr/bin/python3" if same else sys.executable


def entering(namespace: Path | None, argv: Sequence[str]) -> list[str]:
    return [*argv] if namespace is None else ["nsenter", f"--net={namespace}", *argv]


@dataclass(slots=True)
class Started:
    """Processes of ours, ended in reverse order."""

    directory: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self,
        namespace: Path | None,
        argv: Sequence[str],
        *,
        talks: bool = False,
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """`talks`: it prints a line when it is ready, and ends when stdin closes."""
        log = (self.directory / f"{Path(argv[0]).name}-{len(self.processes)}.log").open("a")
        with log:
            process = subprocess.Popen(
                entering(namespace, argv),
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else log,
                stderr=log,
                text=True,
                env=None if environment is None else {**os.environ, **environment},
            )
        self.processes.append(process)
        if talks:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise BenchError(f"{argv[:4]} did not start: {Path(log.name).read_text()[-2000:]}")
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(slots=True)
class Tool:
    """A running tool: local port of each service, and the processes that carry it."""

    name: str
    ports: dict[str, int]
    processes: list[int] = field(default_factory=list)

    def cpu(self) -> float:
        """Seconds of processor time that its processes and their children have used."""
        return sum(_run_time(pid) for pid in _with_children(self.processes))


def _with_children(pids: Sequence[int]) -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(stat[1])
    found = set(pids)
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found
        found |= more


def _run_time(pid: int) -> float:
    """Nanosecond accounting of all threads; the clock ticks of `stat` are too coarse for this."""
    total = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


class Workshop:
    """Keys, certificates and directories, made once for a run of the bench."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        at = datetime.datetime.now(datetime.UTC).timestamp()
        self.at = at
        self.authority = Authority.open(directory / "msp", at)
        self.authority.ensure_server_certificate([FAR_ADDRESS, "127.0.0.1"], at)
        self.bundle = self.write_bundle(self.authority.gateway_bundle(GATEWAY, at))
        for name in ("user", "host"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(argv, check=True)
        shutil.copy(directory / "user.pub", directory / "authorized_keys")
        self.stats = str(directory / "stats.sock")
        self.python = _distribution_python()
        # Where it finds what is installed for this one.
        self.environment = {"PYTHONPATH": sysconfig.get_path("purelib")}
        self._runs = 0

    def write_bundle(self, bundle: GatewayBundle) -> Path:
        directory = self.directory / bundle.name
        directory.mkdir()
        write_atomically(directory / "gateway.crt", bundle.certificate.encode())
        write_atomically(directory / "gateway.key", bundle.key.encode())
        write_atomically(directory / "ca.crt", bundle.ca.encode())
        return directory

    def started(self) -> Started:
        """A place for processes, with their logs."""
        self._runs += 1
        directory = self.directory / f"run-{self._runs}"
        directory.mkdir()
        return Started(directory)

    # ---- the tools ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def device(self, namespace: Path | None) -> Iterator[None]:
        """The device itself, beside the gateway."""
        Path(self.stats).unlink(missing_ok=True)
        ports = [str(DEVICE_PORTS[service]) for service in SERVICES]
        with self.started() as started:
            argv = [sys.executable, "-m", "tests.bench.device", *ports, self.stats]
            started.start(namespace, argv, talks=True)
            yield

    @contextlib.contextmanager
    def direct(self, place: Place) -> Iterator[Tool]:
        """No tool at all: on one host only."""
        yield Tool("direct", dict(DEVICE_PORTS))

    @contextlib.contextmanager
    def socat(self, place: Place) -> Iterator[Tool]:
        """One plain hop, no encryption: what a single process costs."""
        ports = _local_ports(1)
        with self.started() as started:
            for service, port in ports.items():
                listen = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay"
                connect = f"TCP:127.0.0.1:{DEVICE_PORTS[service]},nodelay"
                started.start(place.msp, [find("socat"), listen, connect])
            yield _ready("socat", ports, started, place)

    @contextlib.contextmanager
    def plain_tcp(self, place: Place) -> Iterator[Tool]:
        """One TCP connection across the line, as fast as the kernel moves it."""
        ports = _local_ports(2)
        with self.started() as started:
            for service, port in ports.items():
                # The device's side of the line, reached by the technician without any relay would
                # be `direct`; across namespaces two socats lead to the two loopbacks.
                middle = port + 1000
                listen = f"TCP-LISTEN:{middle},bind={place.gateway_address},fork,reuseaddr,nodelay"
                connect = f"TCP:127.0.0.1:{DEVICE_PORTS[service]},nodelay"
                started.start(place.gateway, [find("socat"), "-b", "65536", listen, connect])
                listen = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay"
                connect = f"TCP:{place.gateway_address}:{middle},nodelay"
                started.start(place.msp, [find("socat"), "-b", "65536", listen, connect])
            yield _ready("plain TCP", ports, started, place)

    @contextlib.contextmanager
    def ssh(self, place: Place) -> Iterator[Tool]:
        """`ssh -R` from the gateway to the MSP: all forwarded ports share the connection."""
        ports = _local_ports(3)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        port = _LISTEN_PORT + 1
        with self.started() as started:
            config = started.directory / "sshd_config"
            config.write_text(
                f"Port {port}\nListenAddress {place.address}\n"
                f"HostKey {self.directory / 'host'}\n"
                f"AuthorizedKeysFile {self.directory / 'authorized_keys'}\n"
                "StrictModes no\nUsePAM no\nPasswordAuthentication no\n"
                "PermitRootLogin prohibit-password\nPidFile none\nPrintMotd no\n"
            )
            daemon = [find("sshd"), "-D", "-e", "-f", str(config)]
            started.start(place.msp, daemon)
            _wait_for(place.msp, place.address, port, started)
            client = [find("ssh"), "-N", "-F", "none", "-i", str(self.directory / "user")]
            for option in (
                "StrictHostKeyChecking=no",
                "UserKnownHostsFile=/dev/null",
                "ExitOnForwardFailure=yes",
                "BatchMode=yes",
            ):
                client += ["-o", option]
            for service, local in ports.items():
                client += ["-R", f"127.0.0.1:{local}:127.0.0.1:{DEVICE_PORTS[service]}"]
            started.start(place.gateway, [*client, "-p", str(port), f"root@{place.address}"])
            yield _ready("ssh -R", ports, started, place)

    @contextlib.contextmanager
    def haproxy(self, place: Place) -> Iterator[Tool]:
        """A pair of haproxies with TLS between them: two hops of the best C there is."""
        ports = _local_ports(4)
        pem = self.directory / "msp" / "haproxy.pem"
        state = self.authority.directory
        pem.write_bytes((state / "server.crt").read_bytes() + (state / "server.key").read_bytes())
        timeouts = "timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
        head = f"global\n nbthread 1\ndefaults\n mode tcp\n {timeouts}"
        near, far = head, head
        for service, port in ports.items():
            middle = port + 1000
            near += (
                f"listen {service}\n bind 127.0.0.1:{port}\n server far {place.address}:{middle}"
                f" ssl verify required ca-file {self.authority.ca_path}"
                " verifyhost gwmodule-msp\n"
            )
            far += (
                f"listen {service}\n bind {place.address}:{middle} ssl crt {pem}\n"
                f" server device 127.0.0.1:{DEVICE_PORTS[service]}\n"
            )
        with self.started() as started:
            for name, text in (("near", near), ("far", far)):
                config = started.directory / f"{name}.cfg"
                config.write_text(text)
                started.start(place.msp, [find("haproxy"), "-q", "-db", "-f", str(config)])
            yield _ready("haproxy TLS pair", ports, started, place)

    @contextlib.contextmanager
    def ours(self, place: Place) -> Iterator[Tool]:
        """The MSP's listener and session, the gateway's dialer and streams."""
        with self._ours(place, OURS, self.python, 5) as tool:
            yield tool

    @contextlib.contextmanager
    def ours_here(self, place: Place) -> Iterator[Tool]:
        """The same under the interpreter that runs the bench."""
        with self._ours(place, OURS_HERE, sys.executable, 6) as tool:
            yield tool

    @contextlib.contextmanager
    def _ours(self, place: Place, name: str, python: str, number: int) -> Iterator[Tool]:
        ports = _local_ports(number)
        classes = {ECHO: "INTERACTIVE", SINK: "BULK", SOURCE: "BULK"}
        forwards = [f"{ports[s]}:{DEVICE_PORTS[s]}:{classes[s]}" for s in SERVICES]
        listen = str(_LISTEN_PORT + number)
        state = str(self.authority.directory)
        with self.started() as started:
            msp = [python, "-m", "tests.bench.msp_end", place.address, listen, state, *forwards]
            started.start(place.msp, msp, talks=True, environment=self.environment)
            gateway = [python, "-m", "tests.bench.gateway_end", f"{place.address}:{listen}"]
            gateway.append(str(self.bundle))
            started.start(place.gateway, gateway, environment=self.environment)
            yield _ready(name, ports, started, place)

    @contextlib.contextmanager
    def functions(
        self, place: Place, think: float, devices: int = 1
    ) -> Iterator[Callable[..., Any]]:
        """Devices that think before each answer, a gateway and an MSP that is asked: `ask(...)`."""
        module = [self.python, "-m", "tests.bench.functions"]
        port = str(_LISTEN_PORT + 2)
        with self.started() as started:
            device = [*module, "device", str(think), str(devices)]
            started.start(place.gateway, device, talks=True, environment=self.environment)
            msp = started.start(
                place.msp,
                [*module, "msp", place.address, port, str(self.authority.directory)],
                talks=True,
                environment=self.environment,
            )
            started.start(
                place.gateway,
                [*module, "gateway", f"{place.address}:{port}", str(self.bundle)],
                environment=self.environment,
            )

            def ask(**asked: object) -> Any:
                assert msp.stdin is not None
                assert msp.stdout is not None
                msp.stdin.write(json.dumps(asked) + "\n")
                msp.stdin.flush()
                answer = msp.stdout.readline()
                if not answer:
                    raise BenchError(f"{asked} failed; logs in {started.directory}")
                return json.loads(answer)

            yield ask


def _local_ports(tool: int) -> dict[str, int]:
    return {service: 20000 + 100 * tool + n for n, service in enumerate(SERVICES)}


def _ready(name: str, ports: dict[str, int], started: Started, place: Place) -> Tool:
    """The tool, as soon as a byte typed into its echo port comes back."""
    deadline = time.monotonic() + _PATIENCE
    probe = [sys.executable, "-m", "tests.bench.technician", "probe", str(ports[ECHO])]
    while time.monotonic() < deadline:
        ended = [p for p in started.processes if p.poll() is not None]
        if ended:
            raise BenchError(f"{name}: {ended[0].args!r} ended; logs in {started.directory}")
        done = subprocess.run(
            entering(place.msp, probe), stdin=subprocess.DEVNULL, capture_output=True
        )
        if done.returncode == 0:
            return Tool(name, ports, [p.pid for p in started.processes])
        time.sleep(0.05)
    raise BenchError(f"{name} did not come up in {_PATIENCE:.0f} s; logs in {started.directory}")


def _wait_for(namespace: Path | None, host: str, port: int, started: Started) -> None:
    """Until something listens there, or its process has ended."""
    check = f"import socket; socket.create_connection(({host!r}, {port})).close()"
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and started.processes[-1].poll() is None:
        argv = entering(namespace, [sys.executable, "-c", check])
        if subprocess.run(argv, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    raise BenchError(f"nothing listens on {host} port {port}; logs in {started.directory}")
