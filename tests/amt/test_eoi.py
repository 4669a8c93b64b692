import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.amt.connection import HttpAnswer
from gwmodule.amt.digest import Authenticator
from gwmodule.amt.eoi import (
    NAMESPACES,
    POWER_CYCLE,
    POWER_UP,
    REMOTE_CONTROL,
    RESET,
    SOAP11,
    SPECIAL_COMMANDS,
    EoiClient,
    EoiDevice,
    EoiOnly,
    build_call,
    build_headers,
    parse_response,
)
from gwmodule.amt.functions import Context, find, validate
from gwmodule.errors import AmtError, DeviceAnswerError, DeviceRefused, WsmanFault
from gwmodule.sim.boot import BootSource
from gwmodule.sim.http import HttpServer
from gwmodule.sim.machine import Machine, PowerState
from gwmodule.sim.profiles import PROFILES
from gwmodule.wire.frames import CredentialMode
from gwmodule.wire.messages import Credential

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
PASSWORD = "P@ssw0rd"


class Device:
    """An AMT 2 without a network: digest and HTTP, but no sockets."""

    def __init__(self, profile: str = "amt2") -> None:
        self.machine = Machine(PC, PASSWORD, now=0.0, profile=PROFILES[profile])
        self.reads: list[bool] = []
        self._server = HttpServer(self.machine, lambda: "nonce")
        credential = Credential(CredentialMode.PASSWORD, "admin", PASSWORD, "")
        self._login = Authenticator(credential, lambda: "cnonce")

    async def post(
        self, path: str, headers: list[tuple[str, str]], body: bytes, *, reads: bool
    ) -> HttpAnswer:
        self.reads.append(reads)
        for _ in range(2):
            authorization = self._login.authorize("POST", path, body) or ""
            answer = self._server.respond("POST", path, authorization, body, 0.0)
            if answer.status != 401:
                break
            self._login.challenged([dict(answer.headers)["WWW-Authenticate"]])
        answered = [(name.lower(), value) for name, value in answer.headers]
        return HttpAnswer(answer.status, answered, answer.body)

    @property
    def client(self) -> EoiClient:
        return EoiClient(self.post)


async def test_an_old_device_tells_its_version_name_and_capabilities() -> None:
    device = Device()
    assert await device.client.version() == "2.2.20"
    assert await device.client.host_name() == "pc"
    assert (await device.client.capabilities())["SystemCapabilitiesSupported"] == 0x0F
    assert device.reads == [True] * 3


async def test_power_is_read_and_changed() -> None:
    device = Device()
    assert await device.client.power_state() == 0
    await device.client.remote_control(POWER_CYCLE)
    assert await device.client.power_state() == 5
    assert device.reads[1] is False, "what changes state is never sent twice"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pxe", BootSource.NETWORK),
        ("hdd", BootSource.HARD_DRIVE),
        ("cd", BootSource.DISC),
        ("diagnostics", BootSource.DIAGNOSTIC),
    ],
)
async def test_a_reset_boots_from_where_it_was_told(name: str, source: BootSource) -> None:
    device = Device()
    await device.client.remote_control(RESET, SPECIAL_COMMANDS[name])
    assert device.machine.last_plan.source is source


async def test_a_refusal_has_its_status() -> None:
    with pytest.raises(DeviceRefused, match="invalid special command") as refused:
        await Device().client.remote_control(RESET, SPECIAL_COMMANDS["hdd-safe"])
    assert refused.value.return_value == 0x804
    with pytest.raises(DeviceRefused, match="internal error"):
        await Device().client.remote_control(POWER_UP)


async def test_newer_firmware_has_no_such_service() -> None:
    with pytest.raises(DeviceAnswerError, match="HTTP 404"):
        await Device("amt9").client.version()


async def test_the_power_functions_do_not_notice() -> None:
    device = Device()

    async def call(name: str, **arguments: object) -> dict[str, object]:
        function = find(name)
        context = Context(sleep=lambda seconds: asyncio.sleep(0))
        return await function.run(EoiDevice(device.client), validate(function, arguments), context)

    assert (await call("power.get"))["power_state_name"] == "on"
    assert (await call("power.set", state="off", wait=3))["verified"]
    assert device.machine.power is PowerState.OFF
    assert (await call("power.get"))["available"] == [{"state": 2, "name": "on"}]
    assert (await call("power.set", state="on", wait=3))["verified"]
    assert device.machine.boots == 1
    with pytest.raises(EoiOnly, match="power request 12"):
        await call("power.set", state=12)


OTHER: list[Callable[[EoiDevice], Awaitable[object]]] = [
    lambda device: device.get("CIM_Chassis"),
    lambda device: device.put("CIM_Chassis", {}),
    lambda device: device.delete("CIM_Chassis", {}),
    lambda device: device.enumerate("CIM_Chassis"),
    lambda device: device.invoke("AMT_SetupAndConfigurationService", "GetUuid"),
]


@pytest.mark.parametrize("operation", OTHER)
async def test_everything_else_is_refused_by_name(
    operation: Callable[[EoiDevice], Awaitable[object]],
) -> None:
    with pytest.raises(EoiOnly, match="older than WS-Man"):
        await operation(EoiDevice(Device().client))


async def test_the_version_is_found_where_functions_look_for_it() -> None:
    [software] = await EoiDevice(Device().client).enumerate("CIM_SoftwareIdentity")
    assert software == {"InstanceID": "AMT", "VersionString": "2.2.20"}


async def test_a_power_state_out_of_range_is_no_state() -> None:
    async def post(
        path: str, headers: list[tuple[str, str]], body: bytes, *, reads: bool
    ) -> HttpAnswer:
        inner = "<Status>0</Status><SystemPowerState>9</SystemPowerState>"
        return HttpAnswer(
            200, [("content-type", "text/xml")], response("GetSystemPowerState", inner)
        )

    with pytest.raises(DeviceAnswerError, match="is 9"):
        await EoiDevice(EoiClient(post)).get("CIM_AssociatedPowerManagementService")


def response(call: str, inner: str) -> bytes:
    return (
        f'<s:Envelope xmlns:s="{SOAP11}"><s:Body>'
        f'<{call}Response xmlns="{NAMESPACES[REMOTE_CONTROL]}">{inner}</{call}Response>'
        "</s:Body></s:Envelope>"
    ).encode()


def test_a_call_names_its_action() -> None:
    headers = dict(build_headers(REMOTE_CONTROL, "RemoteControl"))
    assert headers["SOAPAction"].endswith('/RemoteControl/2004/01#RemoteControl"')
    body = build_call(REMOTE_CONTROL, "RemoteControl", {"Command": 16, "Note": "<&>"})
    assert b"<Command>16</Command><Note>&lt;&amp;&gt;</Note>" in body


def test_members_nest_and_repeat() -> None:
    inner = "<Status>0</Status><A>1</A><A>2</A><A>3</A><B><C>4</C></B>"
    members = parse_response("Get", response("Get", inner))
    assert members == {"Status": "0", "A": ["1", "2", "3"], "B": {"C": "4"}}


FAULT = (
    f'<s:Envelope xmlns:s="{SOAP11}"><s:Body><s:Fault><faultcode>s:Client</faultcode>'
    "<faultstring>no</faultstring></s:Fault></s:Body></s:Envelope>"
).encode()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"<a/>", DeviceAnswerError),
        (b"", DeviceAnswerError),
        (FAULT, WsmanFault),
        (response("Other", "<Status>0</Status>"), DeviceAnswerError),
        (response("Get", ""), DeviceAnswerError),
        (response("Get", "<Status>x</Status>"), DeviceAnswerError),
        (response("Get", "<Status>99999999999</Status>"), DeviceAnswerError),
        (response("Get", "<Status>2049</Status>"), DeviceRefused),
    ],
)
def test_what_is_no_answer_is_a_typed_error(data: bytes, error: type[AmtError]) -> None:
    with pytest.raises(error):
        parse_response("Get", data)


@given(st.binary(max_size=100), st.integers(0, 200))
def test_garbage_raises_nothing_else(garbage: bytes, cut: int) -> None:
    good = response("Get", "<Status>0</Status><A>1</A>")
    for data in (garbage, good[:cut] + garbage + good[cut:]):
        try:
            parse_response("Get", data)
        except AmtError:
            continue
