"""The gateway's process as far as a stream is concerned: the product's Dialer and Streams.

    python -m tests.bench.gateway_end MSP_HOST:PORT BUNDLE_DIRECTORY

Left out is what no stream passes: netlink, capture, notices, policy. Devices are on our loopback.
Like the product on a gateway it runs on the standard library's loop.
"""

from __future__ import annotations

import asyncio
import random
import socket
import sys
from ipaddress import IPv4Address
from pathlib import Path

from gwmodule.config import Config, MspPeerConfig, TlsConfig
from gwmodule.relay.streams import Streams
from gwmodule.telemetry import Counters, start_logging
from gwmodule.uplink.dialer import Dialer, GatewaySession
from gwmodule.wire.events import (
    ChannelAccepted,
    ChannelEnded,
    ChannelOpened,
    ChannelWritable,
    DataReceived,
    EofReceived,
    Event,
)
from gwmodule.wire.messages import StreamTarget

SERVER_NAME = "gwmodule-msp"


def configuration(msp: str, bundle: Path) -> Config:
    return Config(
        msp=MspPeerConfig(address=(msp,), server_name=SERVER_NAME),
        tls=TlsConfig(
            certificate=str(bundle / "gateway.crt"),
            key=str(bundle / "gateway.key"),
            cafile=str(bundle / "ca.crt"),
        ),
    )


async def dial(address: IPv4Address, port: int, _mac: bytes) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
    return sock


class Gateway:
    """Sends a session's events where gwmodule.gateway sends them."""

    def __init__(self, config: Config, tasks: asyncio.TaskGroup) -> None:
        self.dialer = Dialer(config, self, tasks, random.Random())
        self._streams = Streams(dial, tasks, config.streams.max_streams, Counters())

    def session_up(self, session: GatewaySession, fresh: bool) -> None:
        """Nothing was observed, so there is nothing to say."""

    def in_use(self, session: GatewaySession) -> bool:
        return self._streams.uses(session)

    def session_event(self, session: GatewaySession, event: Event) -> None:
        match event:
            case DataReceived(channel, data):
                self._streams.data_received(session, channel, data)
            case ChannelOpened(channel, _, target) if isinstance(target, StreamTarget):
                self._streams.opened(session, channel, target)
            case ChannelWritable(channel) | ChannelAccepted(channel):
                self._streams.writable(session, channel)
            case EofReceived(channel):
                self._streams.eof_received(session, channel)
            case ChannelEnded(channel, _, reason):
                self._streams.ended(session, channel, reason)
            case _:
                pass


async def run(config: Config) -> None:
    async with asyncio.TaskGroup() as tasks:
        gateway = Gateway(config, tasks)
        tasks.create_task(gateway.dialer.run(), name="dialer")


if __name__ == "__main__":
    start_logging("warning")
    asyncio.run(run(configuration(sys.argv[1], Path(sys.argv[2]))))
