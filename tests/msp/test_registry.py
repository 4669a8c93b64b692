import random
from ipaddress import IPv4Address
from uuid import UUID

import pytest

from gwmodule.msp import registry as registry_module
from gwmodule.msp import tables
from gwmodule.msp.database import Database, StatementError
from gwmodule.msp.observations import AUDIT_BURST, AUDIT_EVERY, Observations
from gwmodule.msp.records import Device, Gateway, Host, Origin, Seen, State
from gwmodule.msp.registry import LinkDown, LinkUp, Observed, Registry, RegistryConflict
from gwmodule.wire.frames import TlsMode
from gwmodule.wire.notices import (
    NO_MAC,
    Digest,
    Gone,
    Hello,
    Lease,
    LeaseEnd,
    Observation,
    Presence,
    Provisioning,
    Source,
)

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
OTHER = UUID("00112233-4455-6677-8899-aabbccddeeff")
MAC = bytes.fromhex("020000000001")
MAC2 = bytes.fromhex("020000000002")
IP = IPv4Address("192.168.1.10")
IP2 = IPv4Address("192.168.1.11")
PIN = bytes(range(32))
PIN2 = bytes(range(1, 33))
NAT = ("203.0.113.7", 40000)


@pytest.fixture
async def registry(database: Database) -> Registry:
    registry = Registry(database)
    for name in ("home1", "home2"):
        await registry.add_gateway(name, name, 0.0)
    return registry


async def tell(
    registry: Registry,
    observation: Observation,
    at: float,
    *,
    age: float = 0.0,
    gateway: str = "home1",
) -> None:
    await registry.record([Observed(gateway, *NAT, observation, age, at)])


def hello(mac: bytes = MAC, address: IPv4Address = IP, uuid: UUID = PC) -> Hello:
    return Hello(uuid, address, mac, 3, 0, Source.LISTENER, b"raw hello")


def answer(
    mac: bytes = MAC,
    address: IPv4Address = IP,
    *,
    state: Provisioning = Provisioning.POST,
    pin: bytes = bytes(32),
    realm: str = "Digest:1",
    uuid: UUID | None = None,
) -> Presence:
    return Presence(mac, address, state, (16992, 16994), realm, "AMT 12", pin, uuid)


async def known(registry: Registry, uuid: UUID = PC) -> Device:
    device = await registry.device(uuid)
    assert device is not None
    return device


async def actions(registry: Registry) -> list[str]:
    entries = await registry.audit_entries()
    return [entry.action for entry in reversed(entries)]


async def test_a_hello_registers_a_device_with_its_gateway_as_seen_past_nat(
    registry: Registry,
) -> None:
    await tell(registry, hello(), 100.0)
    device = await known(registry)
    assert device.state is State.SETUP
    assert (device.address, device.mac, device.gateway) == (IP, MAC, "home1")
    assert (device.gateway_address, device.gateway_port) == NAT
    assert (device.first_seen, device.source) == (100.0, Origin.HELLO)
    assert (await actions(registry))[-1] == "device.registered"


async def test_devices_are_counted_by_state(registry: Registry) -> None:
    assert await registry.states() == dict.fromkeys(State, 0)
    await tell(registry, hello(), 100.0)
    await tell(registry, hello(mac=bytes(6), uuid=OTHER), 100.0)
    assert await registry.states() == dict.fromkeys(State, 0) | {State.SETUP: 2}


async def test_nobody_sees_what_is_not_committed(registry: Registry, database: Database) -> None:
    async with database.transaction() as db:
        await Observations(db).apply(hello(), Seen("default", "home1", *NAT, 1.0, 1.0))
        assert await registry.device(PC) is None
    assert await registry.device(PC) is not None


async def test_one_bad_event_undoes_the_whole_batch(registry: Registry) -> None:
    good = Observed("home1", *NAT, hello(), 0.0, 1.0)
    bad = Observed("home1", "203.0.113.7", 1 << 70, hello(uuid=OTHER), 0.0, 1.0)
    with pytest.raises(StatementError):
        await registry.record([good, bad])
    assert await registry.devices() == []


async def test_a_uuid_is_found_in_either_byte_order(registry: Registry) -> None:
    await tell(registry, hello(), 1.0)
    assert await registry.device(UUID(bytes_le=PC.bytes)) == await registry.device(PC)


async def test_the_address_follows_the_lease_of_the_same_host(registry: Registry) -> None:
    await tell(registry, hello(), 100.0)
    await tell(registry, Lease(MAC, IP2, 3600, "pc"), 110.0)
    device = await known(registry)
    assert (device.address, device.hostname, device.last_seen) == (IP2, "pc", 110.0)


async def test_an_older_notice_never_overwrites_a_newer_one(registry: Registry) -> None:
    await tell(registry, Lease(MAC, IP2, 3600, "new"), 100.0)
    await tell(registry, hello(address=IP2), 100.0)
    await tell(registry, Lease(MAC, IP, 3600, "old"), 120.0, age=50.0)
    await tell(registry, hello(), 120.0, age=60.0)
    host = await registry.host("home1", MAC)
    assert host is not None
    assert (host.address, host.hostname) == (IP2, "new")
    assert (await known(registry)).address == IP2


@pytest.mark.parametrize("seed", range(12))
async def test_in_any_order_the_newest_observation_decides(registry: Registry, seed: int) -> None:
    chance = random.Random(seed)
    await tell(registry, hello(), 10.0)
    for number in chance.sample(range(6), 6):
        address = IPv4Address(f"192.168.1.{100 + number}")
        lease, presence = Lease(MAC, address, 60), answer(address=address)
        place: Observation = chance.choice((lease, presence))
        await tell(registry, place, 200.0, age=100.0 - number)
    assert (await known(registry)).address == IPv4Address("192.168.1.105")


async def test_a_clock_that_was_set_back_does_not_freeze_the_records(registry: Registry) -> None:
    await tell(registry, hello(), 1_000_000.0)
    await tell(registry, Lease(MAC, IP2, 60), 500.0)
    assert (await known(registry)).address == IP2


async def test_a_hello_without_mac_takes_it_from_what_the_lan_said(registry: Registry) -> None:
    await tell(registry, Lease(MAC, IP, 3600, "pc"), 99.0)
    await tell(registry, hello(mac=NO_MAC), 100.0)
    assert (await known(registry)).mac == MAC


async def test_a_hello_without_mac_learns_it_from_a_later_lease(registry: Registry) -> None:
    await tell(registry, hello(mac=NO_MAC), 100.0)
    assert (await known(registry)).mac is None
    await tell(registry, Lease(MAC, IP, 3600), 101.0)
    assert (await known(registry)).mac == MAC


async def test_a_presence_answer_makes_a_device_managed(registry: Registry) -> None:
    await tell(registry, hello(), 100.0)
    await tell(registry, answer(pin=PIN), 110.0)
    device = await known(registry)
    assert (device.state, device.realm, device.pin) == (State.MANAGED, "Digest:1", PIN)
    assert device.answered_at == 110.0
    assert (await actions(registry))[-1] == "device.managed"


@pytest.mark.parametrize("state", [Provisioning.PRE, Provisioning.IN])
async def test_an_answer_that_denies_provisioning_does_not(
    registry: Registry, state: Provisioning
) -> None:
    await tell(registry, hello(), 100.0)
    await tell(registry, answer(state=state), 110.0)
    assert (await known(registry)).state is State.SETUP


async def test_a_repeated_old_hello_does_not_unmanage_a_device(registry: Registry) -> None:
    await tell(registry, hello(), 100.0)
    await tell(registry, answer(), 110.0)
    await tell(registry, hello(), 140.0, age=40.0)
    assert (await known(registry)).state is State.MANAGED


async def test_a_new_hello_of_a_managed_device_means_setup_again(registry: Registry) -> None:
    await tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    await tell(registry, hello(), 200.0)
    device = await known(registry)
    assert (device.state, device.pin) == (State.SETUP, PIN)


async def test_option_97_and_an_answer_make_a_device(registry: Registry) -> None:
    await tell(registry, Lease(MAC, IP, 3600, "pc", PC), 100.0)
    assert await registry.device(PC) is None
    await tell(registry, answer(), 110.0)
    device = await known(registry)
    assert (device.state, device.source, device.hostname) == (State.MANAGED, Origin.LEASE, "pc")


@pytest.mark.parametrize(("realm", "state"), [("Digest:1", State.MANAGED), ("", State.FOUND)])
async def test_a_login_prompt_says_managed_where_rmcp_is_silent(
    registry: Registry, realm: str, state: State
) -> None:
    await tell(registry, answer(state=Provisioning.UNKNOWN, realm=realm, uuid=PC), 100.0)
    assert (await known(registry)).state is state


async def test_a_host_that_answers_without_uuid_is_a_candidate_until_it_is_identified(
    registry: Registry,
) -> None:
    await tell(registry, Lease(MAC2, IP2, 3600, "printer"), 100.0)
    await tell(registry, answer(pin=PIN), 100.0)
    assert [host.mac for host in await registry.candidates()] == [MAC]
    device = await registry.identified("home1", MAC, PC, 120.0, actor="anna", realm="Digest:2")
    assert await registry.candidates() == []
    assert (device.state, device.proved_at, device.pin) == (State.MANAGED, 120.0, PIN)
    assert (device.source, device.realm) == (Origin.IDENTITY, "Digest:2")


async def test_in_setup_the_newest_hello_of_its_gateway_wins(registry: Registry) -> None:
    await tell(registry, hello(), 100.0)
    await tell(registry, hello(mac=MAC2, address=IP2), 110.0)
    device = await known(registry)
    assert (device.mac, device.address, device.contested) == (MAC2, IP2, False)


@pytest.mark.parametrize(
    "claim", [hello(), answer(uuid=PC, state=Provisioning.PRE)], ids=["hello", "presence"]
)
async def test_a_claim_from_another_gateway_is_contested_even_in_setup(
    registry: Registry, claim: Observation
) -> None:
    await tell(registry, hello(), 100.0)
    await tell(registry, claim, 110.0, gateway="home2")
    device = await known(registry)
    assert (device.gateway, device.contested, device.claim_gateway) == ("home1", True, "home2")


@pytest.mark.parametrize(
    "claim",
    [hello(mac=MAC2, address=IP2), answer(mac=MAC2, address=IP2, uuid=PC, pin=PIN2)],
    ids=["hello", "presence"],
)
@pytest.mark.parametrize("gateway", ["home1", "home2"])
async def test_words_never_move_a_managed_device(
    registry: Registry, claim: Observation, gateway: str
) -> None:
    await tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    for at in (110.0, 120.0, 130.0):
        await tell(registry, claim, at, gateway=gateway)
    device = await known(registry)
    assert (device.gateway, device.mac, device.address, device.pin) == ("home1", MAC, IP, PIN)
    assert (device.claim_gateway, device.claim_mac) == (gateway, MAC2)
    assert (await actions(registry)).count("device.contested") == 1


async def test_to_have_no_certificate_either_proves_nothing(registry: Registry) -> None:
    await tell(registry, answer(uuid=PC), 100.0)
    await tell(registry, answer(mac=MAC2, address=IP2, uuid=PC), 110.0)
    device = await known(registry)
    assert (device.mac, device.contested, device.claim_mac) == (MAC, True, MAC2)


async def test_an_old_claim_from_elsewhere_is_not_even_a_claim(registry: Registry) -> None:
    await tell(registry, answer(uuid=PC), 100.0)
    await tell(registry, hello(mac=MAC2), 110.0, age=60.0, gateway="home2")
    assert not (await known(registry)).contested


async def test_its_pinned_certificate_moves_a_device_within_its_home(registry: Registry) -> None:
    await tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    await tell(registry, answer(mac=MAC2, address=IP2, uuid=PC, pin=PIN), 110.0)
    device = await known(registry)
    assert (device.gateway, device.mac, device.contested) == ("home1", MAC2, False)
    assert (await actions(registry))[-1] == "device.moved"


async def test_another_gateway_that_names_the_pin_moves_nothing(registry: Registry) -> None:
    """A certificate is public, and the MSP has only that gateway's word for having seen it."""
    await tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    await tell(registry, answer(mac=MAC2, address=IP2, uuid=PC, pin=PIN), 110.0, gateway="home2")
    device = await known(registry)
    assert (device.gateway, device.mac, device.contested) == ("home1", MAC, True)
    with pytest.raises(RegistryConflict, match="belongs to gateway home1"):
        await registry.identified("home2", MAC2, PC, 120.0, actor="anna")
    assert (await known(registry)).gateway == "home1"


async def test_a_forged_hello_does_not_make_a_managed_device_anybodys(registry: Registry) -> None:
    await tell(registry, answer(uuid=PC), 100.0)
    await tell(registry, hello(), 110.0)
    await tell(registry, hello(mac=MAC2), 120.0)
    device = await known(registry)
    assert (device.mac, device.contested) == (MAC, True)


async def test_one_mac_names_only_so_many_devices(registry: Registry) -> None:
    for number in range(50):
        await tell(registry, hello(uuid=UUID(int=number + 1)), 10.0 + number)
    assert len(await registry.devices()) == tables.MAX_DEVICES_PER_MAC
    assert registry.refused == 50 - tables.MAX_DEVICES_PER_MAC


async def test_another_certificate_at_the_same_place_is_contested_and_not_believed(
    registry: Registry,
) -> None:
    await tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    await tell(registry, answer(pin=PIN2, realm="Digest:evil"), 110.0)
    device = await known(registry)
    assert device.contested
    assert (device.pin, device.realm) == (PIN, "Digest:1")


async def test_a_pinned_device_keeps_pin_and_realm_when_it_answers_in_plain(
    registry: Registry,
) -> None:
    await tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    await tell(registry, answer(realm="Digest:evil"), 110.0)
    device = await known(registry)
    assert (device.pin, device.realm, device.answered_at) == (PIN, "Digest:1", 110.0)


async def test_an_identity_with_another_certificate_is_refused(registry: Registry) -> None:
    await tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    await tell(registry, answer(mac=MAC2, pin=PIN2), 110.0)
    with pytest.raises(RegistryConflict, match="pinned"):
        await registry.identified("home1", MAC2, PC, 120.0, actor="anna")
    assert (await known(registry)).mac == MAC


async def test_an_identity_settles_a_contested_device_where_it_was_proved(
    registry: Registry,
) -> None:
    await tell(registry, answer(uuid=PC), 100.0)
    await tell(registry, hello(mac=MAC2), 110.0, gateway="home2")
    await registry.identified("home1", MAC, PC, 120.0, actor="anna")
    device = await known(registry)
    assert (device.contested, device.gateway) == (False, "home1")
    assert (await actions(registry))[-1] == "device.confirmed"


async def test_an_identity_at_an_unknown_host_is_refused(registry: Registry) -> None:
    with pytest.raises(RegistryConflict, match="unknown at gateway"):
        await registry.identified("home1", MAC, PC, 1.0, actor="anna")


async def test_unpinning_trusts_the_next_certificate(registry: Registry) -> None:
    await tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    await registry.unpin(PC, 105.0, actor="anna")
    await tell(registry, answer(pin=PIN2, realm="Digest:2"), 110.0)
    device = await known(registry)
    assert (device.pin, device.realm, device.contested) == (PIN2, "Digest:2", False)


async def test_a_successful_call_makes_a_device_managed(registry: Registry) -> None:
    await tell(registry, hello(), 100.0)
    await registry.call_succeeded(PC, 110.0)
    assert (await known(registry)).state is State.MANAGED


async def test_a_neighbour_that_is_gone_comes_back_with_its_next_answer(registry: Registry) -> None:
    await tell(registry, answer(uuid=PC), 100.0)
    await tell(registry, Gone(MAC, IP), 110.0)
    assert (await known(registry)).gone_at == 110.0
    await tell(registry, answer(), 120.0)
    assert (await known(registry)).gone_at is None
    await tell(registry, Gone(MAC, IP), 130.0, age=15.0)
    assert (await known(registry)).gone_at is None


async def test_the_end_of_a_lease_is_kept_with_the_host(registry: Registry) -> None:
    await tell(registry, Lease(MAC, IP, 3600), 100.0)
    await tell(registry, LeaseEnd(MAC, IP2), 105.0)
    await tell(registry, LeaseEnd(MAC, IP), 110.0)
    host = await registry.host("home1", MAC)
    assert host is not None
    assert host.lease_until == 110.0


async def test_a_device_that_moves_in_setup_keeps_the_certificate_it_showed(
    registry: Registry,
) -> None:
    await tell(registry, answer(uuid=PC, pin=PIN, state=Provisioning.PRE), 100.0)
    await tell(registry, hello(mac=MAC2, address=IP2), 110.0)
    device = await known(registry)
    assert (device.mac, device.pin) == (MAC2, PIN)


async def test_unpinning_forgets_claims_and_how_the_device_was_spoken_to(
    registry: Registry,
) -> None:
    await tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    await registry.call_succeeded(PC, 105.0, tls=TlsMode.LEGACY)
    await tell(registry, hello(mac=MAC2), 110.0, gateway="home2")
    assert (await known(registry)).contested
    device = await registry.unpin(PC, 120.0, actor="anna")
    assert device is not None
    assert (device.contested, device.tls, device.realm) == (False, TlsMode.AUTO, "")


async def host_of(registry: Registry) -> Host:
    host = await registry.host("home1", MAC)
    assert host is not None
    return host


@pytest.mark.parametrize(
    ("late", "at"),
    [
        (answer(realm="Digest:old", state=Provisioning.PRE), 90.0),
        (LeaseEnd(MAC, IP), 90.0),
        (LeaseEnd(MAC, IP2), 110.0),
        (Gone(MAC, IP), 90.0),
        (Gone(MAC, IP2), 110.0),
    ],
    ids=["older answer", "end of an older lease", "of another's", "gone before", "from elsewhere"],
)
async def test_what_is_late_or_of_another_address_changes_neither_host_nor_device(
    registry: Registry, late: Observation, at: float
) -> None:
    await tell(registry, Lease(MAC, IP, 3600, "pc"), 100.0)
    await tell(registry, answer(uuid=PC), 100.0)
    before = await host_of(registry), await known(registry)
    await tell(registry, late, 120.0, age=120.0 - at)
    assert (await host_of(registry), await known(registry)) == before


async def test_a_hello_from_before_the_last_login_does_not_unmanage_a_device(
    registry: Registry,
) -> None:
    await tell(registry, answer(uuid=PC), 100.0)
    await registry.call_succeeded(PC, 200.0)
    await tell(registry, hello(), 210.0, age=60.0)
    assert (await known(registry)).state is State.MANAGED


async def test_a_host_that_answers_in_plain_keeps_the_certificate_it_showed(
    registry: Registry,
) -> None:
    await tell(registry, answer(pin=PIN), 100.0)
    await tell(registry, answer(), 110.0)
    assert (await host_of(registry)).pin == PIN


async def test_hostile_host_names_are_stored_as_text_and_bounded(registry: Registry) -> None:
    name = "'; DROP TABLE devices; --\x1b[31m<script>\x00" + "x" * 400
    await tell(registry, Lease(MAC, IP, 60, name), 100.0)
    host = await registry.host("home1", MAC)
    assert host is not None
    assert host.hostname == name[:255].replace("\0", "\ufffd")
    await tell(registry, Lease(MAC2, IP2, 60, "\ud800"), 100.0)


async def test_an_empty_uuid_makes_no_device(registry: Registry) -> None:
    await tell(registry, hello(uuid=UUID(int=0)), 100.0)
    await tell(registry, answer(uuid=UUID(int=0)), 100.0)
    assert await registry.devices() == []
    assert registry.refused == 1


async def test_a_lan_cannot_fill_the_registry(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_DEVICES", 3)
    monkeypatch.setattr(tables, "MAX_HOSTS", 3)
    await tell(registry, answer(), 1.0)
    for number in range(10):
        mac = bytes([2, 1, 0, 0, 0, number])
        await tell(registry, hello(mac=mac, uuid=UUID(int=number + 1)), 10.0)
        await tell(registry, Lease(mac, IP, 60), 10.0 + number)
    assert len(await registry.devices()) == 3
    assert registry.refused == 7
    assert [host.mac for host in await registry.candidates()] == [MAC]
    assert await registry.host("home1", bytes([2, 1, 0, 0, 0, 9])) is not None
    assert await registry.host("home1", bytes([2, 1, 0, 0, 0, 0])) is None


async def test_only_the_certificate_of_an_enrolled_gateway_is_allowed(registry: Registry) -> None:
    await registry.add_gateway("home3", "aa", 1.0)
    assert await registry.is_gateway_allowed("home3", "aa")
    assert not await registry.is_gateway_allowed("home3", "bb")
    assert not await registry.is_gateway_allowed("home4", "aa")
    with pytest.raises(RegistryConflict, match="exists"):
        await registry.add_gateway("home3", "bb", 2.0)
    await registry.add_gateway("home3", "bb", 2.0, replace=True)
    assert not await registry.is_gateway_allowed("home3", "aa")
    assert await registry.is_gateway_allowed("home3", "bb")


async def test_what_still_comes_of_a_gateway_that_is_gone_is_nobodys(
    registry: Registry, database: Database
) -> None:
    """It waited for the journal while its tenant was removed."""
    await database.execute("DELETE FROM gateways WHERE name = 'home1'")
    up = LinkUp("home1", "aa", *NAT, "0.1.0", 10.0)
    place = ("home1", *NAT)
    told = Observed(*place, hello(), 0.0, 10.0)
    assert await registry.record([up, told, LinkDown("home1", 11.0)]) == [False] * 3
    assert await registry.gateway("home1") is None
    assert not await registry.is_gateway_allowed("home1", "aa")
    assert await registry.devices() == []


async def test_a_gateways_link_is_recorded_and_ends_with_the_process(
    registry: Registry, database: Database
) -> None:
    await tell(registry, hello(), 5.0)
    await registry.record([LinkUp("home1", "aa", "198.51.100.9", 5555, "0.1.0", 10.0)])
    gateway = await registry.gateway("home1")
    assert gateway is not None
    assert (gateway.connected, gateway.address, gateway.port) == (True, "198.51.100.9", 5555)
    assert (await known(registry)).gateway_address == "198.51.100.9"
    restarted = Registry(database)
    await restarted.start()
    assert not (await linked(registry)).connected
    await restarted.record([LinkUp("home1", "aa", "198.51.100.9", 5556, "0.1.0", 20.0)])
    await restarted.record([LinkDown("home1", 30.0), LinkDown("home1", 40.0)])
    gateway = await linked(registry)
    assert (gateway.connected, gateway.first_link, gateway.last_link) == (False, 10.0, 20.0)
    assert gateway.unlinked_at == 30.0


async def test_a_node_does_not_end_the_link_that_another_one_has(
    registry: Registry, database: Database
) -> None:
    one, two = Registry(database, node="one"), Registry(database, node="two")
    await one.record([LinkUp("home1", "aa", "198.51.100.9", 1, "0.1.0", 10.0)])
    await two.record([LinkUp("home1", "aa", "198.51.100.9", 2, "0.1.0", 11.0)])
    await one.record([LinkDown("home1", 12.0)])
    await one.start()
    gateway = await linked(registry)
    assert (gateway.connected, gateway.node, gateway.port) == (True, "two", 2)


async def test_a_revoked_gateway_stays_out_until_it_is_enrolled_again(registry: Registry) -> None:
    assert not await registry.revoke_gateway("home1", 5.0, actor="anna", tenant="other")
    assert await registry.revoke_gateway("home1", 5.0, actor="anna")
    assert not await registry.is_gateway_allowed("home1", "home1")
    assert not await registry.revoke_gateway("home1", 6.0, actor="anna")
    assert (await actions(registry))[-1] == "gateway.revoke"
    await registry.add_gateway("home1", "new", 7.0, replace=True)
    assert await registry.is_gateway_allowed("home1", "new")


async def test_a_gateway_is_nobody_elses(registry: Registry) -> None:
    assert await registry.gateway("home1", "default") is not None
    assert await registry.gateway("home1", "other") is None


async def test_a_gateways_name_cannot_be_taken_by_another_tenant(registry: Registry) -> None:
    for fingerprint, replace in (("stolen", False), ("stolen", True)):
        with pytest.raises(RegistryConflict):
            await registry.add_gateway("home1", fingerprint, 1.0, tenant="other", replace=replace)
    assert not await registry.revoke_gateway("home1", 2.0, actor="x", tenant="other")
    assert await registry.is_gateway_allowed("home1", "home1")


@pytest.fixture
async def neighbours(registry: Registry) -> Registry:
    """The same UUID behind a gateway of two tenants, each with a candidate besides."""
    await registry.add_gateway("theirs", "theirs", 0.0, tenant="other")
    for gateway in ("home1", "theirs"):
        await tell(registry, hello(), 10.0, gateway=gateway)
        await tell(registry, answer(pin=PIN), 11.0, gateway=gateway)
        await tell(registry, answer(MAC2, IP2), 12.0, gateway=gateway)
    return registry


@pytest.mark.parametrize(
    ("tenant", "gateway"), [("default", "home1"), ("other", "theirs")], ids=["ours", "theirs"]
)
async def test_a_tenant_sees_its_own_and_nothing_else(
    neighbours: Registry, tenant: str, gateway: str
) -> None:
    device = await neighbours.device(PC, tenant)
    assert device is not None
    assert device.gateway == gateway
    gateways = {g.name for g in await neighbours.gateways(tenant)}
    assert gateways == ({"home1", "home2"} if tenant == "default" else {"theirs"})
    assert await neighbours.devices(tenant) == [device]
    assert await neighbours.devices(tenant, equal={"state": "managed"}) == [device]
    assert await neighbours.count_devices(tenant) == 1
    (census,) = await neighbours.census(tenant)
    assert (census.gateway, census.devices) == (gateway, 1)
    assert [(h.gateway, h.mac) for h in await neighbours.candidates(tenant)] == [(gateway, MAC2)]
    for entries in (
        await neighbours.audit_entries(tenant=tenant),
        await neighbours.audit_entries(uuid=PC, tenant=tenant),
    ):
        assert "device.registered" in {entry.action for entry in entries}
        assert {entry.tenant for entry in entries} == {tenant}
        assert {entry.gateway for entry in entries} <= gateways


@pytest.mark.parametrize("tenant", ["default", "other"])
async def test_what_a_tenant_changes_is_its_own(
    neighbours: Registry, database: Database, tenant: str
) -> None:
    (untouched,) = {"default", "other"} - {tenant}
    before = await neighbours.device(PC, untouched)
    for each in ("default", "other"):
        await database.execute(
            "INSERT INTO credentials (tenant, uuid, username, mode, sealed, changed_at)"
            " VALUES ($1, $2, 'admin', 'ha1', $3, 0)",
            each,
            PC.bytes,
            b"sealed",
        )
    await neighbours.call_succeeded(PC, 20.0, tls=TlsMode.MODERN, tenant=tenant)
    called = await neighbours.device(PC, tenant)
    assert called is not None
    assert called.tls is TlsMode.MODERN
    unpinned = await neighbours.unpin(PC, 21.0, actor="x", tenant=tenant)
    assert unpinned is not None
    assert unpinned.tenant == tenant
    assert await neighbours.forget(PC, 22.0, actor="x", tenant=tenant)
    assert await neighbours.device(PC, tenant) is None
    assert await neighbours.device(PC, untouched) == before
    for table in ("devices", "hellos", "credentials"):
        rows = await database.fetch(f"SELECT tenant FROM {table}")
        assert [row["tenant"] for row in rows] == [untouched]
    entries = await neighbours.audit_entries(uuid=PC, tenant=tenant)
    assert [entry.action for entry in entries[:2]] == ["device.forgotten", "device.unpinned"]


async def linked(registry: Registry) -> Gateway:
    gateway = await registry.gateway("home1")
    assert gateway is not None
    return gateway


async def test_a_table_is_wanted_when_it_differs_or_a_device_was_forgotten(
    registry: Registry,
) -> None:
    event = Observed("home1", *NAT, Digest(1, b"d" * 32), 0.0, 2.0)
    assert await registry.record([event, event]) == [True, False]
    await tell(registry, hello(), 3.0)
    assert await registry.record([event]) == [False]
    assert await registry.forget(PC, 4.0, actor="anna")
    assert await registry.record([event]) == [True]
    assert await registry.device(PC) is None
    assert not await registry.forget(PC, 5.0, actor="anna")


async def test_a_device_that_changes_without_end_does_not_fill_the_audit(
    registry: Registry,
) -> None:
    """A LAN can say anything, a thousand times a second."""
    await tell(registry, hello(), 0.0)
    places = [(MAC, IP), (MAC2, IP2)]
    for second in range(1, 1000, 3):
        mac, address = places[second % 2]
        await tell(registry, hello(), float(second))
        await tell(registry, answer(pin=PIN), second + 1.0)
        await tell(registry, answer(mac, address, pin=PIN, uuid=PC), second + 2.0)
    entries = [entry for entry in await registry.audit_entries() if entry.actor == "gateway"]
    assert len(entries) == 1 + AUDIT_BURST
    assert {entry.action for entry in entries} >= {"device.setup", "device.managed"}
    # What a person does is never left out, and the next entry says how many were.
    await registry.unpin(PC, 1001.0, actor="anna")
    assert (await actions(registry))[-1] == "device.unpinned"
    left_out = (await known(registry)).unaudited
    assert left_out > 300
    hour = 1001.0 + AUDIT_EVERY
    await tell(registry, hello(), hour)
    await tell(registry, answer(pin=PIN), hour + 1)
    newest = (await registry.audit_entries())[0]
    assert int(newest.detail["left_out"]) >= left_out
    assert (await known(registry)).unaudited <= 1


async def test_another_device_has_its_entries_meanwhile_and_so_has_a_clock_set_back(
    registry: Registry,
) -> None:
    for second in range(0, 100, 2):
        await tell(registry, hello(), 1e9 + second)
        await tell(registry, answer(), 1e9 + second + 1)
    before = len(await registry.audit_entries())
    await tell(registry, hello(MAC2, IP2, OTHER), 1e9 + 100)
    await tell(registry, answer(MAC2, IP2), 1e9 + 101)
    assert len(await registry.audit_entries()) == before + 2
    for second in range(0, 100, 2):
        await tell(registry, hello(), 5e8 + second)
        await tell(registry, answer(), 5e8 + second + 1)
    assert len(await registry.audit_entries()) > before + 2


async def test_the_audit_cannot_be_changed(registry: Registry, database: Database) -> None:
    await registry.audit(
        "anna", "call", 5.0, gateway="home1", uuid=PC, detail={"function": "power.get"}
    )
    (entry,) = await registry.audit_entries(uuid=PC)
    assert (entry.actor, entry.detail) == ("anna", {"function": "power.get"})
    for change in ("UPDATE audit SET actor = 'x'", "DELETE FROM audit"):
        with pytest.raises(StatementError, match="append-only"):
            await database.execute(change)


async def test_the_audit_is_shortened_and_says_so(
    neighbours: Registry, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "PRUNED_AT_ONCE", 7)
    for second in range(50):
        await neighbours.audit("anna", "call", 1e9 + second, tenant="default")
        await neighbours.audit("otto", "call", 1e9 + second, tenant="other")
    # And what made the two gateways and devices known, before.
    went = {"default": 44, "other": 43}
    assert await neighbours.prune_audit(1e9 + 40, 1e9 + 100, actor="root") == sum(went.values())
    for tenant, actor in (("default", "anna"), ("other", "otto")):
        newest, *rest = await neighbours.audit_entries(limit=1000, tenant=tenant)
        assert (newest.action, newest.actor) == ("audit.prune", "root")
        assert newest.detail == {"before": "2001-09-09T01:47:20+00:00", "entries": went[tenant]}
        assert [entry.at for entry in rest] == [1e9 + second for second in range(49, 39, -1)]
        assert {entry.actor for entry in rest} == {actor}
    # Nothing else may go, and what says so stays, whoever asks.
    for change in ("DELETE FROM audit", "DELETE FROM audit WHERE action = 'audit.prune'"):
        with pytest.raises(StatementError, match="append-only"):
            await database.execute(change)
    assert await neighbours.prune_audit(1e9 + 200, 1e9 + 200, actor="root") == 20
    actions = [entry.action for entry in await neighbours.audit_entries()]
    assert actions == ["audit.prune", "audit.prune"]
    # Where nothing goes there is nothing to say.
    assert await neighbours.prune_audit(1e9 + 300, 1e9 + 300, actor="root") == 0
    assert len(await neighbours.audit_entries()) == 2


async def test_an_empty_audit_can_be_shortened(database: Database) -> None:
    assert await Registry(database).prune_audit(1.0, 2.0, actor="root") == 0


async def test_watchers_hear_what_was_committed_and_nothing_else(registry: Registry) -> None:
    devices: list[Device] = []
    links: list[tuple[str, str, bool]] = []
    registry.on_devices = devices.extend
    registry.on_links = links.extend
    await registry.record([LinkUp("home1", "home1", *NAT, "0.1.0", 1.0)])
    await tell(registry, answer(uuid=PC), 2.0)
    with pytest.raises(RegistryConflict):
        await registry.identified("home1", MAC2, PC, 2.0, actor="anna")
    await registry.record([LinkDown("home1", 3.0), LinkDown("home1", 4.0)])
    assert [(device.uuid, device.state) for device in devices] == [(PC, State.MANAGED)]
    assert links == [("default", "home1", True), ("default", "home1", False)]
    await registry.unpin(PC, 5.0, actor="anna")
    assert devices[-1].realm == ""
