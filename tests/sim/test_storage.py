import pytest

from gwmodule.sim.storage import (
    MAX_ENTERPRISES,
    MAX_PARTNERS,
    MAX_SESSIONS,
    MTU,
    OTHERS_QUOTA,
    TOTAL_SIZE,
    Application,
    Status,
    Storage,
    StorageRefused,
)

CALLER = "1" * 32


def application(name: str = "notes", vendor: str = "we", caller: str = CALLER) -> Application:
    return Application(caller, vendor, name, "Contoso")


@pytest.fixture
def storage() -> Storage:
    return Storage("Contoso")


def refused(status: Status) -> pytest.RaisesExc[StorageRefused]:
    return pytest.raises(StorageRefused, match=status.name)


def test_what_was_written_outlives_the_session(storage: Storage) -> None:
    session = storage.register(application())
    block = storage.allocate(session, MTU, "b", hidden=False)
    assert storage.write(session, block, 10, b"hello") == 5
    storage.unregister(session)
    with refused(Status.INVALID_HANDLE):
        storage.read(session, block, 0, 1)
    again = storage.register(application())
    assert storage.read(again, block, 9, 7) == b"\0hello\0"


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (application(caller="x"), Status.INVALID_PARAMETER),
        (application(name=""), Status.INVALID_NAME),
        (application(vendor="v" * 65), Status.INVALID_NAME),
        (Application(CALLER, "we", "notes", "Nobody"), Status.NOT_PERMITTED),
    ],
)
def test_who_cannot_register_is_told_why(
    storage: Storage, wrong: Application, status: Status
) -> None:
    with refused(status):
        storage.register(wrong)


def test_a_block_is_a_multiple_of_the_unit_and_within_the_quota(storage: Storage) -> None:
    session = storage.register(application())
    for size in (0, -1, MTU - 1):
        with refused(Status.INVALID_BYTE_COUNT):
            storage.allocate(session, size, "", hidden=False)
    with refused(Status.INVALID_NAME):
        storage.allocate(session, MTU, "n" * 33, hidden=False)
    assert storage.available(session) == OTHERS_QUOTA
    with refused(Status.MAX_LIMIT_REACHED):
        storage.allocate(session, OTHERS_QUOTA + MTU, "", hidden=False)
    storage.allocate(session, OTHERS_QUOTA, "", hidden=False)
    assert storage.available(session) == 0


def test_a_partner_has_a_quota_of_its_own(storage: Storage) -> None:
    storage.add_partner("we", "notes", TOTAL_SIZE)
    session = storage.register(application())
    assert storage.available(session) == TOTAL_SIZE
    with refused(Status.DUPLICATE):
        storage.add_partner("we", "notes", MTU)
    with refused(Status.INVALID_PARAMETER):
        storage.add_partner("we", "other", TOTAL_SIZE + 1)
    for number in range(MAX_PARTNERS - 1):
        storage.add_partner("we", str(number), MTU)
    with refused(Status.MAX_LIMIT_REACHED):
        storage.add_partner("we", "one more", MTU)


def test_reads_and_writes_stay_within_the_unit_and_the_block(storage: Storage) -> None:
    session = storage.register(application())
    block = storage.allocate(session, 2 * MTU, "", hidden=False)
    assert len(storage.read(session, block, MTU, MTU)) == MTU
    for offset, count in ((0, 0), (0, MTU + 1)):
        with refused(Status.INVALID_BYTE_COUNT):
            storage.read(session, block, offset, count)
        with refused(Status.INVALID_BYTE_COUNT):
            storage.write(session, block, offset, bytes(count))
    for offset in (-1, 2 * MTU - 1):
        with refused(Status.INVALID_PARAMETER):
            storage.read(session, block, offset, 2)
        with refused(Status.INVALID_PARAMETER):
            storage.write(session, block, offset, b"xy")


def test_others_do_not_touch_a_block_and_do_not_see_a_hidden_one(storage: Storage) -> None:
    session = storage.register(application())
    owner = storage.application(session)
    seen = storage.allocate(session, MTU, "", hidden=False)
    hidden = storage.allocate(session, MTU, "", hidden=True)
    other = storage.register(application("other"))
    assert storage.blocks(session, owner) == [seen, hidden]
    assert storage.blocks(other, owner) == [seen]
    with refused(Status.NOT_PERMITTED):
        storage.read(other, seen, 0, 1)
    with refused(Status.INVALID_HANDLE):
        storage.block(other, hidden)
    with refused(Status.INVALID_HANDLE):
        storage.blocks(other, 999)


def test_a_lock_keeps_the_other_session_out_until_it_ends(storage: Storage) -> None:
    one, two = storage.register(application()), storage.register(application())
    block = storage.allocate(one, MTU, "", hidden=False)
    storage.lock(one, block)
    with refused(Status.NOT_PERMITTED):
        storage.write(two, block, 0, b"x")
    storage.unregister(one)
    assert storage.write(two, block, 0, b"x") == 1
    storage.lock(two, block)
    storage.unlock(two, block)


def test_an_application_goes_with_everything_it_has(storage: Storage) -> None:
    session = storage.register(application())
    block = storage.allocate(session, MTU, "", hidden=False)
    storage.remove_application(session)
    again = storage.register(application())
    with refused(Status.INVALID_HANDLE):
        storage.block(again, block)


def test_applications_of_one_vendor_know_of_each_other(storage: Storage) -> None:
    session = storage.register(application())
    other = storage.application(storage.register(application("other")))
    stranger = storage.application(storage.register(application(vendor="they")))
    assert storage.attributes(session, other).name == "other"
    with refused(Status.INVALID_HANDLE):
        storage.attributes(session, stranger)


def test_the_oldest_session_makes_room(storage: Storage) -> None:
    first = storage.register(application())
    for _ in range(MAX_SESSIONS):
        storage.register(application())
    with refused(Status.INVALID_HANDLE):
        storage.application(first)


def test_enterprises_are_few(storage: Storage) -> None:
    handles = [storage.add_enterprise(f"e{number}") for number in range(MAX_ENTERPRISES - 1)]
    with refused(Status.MAX_LIMIT_REACHED):
        storage.add_enterprise("one more")
    storage.remove_enterprise(handles[0])
    with refused(Status.INVALID_HANDLE):
        storage.remove_enterprise(handles[0])
    with refused(Status.DUPLICATE):
        storage.add_enterprise("Contoso")


def test_a_freed_block_gives_its_bytes_back(storage: Storage) -> None:
    session = storage.register(application())
    block = storage.allocate(session, MTU, "", hidden=False)
    storage.deallocate(session, block)
    assert storage.available(session) == OTHERS_QUOTA
