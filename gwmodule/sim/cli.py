"""`gwmodule-sim`: one simulated PC, the person in front of it, and the lab."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import importlib
import json
import logging
import random
import signal
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from uuid import UUID

from gwmodule import __version__
from gwmodule.errors import GatewayError
from gwmodule.sim.control import DEFAULT_PATH, request
from gwmodule.sim.device import Ports, SimulatedDevice
from gwmodule.sim.hello import HELLO_PORT, HelloTarget
from gwmodule.sim.machine import Machine, Nic, Provisioning
from gwmodule.sim.profiles import PROFILES
from gwmodule.sim.redirection import Login

# Their modules bring namespaces and a gateway along, so they are imported only to be run.
COMPOSITIONS = {
    "lab": "build the lab of network namespaces and leave it running",
    "demo": "run the main job in the lab, narrate it, end with one JSON line",
}
MAX_PORT_OFFSET = 65535 - 16995


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when something failed, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser(arguments[0] if arguments else "").parse_args(arguments)
    try:
        match args.command:
            case "device":
                return asyncio.run(_run_device(args))
            case "activate" | "state":
                print(json.dumps(request(args.control, args.command)))
                return 0
            case "enter":
                lab = importlib.import_module("gwmodule.sim.lab")
                return int(lab.enter(args.host, args.argv))
            case _:
                composition = importlib.import_module(f"gwmodule.sim.{args.command}")
                return int(composition.main(args))
    except GatewayError as exc:
        print(f"gwmodule-sim: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """The whole command line; manual page and shell completion are made from it."""
    return _parser(None)


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gwmodule-sim", description=__doc__)
    parser.add_argument("--version", action="version", version=f"gwmodule-sim {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_device(commands.add_parser("device", help="run one PC with AMT until SIGTERM or Ctrl-C"))
    activate = commands.add_parser(
        "activate", help="provision the PC, as the person in front of it"
    )
    state = commands.add_parser("state", help="print the PC's power and provisioning state")
    for subparser in (activate, state):
        subparser.add_argument("--control", type=Path, default=DEFAULT_PATH, metavar="PATH")
    for name, text in COMPOSITIONS.items():
        subparser = commands.add_parser(name, help=text, description=text)
        if command in (name, None):
            importlib.import_module(f"gwmodule.sim.{name}").add_arguments(subparser)
    enter = commands.add_parser("enter", help="run a command in one host of the running lab")
    enter.add_argument("host", metavar="HOST")
    enter.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND", help="default: a shell")
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bind", type=_address, required=True, metavar="ADDRESS")
    parser.add_argument("--uuid", type=UUID, required=True)
    parser.add_argument("--password", required=True, help="of the user admin")
    parser.add_argument(
        "--hello",
        type=_hello_target,
        metavar="HOST[:PORT]",
        help=f"where Hellos go in state setup (port {HELLO_PORT} unless given)",
    )
    parser.add_argument(
        "--hello-interval", type=float, default=3.0, metavar="SECONDS", help="default: 3"
    )
    parser.add_argument("--port-offset", type=_port_offset, default=0, metavar="N")
    parser.add_argument("--login", choices=[login.value for login in Login], default="digest")
    parser.add_argument("--state", choices=[p.value for p in Provisioning], default="managed")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="amt12")
    parser.add_argument("--os", choices=["alive", "dead"], default="alive")
    parser.add_argument(
        "--bios-console",
        choices=["always", "on-request"],
        default="always",
        help="when the BIOS writes to the serial line: at every boot, or if UseSOL asks for it",
    )
    parser.add_argument(
        "--events", choices=["none", "full"], default="none", help="what the event log holds"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of consent codes and bad moods; default: the UUID"
    )
    parser.add_argument("--hostname", default="pc", help="what the login prompt says")
    parser.add_argument("--mac", type=_mac, metavar="MAC", help="default: made from the UUID")
    parser.add_argument(
        "--control",
        type=Path,
        default=DEFAULT_PATH,
        metavar="PATH",
        help=f"unix socket for `activate` and `state` (default {DEFAULT_PATH})",
    )
    parser.add_argument("-v", "--verbose", action="store_true")


async def _run_device(args: argparse.Namespace) -> int:
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="gwmodule-sim: %(message)s",
    )
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    mac = args.mac or b"\x02" + args.uuid.bytes[-5:]
    machine = Machine(
        args.uuid,
        args.password,
        now=loop.time(),
        wall=datetime.datetime.now(datetime.UTC).timestamp(),
        provisioning=Provisioning(args.state),
        profile=PROFILES[args.profile],
        nic=Nic(mac, args.bind),
        hostname=args.hostname,
        os_alive=args.os == "alive",
        bios_speaks=args.bios_console == "always",
        rng=random.Random(args.uuid.int if args.seed is None else args.seed),
    )
    if args.events == "full":
        machine.events.fill(machine.seconds)
    device = SimulatedDevice(
        args.bind,
        machine,
        ports=Ports.with_offset(args.port_offset),
        login=Login(args.login),
        hello=args.hello,
        hello_interval=args.hello_interval,
        control=args.control,
    )
    async with device:
        ports = device.ports
        tcp = (ports.wsman, ports.wsman_tls, ports.redirection, ports.redirection_tls)
        print(
            f"gwmodule-sim: {args.uuid} ({args.state}) listens on {args.bind}, ports"
            f" {' '.join(str(each) for each in tcp if each)} and UDP {ports.rmcp}",
            flush=True,
        )
        await stop.wait()
    return 0


def _address(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is no IPv4 address") from exc


def _port_offset(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_PORT_OFFSET:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and {MAX_PORT_OFFSET}")
    return int(text)


def _hello_target(text: str) -> HelloTarget:
    host, _, port = text.partition(":")
    if not host or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST or HOST:PORT")
    return HelloTarget(host, int(port) if port else HELLO_PORT)


def _mac(text: str) -> bytes:
    try:
        mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6:
        raise argparse.ArgumentTypeError(f"{text!r} is no MAC address")
    return mac


if __name__ == "__main__":
    sys.exit(main())
