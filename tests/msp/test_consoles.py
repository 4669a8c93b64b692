import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest

from gwmodule.errors import ChannelReset, Code
from gwmodule.msp import secured
from gwmodule.msp import sol as sol_module
from gwmodule.msp.console_protocol import State, Want
from gwmodule.msp.consoles import (
    ConsoleEnded,
    ConsoleRefused,
    Consoles,
    ConsoleSettings,
    Line,
    Place,
    Status,
    Viewer,
)
from gwmodule.msp.sol import SolLogin
from gwmodule.msp.sol_log import Mark
from gwmodule.sim.device import ANY_PORTS, SimulatedDevice
from gwmodule.sim.machine import Machine
from gwmodule.wire.frames import Priority
from gwmodule.wire.messages import StreamTarget
from tests.msp.conftest import IP, MAC, NOW, PC, FakeSession, FakeSessions, TcpStream

PASSWORD = "P@ssw0rd"
SMALL = ConsoleSettings(kept=4096, unread=1024, window=512, stall=0.3, detached=0.5)


class Browser:
    """Takes what its viewer gives and acknowledges it, unless told not to."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.start = viewer.offset
        self.data = b""
        self.marks: list[str] = []
        self.gaps = 0
        self.status: Status | None = None
        self.reads = True
        self.ended: ConsoleEnded | None = None
        self._changed = asyncio.Event()

    async def run(self) -> None:
        try:
            while True:
                match await self.viewer.next_item():
                    case bytes() as data:
                        self.data += data
                        if self.reads:
                            self.viewer.acknowledge(self.start + len(self.data))
                    case Mark() as mark:
                        self.marks.append(mark.text)
                        self.gaps += mark.gap
                    case Status() as status:
                        self.status = status
                self._changed.set()
        except ConsoleEnded as exc:
            self.ended = exc
            self._changed.set()

    async def wait(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(8):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def see(self, text: bytes) -> None:
        await self.wait(lambda: text in self.data)

    @property
    def place(self) -> Place:
        return Place(
            self.viewer.console, self.viewer.seat, self.start + len(self.data), len(self.marks)
        )


class Desk:
    """Consoles over a fake gateway with a simulated PC behind it."""

    def __init__(self, device: SimulatedDevice, consoles: Consoles, session: FakeSession) -> None:
        self.device = device
        self.consoles = consoles
        self.session = session
        self.streams: list[TcpStream] = []
        self.audit: list[tuple[str, str]] = []
        self.details: list[dict[str, Any]] = []
        self.password = PASSWORD
        self.tasks: asyncio.TaskGroup
        session.open = self._open

    async def _open(self, target: StreamTarget, priority: Priority) -> TcpStream:
        assert priority is Priority.INTERACTIVE
        assert target.hold
        port = {16994: self.device.ports.redirection}[target.port]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self.streams.append(TcpStream(reader, writer, priority))
        return self.streams[-1]

    async def attach(
        self,
        name: str = "ann",
        place: Place | None = None,
        *,
        may_type: bool = True,
        tenant: str = "default",
        device: UUID = PC,
    ) -> Browser:
        async def find_line() -> Line:
            return Line("home1", IP, MAC, PC, SolLogin("admin", self.password))

        async def audit(actor: str, action: str, detail: dict[str, Any]) -> None:
            self.audit.append((actor, action))
            self.details.append(detail)

        viewer = await self.consoles.attach(
            tenant, device, name, place or Place(), find_line, audit, may_type=may_type
        )
        browser = Browser(viewer)
        self.tasks.create_task(browser.run())
        return browser


@asynccontextmanager
async def desk_with(settings: ConsoleSettings) -> AsyncIterator[Desk]:
    machine = Machine(
        PC, PASSWORD, now=asyncio.get_running_loop().time(), hostname="pc", serial_pace=0.01
    )
    session = FakeSession()
    consoles = Consoles(FakeSessions(session), lambda: NOW, settings)
    async with SimulatedDevice("127.0.0.1", machine, ports=ANY_PORTS) as device:
        desk = Desk(device, consoles, session)
        lifetime = asynccontextmanager(consoles.lifetime)
        async with asyncio.TaskGroup() as desk.tasks, lifetime():
            yield desk
        for stream in desk.streams:
            stream.reset(Code.OK, "")


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with desk_with(ConsoleSettings(detached=0.5)) as desk:
        yield desk


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sol_module, "REOPEN_DELAYS", (0.05,))
    monkeypatch.setattr(secured, "LINGER", 0.2)


async def test_the_first_technician_types_and_sees_the_echo(desk: Desk) -> None:
    browser = await desk.attach()
    await browser.see(b"login: ")
    assert await browser.viewer.type(b"root\r")
    await browser.see(b"Hello, root.")
    status = browser.status
    assert status is not None
    assert (status.state, status.writer, status.holder, status.stream) == (
        State.OPEN, True, "ann", 2,
    )  # fmt: skip
    assert browser.marks == ["connected"]
    assert ("ann", "console.open") in desk.audit


async def test_a_second_one_watches_and_is_told_who_holds_it(desk: Desk) -> None:
    first = await desk.attach("ann")
    await first.see(b"login: ")
    second = await desk.attach("bob")
    await second.see(b"login: ")
    assert not await second.viewer.type(b"x")
    await second.wait(lambda: second.status)
    assert second.status is not None
    assert (second.status.writer, second.status.holder) == (False, "ann")
    assert second.status.since == NOW
    assert len(desk.streams) == 1
    assert ("bob", "console.watch") in desk.audit


async def test_a_takeover_gives_the_seat_away_and_says_so_to_both(desk: Desk) -> None:
    first, second = await desk.attach("ann"), await desk.attach("bob")
    await first.see(b"login: ")
    await second.viewer.take_over()
    await first.wait(lambda: first.status and not first.status.writer)
    assert first.status is not None
    assert first.status.holder == "bob"
    assert not await first.viewer.type(b"x")
    assert await second.viewer.type(b"bob\r")
    await first.see(b"Hello, bob.")
    assert "bob took over from ann" in first.marks
    assert ("bob", "console.takeover") in desk.audit


async def test_a_viewer_role_neither_opens_nor_takes_over(desk: Desk) -> None:
    with pytest.raises(ConsoleRefused, match="nobody has this console open"):
        await desk.attach("eve", may_type=False)
    await desk.attach("ann")
    watcher = await desk.attach("eve", may_type=False)
    with pytest.raises(ConsoleRefused, match="only look"):
        await watcher.viewer.take_over()
    with pytest.raises(ConsoleRefused):
        await watcher.viewer.hang_up()
    assert not await watcher.viewer.type(b"x")


async def test_a_browser_that_drops_goes_on_at_its_offset_in_its_seat(desk: Desk) -> None:
    browser = await desk.attach()
    await browser.see(b"login: ")
    place = browser.place
    browser.viewer.detach()
    other = await desk.attach("bob")
    await other.see(b"login: ")
    assert not await other.viewer.type(b"x")
    again = await desk.attach("ann", place)
    assert again.viewer.lost == 0
    assert await again.viewer.type(b"root\r")
    await again.see(b"Hello, root.")
    whole = browser.data + again.data
    await other.see(whole[-20:])
    assert other.data == whole
    assert len(desk.streams) == 1


async def test_a_browser_that_attaches_again_replaces_its_dead_socket(desk: Desk) -> None:
    browser = await desk.attach()
    await browser.see(b"login: ")
    again = await desk.attach("ann", browser.place)
    await browser.wait(lambda: browser.ended)
    assert browser.ended is not None
    assert browser.ended.code is Code.REPLACED
    browser.viewer.detach()
    assert await again.viewer.type(b"x")


async def test_a_seat_is_not_for_somebody_else_who_learned_its_key(desk: Desk) -> None:
    browser = await desk.attach("ann")
    thief = await desk.attach("bob", browser.place)
    assert not await thief.viewer.type(b"x")


async def test_without_viewers_the_session_ends_after_a_while(desk: Desk) -> None:
    browser = await desk.attach()
    await browser.see(b"login: ")
    browser.viewer.detach()
    async with asyncio.timeout(5):
        while len(desk.consoles):
            await asyncio.sleep(0.05)
    assert ("ann", "console.close") in desk.audit
    assert "nobody looked" in desk.details[-1]["reason"]
    fresh = await desk.attach("ann", browser.place)
    assert fresh.start == 0
    await fresh.see(b"login: ")


async def test_a_lost_session_is_opened_again_and_the_gap_is_marked(desk: Desk) -> None:
    browser = await desk.attach()
    await browser.see(b"login: ")
    desk.streams[0].cut(Code.SESSION_LOST, "the gateway restarted")
    await browser.wait(lambda: "opened again" in browser.marks)
    assert browser.marks[1] == "the gateway restarted: output between may be missing"
    assert browser.gaps == 1
    assert await browser.viewer.type(b"root\r")
    await browser.see(b"Hello, root.")


async def test_a_gateway_that_is_away_at_the_start_ends_it_in_words(desk: Desk) -> None:
    desk.consoles.sessions = FakeSessions()
    browser = await desk.attach()
    await browser.wait(lambda: browser.ended)
    assert str(browser.ended) == "gateway home1 is not connected"


async def test_after_a_restart_of_the_service_the_gateway_is_waited_for(desk: Desk) -> None:
    """Who was there before comes with the place that the service before it gave him."""
    desk.consoles.sessions = gateways = FakeSessions()
    browser = await desk.attach(place=Place(console="of-the-service-before"))
    await browser.wait(lambda: browser.status and browser.status.state is State.LOST)
    assert browser.status is not None
    assert browser.status.reason == "gateway home1 is not connected"
    gateways.by_gateway[desk.session.gateway] = desk.session
    await browser.see(b"login: ")
    assert browser.ended is None


async def test_a_fault_of_ours_ends_one_console_and_says_so(desk: Desk) -> None:
    async def fail(*_: object) -> None:
        raise KeyError("a bug")

    desk.session.open = fail
    browser = await desk.attach()
    await browser.wait(lambda: browser.ended)
    assert browser.ended is not None
    assert browser.ended.code is Code.INTERNAL


async def test_a_policy_refusal_ends_it_with_its_code(desk: Desk) -> None:
    async def refuse(*_: object) -> None:
        raise ChannelReset(Code.REFUSED_POLICY, "the neighbour has another MAC")

    desk.session.open = refuse
    browser = await desk.attach()
    await browser.wait(lambda: browser.ended)
    assert browser.ended is not None
    assert browser.ended.code is Code.REFUSED_POLICY


async def test_a_wrong_password_ends_it_in_words(desk: Desk) -> None:
    desk.password = "wrong"
    browser = await desk.attach()
    await browser.wait(lambda: browser.ended)
    assert "password" in str(browser.ended)
    assert browser.status is not None
    assert browser.status.state is State.CLOSED


async def test_hanging_up_ends_it_for_all(desk: Desk) -> None:
    first, second = await desk.attach("ann"), await desk.attach("bob")
    await first.see(b"login: ")
    with pytest.raises(ConsoleRefused, match="somebody else"):
        await second.viewer.hang_up()
    await first.viewer.hang_up()
    await second.wait(lambda: second.ended)
    assert str(second.ended) == "closed by ann"
    assert second.data.endswith(b"login: ")


async def test_the_way_is_measured_in_two_parts(desk: Desk) -> None:
    browser = await desk.attach()
    await browser.see(b"login: ")
    desk.session.rtt = 0.0
    async with asyncio.timeout(5):
        while browser.viewer.latency()[1] is None:
            await asyncio.sleep(0.05)
    gateway, device = browser.viewer.latency()
    assert gateway == 0.0
    assert device is not None
    assert 0 <= device < 5


async def flood(desk: Desk, browser: Browser, lines: int) -> None:
    for _ in range(lines):
        await browser.viewer.type(b"x" * 60 + b"\r")


async def test_what_the_holder_has_not_shown_holds_the_device_back() -> None:
    async with desk_with(ConsoleSettings(kept=32768, unread=4096, window=2048, stall=5)) as desk:
        browser = await desk.attach()
        await browser.see(b"login: ")
        browser.reads = False
        desk.tasks.create_task(flood(desk, browser, 200))
        console = next(iter(desk.consoles._open.values()))
        await browser.wait(lambda: console.log.end - browser.viewer.acknowledged > 4096)
        await asyncio.sleep(0.5)
        held = console.log.end
        # One chunk beyond the mark, and nothing was overwritten.
        assert 4096 < held - browser.viewer.acknowledged <= 4096 + 4096
        assert console.log.start <= browser.viewer.acknowledged
        browser.reads = True
        browser.viewer.acknowledge(browser.start + len(browser.data))
        await browser.wait(lambda: len(browser.data) > 200 * 60)


async def test_a_watcher_that_falls_behind_is_dropped_and_the_holder_is_not() -> None:
    async with desk_with(ConsoleSettings(kept=16384, unread=4096, window=2048, stall=5)) as desk:
        holder, watcher = await desk.attach("ann"), await desk.attach("bob")
        await holder.see(b"login: ")
        watcher.reads = False
        desk.tasks.create_task(flood(desk, holder, 200))
        await watcher.wait(lambda: watcher.ended)
        assert watcher.ended is not None
        assert watcher.ended.code is Code.LIMIT
        watcher.viewer.detach()
        await holder.wait(lambda: len(holder.data) > 200 * 60)
        assert holder.ended is None


async def test_a_browser_that_takes_nothing_is_dropped_after_a_while() -> None:
    async with desk_with(SMALL) as desk:
        browser = await desk.attach()
        browser.reads = False
        await browser.wait(lambda: browser.ended)
        assert browser.ended is not None
        assert browser.ended.code is Code.TIMEOUT


async def test_an_impossible_acknowledgement_is_refused(desk: Desk) -> None:
    browser = await desk.attach()
    for offset in (-1, 10**9):
        with pytest.raises(ConsoleRefused, match="expected 0 to"):
            browser.viewer.acknowledge(offset)


async def test_consoles_and_viewers_are_bounded() -> None:
    async with desk_with(ConsoleSettings(consoles=0)) as desk:
        with pytest.raises(ConsoleRefused, match="consoles are open"):
            await desk.attach()
    async with desk_with(ConsoleSettings(viewers=1)) as desk:
        first = await desk.attach()
        with pytest.raises(ConsoleRefused, match="look at this console"):
            await desk.attach("bob")
        # Its own dead connection is in nobody's way.
        await desk.attach("ann", first.place)


async def test_one_tenant_leaves_consoles_to_the_others() -> None:
    async with desk_with(ConsoleSettings(consoles=8)) as desk:
        done = asyncio.Event()

        async def wait(*_: object) -> None:
            await done.wait()
            raise ChannelReset(Code.UNREACHABLE, "not now")

        async def fill(tenant: str) -> int:
            for opened in range(9):
                try:
                    await desk.attach(tenant=tenant, device=uuid4())
                except ConsoleRefused:
                    return opened
            return 9

        desk.session.open = wait
        assert [await fill(tenant) for tenant in ("a", "b", "c")] == [4, 2, 1]
        # Who has none finds room, and who has one open comes back to it.
        await desk.attach(tenant="d", device=PC)
        await desk.attach(tenant="d", device=PC)
        done.set()


async def unreachable(*_: object) -> None:
    raise ChannelReset(Code.UNREACHABLE, "not now")


async def test_who_attaches_to_a_console_that_ends_gets_the_next_one(desk: Desk) -> None:
    first = await desk.attach("ann")
    await first.see(b"login: ")
    await first.viewer.hang_up()
    second = await desk.attach("bob")
    assert second.viewer.console != first.viewer.console
    await second.see(b"login: ")
    assert await second.viewer.type(b"bob\r")
    await second.see(b"Hello, bob.")


async def test_a_seat_is_taken_over_while_the_link_is_down(desk: Desk) -> None:
    first, second = await desk.attach("ann"), await desk.attach("bob")
    await first.see(b"login: ")
    reachable, desk.session.open = desk.session.open, unreachable
    desk.streams[0].cut(Code.SESSION_LOST, "the gateway restarted")
    await second.wait(lambda: second.status and second.status.state is State.LOST)
    await second.viewer.take_over()
    desk.session.open = reachable
    await second.wait(lambda: "opened again" in second.marks)
    assert await second.viewer.type(b"bob\r")
    await first.see(b"Hello, bob.")
    assert not await first.viewer.type(b"x")


async def test_of_two_takeovers_at_once_one_has_the_seat(desk: Desk) -> None:
    await desk.attach("ann")
    bob, eve = await desk.attach("bob"), await desk.attach("eve")
    await asyncio.gather(bob.viewer.take_over(), eve.viewer.take_over())
    await bob.wait(lambda: bob.status and bob.status.holder == "eve")
    assert [await each.viewer.type(b"x") for each in (bob, eve)] == [False, True]
    assert bob.viewer.seat == ""


async def test_a_watcher_neither_opens_a_console_nor_takes_a_free_seat(desk: Desk) -> None:
    with pytest.raises(ConsoleRefused, match="nobody has this console open"):
        await desk.attach("bob", Place(want=Want.WATCH))
    first = await desk.attach("ann")
    watcher = await desk.attach("bob", Place(want=Want.WATCH))
    first.viewer.detach()
    await watcher.wait(lambda: watcher.status and watcher.status.holder == "")
    again = await desk.attach("bob", Place(want=Want.WATCH))
    assert again.viewer.seat == ""


async def test_who_attaches_for_a_takeover_has_the_seat_at_once(desk: Desk) -> None:
    first = await desk.attach("ann")
    await first.see(b"login: ")
    second = await desk.attach("bob", Place(want=Want.TAKEOVER))
    assert await second.viewer.type(b"bob\r")
    await first.see(b"Hello, bob.")
    assert "bob took over from ann" in first.marks


async def test_a_newcomer_sees_as_much_of_the_log_as_he_asks_for(desk: Desk) -> None:
    first = await desk.attach("ann")
    await first.see(b"login: ")
    some = await desk.attach("bob", Place(tail=7))
    none = await desk.attach("bob", Place(tail=0))
    await some.see(b"login: ")
    assert (some.data, some.viewer.lost) == (b"login: ", 0)
    await first.viewer.type(b"root\r")
    await none.see(b"Hello, root.")
    assert first.data.endswith(none.data)
    assert b"login: " not in none.data
    assert none.marks == []


async def test_a_viewer_whose_attachment_fails_leaves_no_seat_behind(desk: Desk) -> None:
    async def find_line() -> Line:
        return Line("home1", IP, MAC, PC, SolLogin("admin", PASSWORD))

    async def audit(*_: object) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        await desk.consoles.attach("default", PC, "ann", Place(), find_line, audit, may_type=True)
    async with asyncio.timeout(5):
        while desk.consoles.seat("default", PC) is not None:
            await asyncio.sleep(0.05)


async def test_nobody_opens_a_console_of_a_service_that_stops(desk: Desk) -> None:
    browser = await desk.attach()
    await browser.see(b"login: ")
    desk.consoles.stop()
    with pytest.raises(ConsoleRefused, match="the service stops") as caught:
        await desk.attach("bob")
    assert caught.value.code is Code.SHUTDOWN
    await browser.wait(lambda: browser.ended)
    assert browser.ended is not None
    # A browser comes back after that, and not after an end that was meant.
    assert browser.ended.code is Code.SHUTDOWN


async def test_output_that_trickles_does_not_keep_a_browser_that_takes_nothing() -> None:
    async with desk_with(SMALL) as desk:
        browser = await desk.attach()
        browser.reads = False
        await browser.wait(lambda: browser.data)
        console = next(iter(desk.consoles._open.values()))
        async with asyncio.timeout(5):
            while browser.ended is None:
                console.sol_data(b".")
                await asyncio.sleep(0.1)
        assert browser.ended.code is Code.TIMEOUT


async def test_at_the_service_s_end_every_browser_is_told() -> None:
    async with desk_with(ConsoleSettings()) as desk:
        browser = await desk.attach()
        await browser.see(b"login: ")
    assert browser.ended is not None
    assert str(browser.ended) == "the service stops"
