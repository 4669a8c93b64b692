"""Name resolution that nobody has to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading


async def resolve(host: str) -> str:
    """The first IPv4 address of `host`; OSError when there is none.

    In a thread of its own that nobody waits for: the loop's executor would hold up our exit for as
    long as a resolver takes to give up.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()

    def settle(address: str, error: OSError | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(address)
        else:
            answer.set_exception(error)

    def work() -> None:
        address, failure = "", None
        try:
            infos = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
            address = str(infos[0][4][0])
        except (OSError, UnicodeError) as exc:
            failure = exc if isinstance(exc, OSError) else OSError(f"{host!r} is no host name")
        # RuntimeError: the loop was closed meanwhile, and with it whoever asked.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, address, failure)

    threading.Thread(target=work, name=f"resolve {host}", daemon=True).start()
    return await answer
