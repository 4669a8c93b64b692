"""A simulated device for programs that know nothing of this project."""

import asyncio
import contextlib
import importlib
import os
import shutil
from collections.abc import AsyncIterator
from types import ModuleType
from uuid import UUID

import pytest

from gwmodule.sim.device import ANY_PORTS, SimulatedDevice
from gwmodule.sim.machine import Machine
from gwmodule.sim.profiles import PROFILES
from gwmodule.sim.redirection import Login

PASSWORD = "P@ssw0rd"


def binary(name: str) -> str:
    """The path of `name`; without it, the test is skipped, but never in CI."""
    path = shutil.which(name)
    if path is None:
        missing(f"{name} is not installed")
    assert path is not None
    return path


def library(name: str) -> ModuleType:
    """The module `name`; without it, the test is skipped, but never in CI."""
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        missing(f"the Python package {name} is not installed: {exc}")
        raise


def missing(problem: str) -> None:
    """Skip the test; in CI, where nothing may be missing, fail it."""
    if os.environ.get("CI"):
        pytest.fail(f"{problem} and CI must have it")
    pytest.skip(problem)


@contextlib.asynccontextmanager
async def device(
    profile: str = "amt12", *, os_alive: bool = True
) -> AsyncIterator[SimulatedDevice]:
    machine = Machine(
        UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea"),
        PASSWORD,
        now=asyncio.get_running_loop().time(),
        profile=PROFILES[profile],
        os_alive=os_alive,
        serial_pace=0.05,
    )
    async with SimulatedDevice("127.0.0.1", machine, ports=ANY_PORTS, login=Login.BOTH) as running:
        yield running


async def run(*argv: str, given: bytes = b"", **environment: str) -> tuple[int, str]:
    """Exit status and everything that the program said."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    output, _ = await process.communicate(given)
    return process.returncode or 0, output.decode(errors="replace")
