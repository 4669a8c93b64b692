import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwmodule.errors import GatewayError
from gwmodule.msp import registry as registry_module
from gwmodule.msp.migrations import MIGRATIONS
from gwmodule.msp.registry import Device, Origin, Registry, RegistryConflict, RegistryError, State
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
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "registry.db")
    for name in ("home1", "home2"):
        registry.add_gateway(name, name, 0.0)
    yield registry
    registry.close()


def tell(
    registry: Registry,
    observation: Observation,
    at: float,
    *,
    age: float = 0.0,
    gateway: str = "home1",
) -> None:
    registry.observe(gateway, *NAT, observation, age, at)
    registry.commit()


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


def known(registry: Registry, uuid: UUID = PC) -> Device:
    device = registry.device(uuid)
    assert device is not None
    return device


def actions(registry: Registry) -> list[str]:
    return [entry.action for entry in reversed(registry.audit_entries())]


def test_a_hello_registers_a_device_with_its_gateway_as_seen_after_nat(registry: Registry) -> None:
    tell(registry, hello(), 100.0)
    device = known(registry)
    assert device.state is State.SETUP
    assert (device.address, device.mac, device.gateway) == (IP, MAC, "home1")
    assert (device.gateway_address, device.gateway_port) == NAT
    assert (device.first_seen, device.source) == (100.0, Origin.HELLO)
    assert actions(registry)[-1] == "device.registered"


def test_nothing_is_visible_or_lost_before_the_commit(registry: Registry) -> None:
    registry.observe("home1", *NAT, hello(), 0.0, 100.0)
    assert registry.device(PC) is None
    registry.commit()
    assert registry.device(PC) is not None


def test_a_uuid_is_found_in_either_byte_order(registry: Registry) -> None:
    tell(registry, hello(), 1.0)
    assert registry.device(UUID(bytes_le=PC.bytes)) == registry.device(PC)


def test_an_acknowledged_hello_survives_the_death_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    script = (
        "import os, signal\n"
        "from tests.msp.test_registry import *\n"
        f"registry = Registry(Path({str(path)!r}))\n"
        "registry.observe('home1', *NAT, hello(), 0.0, 1.0)\n"
        "registry.commit()\n"
        "registry.observe('home1', *NAT, hello(uuid=OTHER), 0.0, 1.0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=os.getcwd())
    assert done.returncode == -signal.SIGKILL
    reopened = Registry(path)
    assert [device.uuid for device in reopened.devices()] == [PC]
    reopened.close()


def test_the_address_follows_the_lease_of_the_same_host(registry: Registry) -> None:
    tell(registry, hello(), 100.0)
    tell(registry, Lease(MAC, IP2, 3600, "pc"), 110.0)
    device = known(registry)
    assert (device.address, device.hostname, device.last_seen) == (IP2, "pc", 110.0)


def test_an_older_notice_never_overwrites_a_newer_one(registry: Registry) -> None:
    tell(registry, Lease(MAC, IP2, 3600, "new"), 100.0)
    tell(registry, hello(address=IP2), 100.0)
    tell(registry, Lease(MAC, IP, 3600, "old"), 120.0, age=50.0)
    tell(registry, hello(), 120.0, age=60.0)
    host = registry.host("home1", MAC)
    assert host is not None
    assert (host.address, host.hostname) == (IP2, "new")
    assert known(registry).address == IP2


@given(st.permutations(range(6)), st.lists(st.booleans(), min_size=6, max_size=6))
def test_in_any_order_the_newest_observation_decides(order: list[int], leases: list[bool]) -> None:
    with TemporaryDirectory() as directory:
        registry = Registry(Path(directory) / "registry.db")
        tell(registry, hello(), 10.0)
        for number in order:
            address = IPv4Address(f"192.168.1.{100 + number}")
            place = Lease(MAC, address, 60) if leases[number] else answer(address=address)
            tell(registry, place, 200.0, age=100.0 - number)
        assert known(registry).address == IPv4Address("192.168.1.105")
        registry.close()


def test_a_clock_that_was_set_back_does_not_freeze_the_records(registry: Registry) -> None:
    tell(registry, hello(), 1_000_000.0)
    tell(registry, Lease(MAC, IP2, 60), 500.0)
    assert known(registry).address == IP2


def test_a_hello_without_mac_takes_it_from_what_the_lan_said(registry: Registry) -> None:
    tell(registry, Lease(MAC, IP, 3600, "pc"), 99.0)
    tell(registry, hello(mac=NO_MAC), 100.0)
    assert known(registry).mac == MAC


def test_a_hello_without_mac_learns_it_from_a_later_lease(registry: Registry) -> None:
    tell(registry, hello(mac=NO_MAC), 100.0)
    assert known(registry).mac is None
    tell(registry, Lease(MAC, IP, 3600), 101.0)
    assert known(registry).mac == MAC


def test_a_presence_answer_makes_a_device_managed(registry: Registry) -> None:
    tell(registry, hello(), 100.0)
    tell(registry, answer(pin=PIN), 110.0)
    device = known(registry)
    assert (device.state, device.realm, device.pin) == (State.MANAGED, "Digest:1", PIN)
    assert device.answered_at == 110.0
    assert actions(registry)[-1] == "device.managed"


@pytest.mark.parametrize("state", [Provisioning.PRE, Provisioning.IN])
def test_an_answer_that_denies_provisioning_does_not(
    registry: Registry, state: Provisioning
) -> None:
    tell(registry, hello(), 100.0)
    tell(registry, answer(state=state), 110.0)
    assert known(registry).state is State.SETUP


def test_a_repeated_old_hello_does_not_unmanage_a_device(registry: Registry) -> None:
    tell(registry, hello(), 100.0)
    tell(registry, answer(), 110.0)
    tell(registry, hello(), 140.0, age=40.0)
    assert known(registry).state is State.MANAGED


def test_a_new_hello_of_a_managed_device_means_setup_again(registry: Registry) -> None:
    tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    tell(registry, hello(), 200.0)
    device = known(registry)
    assert (device.state, device.pin) == (State.SETUP, PIN)


def test_option_97_and_an_answer_make_a_device(registry: Registry) -> None:
    tell(registry, Lease(MAC, IP, 3600, "pc", PC), 100.0)
    assert registry.device(PC) is None
    tell(registry, answer(), 110.0)
    device = known(registry)
    assert (device.state, device.source, device.hostname) == (State.MANAGED, Origin.LEASE, "pc")


@pytest.mark.parametrize(("realm", "state"), [("Digest:1", State.MANAGED), ("", State.FOUND)])
def test_a_login_prompt_says_managed_where_rmcp_is_silent(
    registry: Registry, realm: str, state: State
) -> None:
    tell(registry, answer(state=Provisioning.UNKNOWN, realm=realm, uuid=PC), 100.0)
    assert known(registry).state is state


def test_a_host_that_answers_without_uuid_is_a_candidate_until_it_is_identified(
    registry: Registry,
) -> None:
    tell(registry, Lease(MAC2, IP2, 3600, "printer"), 100.0)
    tell(registry, answer(pin=PIN), 100.0)
    assert [host.mac for host in registry.candidates()] == [MAC]
    device = registry.identified("home1", MAC, PC, 120.0, actor="anna", realm="Digest:2")
    assert registry.candidates() == []
    assert (device.state, device.proved_at, device.pin) == (State.MANAGED, 120.0, PIN)
    assert (device.source, device.realm) == (Origin.IDENTITY, "Digest:2")


def test_in_setup_the_newest_hello_of_its_gateway_wins(registry: Registry) -> None:
    tell(registry, hello(), 100.0)
    tell(registry, hello(mac=MAC2, address=IP2), 110.0)
    device = known(registry)
    assert (device.mac, device.address, device.contested) == (MAC2, IP2, False)


def test_a_claim_from_another_gateway_is_contested_even_in_setup(registry: Registry) -> None:
    tell(registry, hello(), 100.0)
    tell(registry, hello(), 110.0, gateway="home2")
    device = known(registry)
    assert (device.gateway, device.contested, device.claim_gateway) == ("home1", True, "home2")


@pytest.mark.parametrize(
    "claim",
    [hello(mac=MAC2, address=IP2), answer(mac=MAC2, address=IP2, uuid=PC, pin=PIN2)],
    ids=["hello", "presence"],
)
@pytest.mark.parametrize("gateway", ["home1", "home2"])
def test_words_never_move_a_managed_device(
    registry: Registry, claim: Observation, gateway: str
) -> None:
    tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    for at in (110.0, 120.0, 130.0):
        tell(registry, claim, at, gateway=gateway)
    device = known(registry)
    assert (device.gateway, device.mac, device.address, device.pin) == ("home1", MAC, IP, PIN)
    assert (device.claim_gateway, device.claim_mac) == (gateway, MAC2)
    assert actions(registry).count("device.contested") == 1


def test_an_old_claim_from_elsewhere_is_not_even_a_claim(registry: Registry) -> None:
    tell(registry, answer(uuid=PC), 100.0)
    tell(registry, hello(mac=MAC2), 110.0, age=60.0, gateway="home2")
    assert not known(registry).contested


def test_its_pinned_certificate_moves_a_device_within_its_home(registry: Registry) -> None:
    tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    tell(registry, answer(mac=MAC2, address=IP2, uuid=PC, pin=PIN), 110.0)
    device = known(registry)
    assert (device.gateway, device.mac, device.contested) == ("home1", MAC2, False)
    assert actions(registry)[-1] == "device.moved"


def test_another_gateway_that_names_the_pin_moves_nothing(registry: Registry) -> None:
    """A certificate is public, and the MSP has only that gateway's word for having seen it."""
    tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    tell(registry, answer(mac=MAC2, address=IP2, uuid=PC, pin=PIN), 110.0, gateway="home2")
    device = known(registry)
    assert (device.gateway, device.mac, device.contested) == ("home1", MAC, True)
    with pytest.raises(RegistryConflict, match="belongs to gateway home1"):
        registry.identified("home2", MAC2, PC, 120.0, actor="anna")
    assert known(registry).gateway == "home1"


def test_a_forged_hello_does_not_make_a_managed_device_anybodys(registry: Registry) -> None:
    tell(registry, answer(uuid=PC), 100.0)
    tell(registry, hello(), 110.0)
    tell(registry, hello(mac=MAC2), 120.0)
    device = known(registry)
    assert (device.mac, device.contested) == (MAC, True)


def test_one_mac_names_only_so_many_devices(registry: Registry) -> None:
    for number in range(50):
        tell(registry, hello(uuid=UUID(int=number + 1)), 10.0 + number)
    assert len(registry.devices()) == registry_module.MAX_DEVICES_PER_MAC
    assert registry.refused == 50 - registry_module.MAX_DEVICES_PER_MAC


def test_another_certificate_at_the_same_place_is_contested_and_not_believed(
    registry: Registry,
) -> None:
    tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    tell(registry, answer(pin=PIN2, realm="Digest:evil"), 110.0)
    device = known(registry)
    assert device.contested
    assert (device.pin, device.realm) == (PIN, "Digest:1")


def test_a_pinned_device_keeps_pin_and_realm_when_it_answers_in_plain(registry: Registry) -> None:
    tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    tell(registry, answer(realm="Digest:evil"), 110.0)
    device = known(registry)
    assert (device.pin, device.realm, device.answered_at) == (PIN, "Digest:1", 110.0)


def test_an_identity_with_another_certificate_is_refused(registry: Registry) -> None:
    tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    tell(registry, answer(mac=MAC2, pin=PIN2), 110.0)
    with pytest.raises(RegistryConflict, match="pinned"):
        registry.identified("home1", MAC2, PC, 120.0, actor="anna")
    assert known(registry).mac == MAC


def test_an_identity_settles_a_contested_device_where_it_was_proved(registry: Registry) -> None:
    tell(registry, answer(uuid=PC), 100.0)
    tell(registry, hello(mac=MAC2), 110.0, gateway="home2")
    registry.identified("home1", MAC, PC, 120.0, actor="anna")
    device = known(registry)
    assert (device.contested, device.gateway) == (False, "home1")
    assert actions(registry)[-1] == "device.confirmed"


def test_an_identity_at_an_unknown_host_is_refused(registry: Registry) -> None:
    with pytest.raises(RegistryConflict, match="unknown at gateway"):
        registry.identified("home1", MAC, PC, 1.0, actor="anna")


def test_unpinning_trusts_the_next_certificate(registry: Registry) -> None:
    tell(registry, answer(uuid=PC, pin=PIN), 100.0)
    registry.unpin(PC, 105.0, actor="anna")
    tell(registry, answer(pin=PIN2, realm="Digest:2"), 110.0)
    device = known(registry)
    assert (device.pin, device.realm, device.contested) == (PIN2, "Digest:2", False)


def test_a_successful_call_makes_a_device_managed(registry: Registry) -> None:
    tell(registry, hello(), 100.0)
    registry.call_succeeded(PC, 110.0)
    assert known(registry).state is State.MANAGED


def test_a_neighbour_that_is_gone_comes_back_with_its_next_answer(registry: Registry) -> None:
    tell(registry, answer(uuid=PC), 100.0)
    tell(registry, Gone(MAC, IP), 110.0)
    assert known(registry).gone_at == 110.0
    tell(registry, answer(), 120.0)
    assert known(registry).gone_at is None
    tell(registry, Gone(MAC, IP), 130.0, age=15.0)
    assert known(registry).gone_at is None


def test_the_end_of_a_lease_is_kept_with_the_host(registry: Registry) -> None:
    tell(registry, Lease(MAC, IP, 3600), 100.0)
    tell(registry, LeaseEnd(MAC, IP2), 105.0)
    tell(registry, LeaseEnd(MAC, IP), 110.0)
    host = registry.host("home1", MAC)
    assert host is not None
    assert host.lease_until == 110.0


def test_hostile_host_names_are_stored_as_text_and_bounded(registry: Registry) -> None:
    name = "'; DROP TABLE devices; --\x1b[31m<script>\x00" + "x" * 400
    tell(registry, Lease(MAC, IP, 60, name), 100.0)
    host = registry.host("home1", MAC)
    assert host is not None
    assert host.hostname == name[:255]
    tell(registry, Lease(MAC2, IP2, 60, "\ud800"), 100.0)


def test_an_empty_uuid_makes_no_device(registry: Registry) -> None:
    tell(registry, hello(uuid=UUID(int=0)), 100.0)
    tell(registry, answer(uuid=UUID(int=0)), 100.0)
    assert registry.devices() == []
    assert registry.refused == 1


def test_a_lan_cannot_fill_the_registry(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "MAX_DEVICES", 3)
    monkeypatch.setattr(registry_module, "MAX_HOSTS", 3)
    tell(registry, answer(), 1.0)
    for number in range(10):
        mac = bytes([2, 1, 0, 0, 0, number])
        tell(registry, hello(mac=mac, uuid=UUID(int=number + 1)), 10.0)
        tell(registry, Lease(mac, IP, 60), 10.0 + number)
    assert len(registry.devices()) == 3
    assert registry.refused == 7
    assert [host.mac for host in registry.candidates()] == [MAC]
    assert registry.host("home1", bytes([2, 1, 0, 0, 0, 9])) is not None
    assert registry.host("home1", bytes([2, 1, 0, 0, 0, 0])) is None


def test_only_the_certificate_of_an_enrolled_gateway_is_allowed(registry: Registry) -> None:
    registry.add_gateway("home3", "aa", 1.0)
    assert registry.is_gateway_allowed("home3", "aa")
    assert not registry.is_gateway_allowed("home3", "bb")
    assert not registry.is_gateway_allowed("home4", "aa")
    with pytest.raises(RegistryConflict, match="exists"):
        registry.add_gateway("home3", "bb", 2.0)
    registry.add_gateway("home3", "bb", 2.0, replace=True)
    assert not registry.is_gateway_allowed("home3", "aa")
    assert registry.is_gateway_allowed("home3", "bb")


def test_a_gateways_link_is_recorded_and_ends_with_the_process(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    registry = Registry(path)
    registry.add_gateway("home1", "aa", 1.0)
    tell(registry, hello(), 5.0)
    registry.gateway_connected("home1", "aa", "198.51.100.9", 5555, "0.1.0", 10.0)
    gateway = registry.gateway("home1")
    assert gateway is not None
    assert (gateway.connected, gateway.address, gateway.port) == (True, "198.51.100.9", 5555)
    assert known(registry).gateway_address == "198.51.100.9"
    registry.close()
    registry = Registry(path)
    assert [gateway.connected for gateway in registry.gateways()] == [False]
    registry.gateway_connected("home1", "aa", "198.51.100.9", 5556, "0.1.0", 20.0)
    registry.gateway_disconnected("home1", 30.0)
    registry.gateway_disconnected("home1", 40.0)
    (gateway,) = registry.gateways()
    assert (gateway.connected, gateway.first_link, gateway.last_link) == (False, 10.0, 20.0)
    assert gateway.unlinked_at == 30.0
    registry.close()


def test_the_digest_is_stored_until_a_device_is_forgotten(registry: Registry) -> None:
    assert registry.stored_digest("home1") is None
    tell(registry, hello(), 1.0)
    tell(registry, Digest(1, b"d" * 32), 2.0)
    assert registry.stored_digest("home1") == b"d" * 32
    assert registry.forget(PC, 3.0, actor="anna")
    assert registry.stored_digest("home1") is None
    assert registry.device(PC) is None
    assert not registry.forget(PC, 3.0, actor="anna")


def test_a_locked_database_costs_the_acknowledgement_and_no_registration(
    registry: Registry, tmp_path: Path
) -> None:
    locker = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    registry.observe("home1", *NAT, hello(), 0.0, 100.0)
    registry.gateway_connected("home1", "home1", "198.51.100.9", 1, "0.1.0", 100.0)
    with pytest.raises(RegistryError, match="locked"):
        registry.commit()
    with pytest.raises(RegistryError, match="locked"):
        registry.audit("anna", "call", 100.0)
    assert registry.devices() == []
    locker.execute("ROLLBACK")
    locker.close()
    registry.commit()
    assert known(registry).address == IP
    assert registry.failures >= 2


def test_a_full_disk_is_one_clear_error_and_passes(registry: Registry, tmp_path: Path) -> None:
    limit = sqlite3.connect(tmp_path / "registry.db")
    (pages,) = limit.execute("PRAGMA page_count").fetchone()
    limit.close()
    # The same answer from SQLite as a full disk gives: SQLITE_FULL in the middle of a transaction.
    registry._db.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(200):
        mac = bytes([2, 1, 0, 0, 0, number])
        registry.observe("home1", *NAT, hello(mac=mac, uuid=UUID(int=number + 1)), 0.0, 100.0)
    with pytest.raises(RegistryError, match="full"):
        registry.commit()
    assert registry.devices() == []
    registry._db.execute("PRAGMA max_page_count = 1000000")
    registry.commit()
    assert len(registry.devices()) == 200


def test_what_waits_for_the_disk_is_bounded(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "MAX_PENDING", 2)
    registry.observe("home1", *NAT, hello(), 0.0, 1.0)
    registry.observe("home1", *NAT, hello(), 0.0, 1.0)
    with pytest.raises(RegistryError, match="2 observations wait"):
        registry.observe("home1", *NAT, hello(), 0.0, 1.0)
    registry.commit()


def test_the_audit_cannot_be_changed(registry: Registry) -> None:
    registry.audit("anna", "call", 5.0, gateway="home1", uuid=PC, detail={"function": "power.get"})
    (entry,) = registry.audit_entries(uuid=PC)
    assert (entry.actor, entry.detail) == ("anna", {"function": "power.get"})
    for change in ("UPDATE audit SET actor = 'x'", "DELETE FROM audit"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            registry._db.execute(change)


def test_a_newer_schema_is_refused_and_an_older_one_is_brought_up(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    Registry(path).close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(RegistryError, match="newer"):
        Registry(path)


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(GatewayError, match="not a database"):
        Registry(path)
    with pytest.raises(RegistryError, match="No such file"):
        Registry(tmp_path / "missing" / "registry.db")


def test_the_file_is_not_for_others(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    registry = Registry(path)
    tell(registry, hello(), 1.0)
    assert {file.stat().st_mode & 0o077 for file in tmp_path.iterdir()} == {0}
    registry.close()
