"""Recorded answers of real devices through a real HTTP server: every value must come out."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from gwmodule.amt.client import WsmanClient
from gwmodule.amt.functions import CATALOGUE, Context, Result, validate
from gwmodule.wire.frames import CredentialMode
from gwmodule.wire.messages import Credential
from tests.amt.replay import (
    PASSWORD,
    SERVER,
    USERNAME,
    DeviceServer,
    Recordings,
    dial_to,
    recordings,
)

THEIR_UUID = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")


@pytest.fixture
def recorded() -> Recordings:
    return recordings()


@pytest.fixture
async def client(recorded: Recordings) -> AsyncIterator[WsmanClient]:
    credential = Credential(CredentialMode.PASSWORD, USERNAME, PASSWORD)
    async with DeviceServer(recorded).serving() as server:
        dial = dial_to({16992: server.port})
        deadline = asyncio.get_running_loop().time() + 15
        async with WsmanClient(dial, credential, deadline=deadline) as client:
            yield client


async def call(client: WsmanClient, name: str, **arguments: object) -> Result:
    function = CATALOGUE[name]
    context = Context(sleep=asyncio.sleep, uuid=THEIR_UUID)
    return await function.run(client, validate(function, arguments), context)


async def test_identity(client: WsmanClient) -> None:
    assert await call(client, "identity.get") == {
        "uuid": str(THEIR_UUID),
        "version": "12.0.67",
        "build": "1579",
        "sku": "16392",
        "provisioning_mode": 1,
        "provisioning_mode_name": "admin control",
        "provisioning_state": 2,
        "provisioning_state_name": "post",
        "realm": "Digest:F3EB554784E729164447A89F60B641C5",
        "host_name": "Test Host Name",
        "domain_name": "Test Domain Name",
    }
    assert client.facts.server == SERVER


async def test_power_state_and_what_is_available(client: WsmanClient) -> None:
    result = await call(client, "power.get")
    assert (result["power_state"], result["power_state_name"]) == (2, "on")
    available = [each["state"] for each in result["available"]]
    assert available == [10, 8, 5, 11, 4, 7, 14, 12]
    assert [each["name"] for each in result["available"]][:3] == ["reset", "off", "cycle"]


async def test_power_is_changed_after_the_uuid_was_checked(
    client: WsmanClient, recorded: Recordings
) -> None:
    result = await call(client, "power.set", state="reset", wait=2)
    assert result["verified"]
    assert ("AMT_SetupAndConfigurationService", "getuuid") in recorded.asked
