"""The line between gateway and MSP, mistreated: nothing may be lost or doubled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gwmodule.sim.hosts import Lab, LabError, Service, wait_until
from gwmodule.sim.services import CONFIG, PASSWORD, UUIDS, System, merged, toml
from gwmodule.sim.topology import MANAGEMENT, TWO_WANS
from gwmodule.uplink.link import NOTSENT_LOWAT
from tests.lab.conftest import bring_up
from tests.lab.far_ends import content
from tests.lab.test_amtterm import Terminal

CUTS = int(os.environ.get("GWMODULE_CUTS", "100"))

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600 + 6 * CUTS)]

SECOND_MANAGEMENT = "10.20.0.3"
BULK_SIZE = 20 * 1024 * 1024
# The simulated firmware has the AMT ports; its PC may have one more for the test.
BULK_PORT = 17995

RESET_NFT = """
table ip unkind {
  chain forward {
    type filter hook forward priority -10;
    tcp dport 8444 reject with tcp reset
    tcp sport 8444 reject with tcp reset
  }
}
"""
FLUSH_CONNTRACK = """
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket
with NFCTSocket() as conntrack:
    conntrack.flush()
"""


SETTINGS: dict[str, Any] = {
    "uplink": {"source": ""},
    "streams": {"extra_ports": [str(BULK_PORT)]},
}


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """As everywhere, but the link follows its interface's address, whatever that is."""
    with Lab(TWO_WANS) as lab:
        lab.run("gateway", ["ip", "rule", "add", "from", SECOND_MANAGEMENT, "lookup", "20"])
        system = System(lab)
        bring_up(system, **SETTINGS)
        yield system


def forward(system: System, pc: str, port: int, local: int, *options: str) -> Service:
    argv = system.technician_command(
        "forward", UUIDS[pc], str(port), "--listen", f"127.0.0.1:{local}", *options
    )
    service = system.lab.start("msp", argv, log=f"forward-{local}")

    def listens() -> bool:
        if not service.alive:
            raise LabError(service.tail())
        return f"127.0.0.1:{local}" in system.lab.run("msp", ["ss", "-ltnH"]).stdout

    wait_until(f"the forwarded port {local}", listens, 15)
    return service


def wait_listening(service: Service) -> None:
    wait_until("the device listens", lambda: "listening" in service.log.read_text(), 20)


def start(system: System, host: str, name: str, *arguments: str) -> Service:
    # By path: the hosts do not stand in the repository.
    script = str(Path(__file__).with_name("far_ends.py"))
    return system.lab.start(host, [sys.executable, script, *arguments], log=name)


def outcome(service: Service, timeout: float) -> dict[str, object]:
    """The JSON line that a far end leaves behind."""
    wait_until(f"the end of {service.log.name}", lambda: not service.alive, timeout)
    last = Path(service.log).read_text(errors="replace").strip().splitlines()[-1]
    result: dict[str, object] = json.loads(last)
    return result


class Unkindness:
    """Four ways in which a line breaks; each heals by itself."""

    def __init__(self, system: System, seed: int) -> None:
        self._system = system
        self._random = random.Random(seed)
        self._moved = False
        self.kinds = [self.reset, self.silence, self.forget, self.move]

    def strike(self) -> None:
        self._random.choice(self.kinds)()
        time.sleep(self._random.uniform(0.1, 0.8))

    def reset(self) -> None:
        """A firewall that answers for both ends with RST."""
        self._system.lab.run("nat", ["nft", "-f", "-"], stdin=RESET_NFT)
        time.sleep(self._random.uniform(0.05, 0.4))
        self._system.lab.run("nat", ["nft", "delete", "table", "ip", "unkind"])

    def silence(self) -> None:
        """Nothing comes through, and nobody is told: shorter and longer than the deadline."""
        with self._system.lab.wan_cut():
            time.sleep(self._random.choice([0.3, 1.0, 2.5]))

    def forget(self) -> None:
        """The NAT between ISP and MSP restarts and knows no connection any more."""
        self._system.lab.run("nat", [sys.executable, "-c", FLUSH_CONNTRACK])

    def move(self) -> None:
        """The ISP gives the gateway another address."""
        old, new = MANAGEMENT, SECOND_MANAGEMENT
        if self._moved:
            old, new = new, old
        self._moved = not self._moved
        # In this order: a second address of the same network would go with the first.
        lines = f"address del {old}/24 dev mgmt\naddress add {new}/24 dev mgmt\n"
        lines += "route replace default via 10.20.0.1 dev mgmt table 20\n"
        self._system.lab.run("gateway", ["ip", "-batch", "-"], stdin=lines)


def assert_nothing_lost(console: Service) -> None:
    """Let the technician stop; each line was echoed and answered once, in its turn."""
    console.process.terminate()
    shown = outcome(console, 120)
    assert shown["ended"] == ""
    lines, screen = shown["typed"], str(shown["screen"])
    assert isinstance(lines, int)
    assert lines > 100
    # What the machine said before the first line is the prompt it was at.
    assert screen[screen.index("line-1") :] == "".join(
        f"line-{n}\r\nline-{n}: not found\r\nrecovery> " for n in range(1, lines + 1)
    )


def test_a_hundred_cuts_lose_and_double_nothing(system: System) -> None:
    source = start(
        system, "pc2", "source", "source", system.lab.address("pc2"), str(BULK_PORT), "7",
        str(BULK_SIZE), str(max(BULK_SIZE // CUTS, 100_000)),
    )  # fmt: skip
    wait_listening(source)
    for pc, port, local, options in (
        ("pc1", 16994, 26994, ["--hold"]),
        ("pc2", BULK_PORT, 26995, []),
    ):
        forward(system, pc, port, local, *options)
    console = start(system, "msp", "console", "console", "26994", PASSWORD, "65000")
    sink = start(system, "msp", "sink", "sink", "26995", str(BULK_SIZE))
    before = system.status()["link"]["counters"]
    unkind = Unkindness(system, seed=20261124)
    for _ in range(CUTS):
        unkind.strike()
        assert console.alive, console.tail()
    status = system.wait_for_link()
    bulk = outcome(sink, 240)
    assert bulk == {
        "received": BULK_SIZE,
        "expected": BULK_SIZE,
        "sha256": hashlib.sha256(content(7, BULK_SIZE)).hexdigest(),
    }
    assert_nothing_lost(console)
    counters = status["link"]["counters"]
    assert counters["sessions"] == before["sessions"]
    assert counters["resumes"] - before.get("resumes", 0) >= CUTS // 4


@contextlib.contextmanager
def amtterm(system: System, local: int) -> Iterator[Terminal]:
    argv = ["amtterm", "-p", PASSWORD, "127.0.0.1", str(local)]
    terminal = Terminal(system.lab.command("msp", argv))
    try:
        terminal.wait_for("serial-over-lan redirection ok", 20)
        yield terminal
    finally:
        terminal.close()


def test_a_held_session_outlives_forty_seconds_and_an_unheld_one_says_why_not(
    system: System,
) -> None:
    """rx_timeout 10 s, as amtterm asks for; silence, not a closed connection."""
    # pc1 has the recovery prompt that the console's script knows.
    forward(system, "pc2", 16994, 27001, "--hold")
    forward(system, "pc1", 16994, 27002, "--hold")
    forward(system, "pc3", 16994, 27003)
    # Our terminal's own client, forced to amtterm's ten seconds.
    console = start(system, "msp", "held", "console", "27002", PASSWORD, "10000")
    with amtterm(system, 27001) as held, amtterm(system, 27003) as unheld:
        held.type("before\r")
        held.wait_for("Hello, before", 10)
        unheld.type("before\r")
        unheld.wait_for("before", 10)
        wait_until("all three sessions", lambda: system.status()["streams"] == 3, 15)
        time.sleep(2)  # The console is past its login and types, also while nothing comes through.
        with system.lab.wan_cut():
            time.sleep(40)
        system.wait_for_link()
        held.type("after\r")
        held.wait_for("after: not found", 20)
        assert held.process.poll() is None
        unheld.wait_for("(?i)timeout|closed|error|end", 30)
        assert unheld.process.wait(20) is not None
    assert_nothing_lost(console)


def takes_no_more(system: System) -> bool:
    """The gateway's kernel, of what goes to the MSP (ss(8)): its buffer is full, or what it has not
    sent yet is at our own mark.
    """
    argv = ["ss", "-timnH", "state", "established", "dport", "=", ":8444"]
    seen = system.lab.run("gateway", argv).stdout
    sizes = re.search(r"\bskmem:\(.*\btb(\d+),.*\bw(\d+),", seen)
    assert sizes is not None, seen
    limit, queued = map(int, sizes.groups())
    unsent = re.search(r"\bnotsent:(\d+)", seen)
    return queued >= limit or (unsent is not None and int(unsent[1]) >= NOTSENT_LOWAT)


def test_a_dead_line_is_found_with_full_send_buffers(system: System) -> None:
    """The default timers, not the lab's short ones; the link waits for a kernel that is full."""
    # The hundred cuts' device may still hold the port.
    port = BULK_PORT + 1
    flood = start(
        system, "pc2", "flood", "source", system.lab.address("pc2"), str(port), "1",
        str(512 * 1024 * 1024), str(10 * 1024 * 1024),
    )  # fmt: skip
    wait_listening(flood)
    # It floods a line that is dead already, with a whole window of credit, which is more than the
    # kernel takes: on a line that works, a slow tool may use it up, and nothing is left to send.
    flood.process.send_signal(signal.SIGSTOP)
    slow = {"liveness": {"interval": 4.0, "timeout": 12.0}, "streams": {"extra_ports": [str(port)]}}
    with restarted(system, slow):
        forward(system, "pc2", port, 27995)
        start(system, "msp", "flood-sink", "sink", "27995", "0")
        wait_until("the stream", lambda: system.status()["streams"] == 1, 20)
        log = system.lab.services["gwmodule"].log
        with system.lab.wan_cut():
            cut_at, before = time.monotonic(), log.stat().st_size
            assert not takes_no_more(system)
            flood.process.send_signal(signal.SIGCONT)
            wait_until("full buffers", lambda: takes_no_more(system), 6)
            # By its log: to ask for its status takes a busy machine seconds.
            wait_until("the end of the link", lambda: b"link_down" in log.read_bytes()[before:], 30)
            found = time.monotonic() - cut_at
        assert found <= 15, f"found after {found:.1f} s"
        system.wait_for_link()


@contextlib.contextmanager
def restarted(system: System, settings: dict[str, object]) -> Iterator[None]:
    """The gateway's service with other settings, and back again."""
    before = CONFIG.read_text()
    tree = merged(tomllib.loads(before), settings)
    for text in (toml(tree), before):
        system.lab.services["gwmodule"].stop()
        CONFIG.write_text(text)
        system.start_gateway()
        if text is not before:
            yield
