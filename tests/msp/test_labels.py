from uuid import UUID

from gwmodule.msp.database import Database
from gwmodule.msp.labels import NO_LABEL, Label, Labels

PC = UUID("55e3ae13-bfd2-61bb-17a0-88aedd7037ea")
LABEL = Label(("küche", "'; DROP TABLE labels"), "Oma's PC")


async def test_a_label_belongs_to_one_device_of_one_tenant(database: Database) -> None:
    labels = Labels(database)
    assert await labels.put("a", PC, Label(("old",)))
    assert await labels.put("a", PC, LABEL)
    assert not await labels.put("a", PC, LABEL)
    assert await labels.of("a", PC) == LABEL
    assert await labels.of("b", PC) == NO_LABEL
    await labels.put("b", PC, Label(("theirs",)))
    theirs = {PC: Label(("theirs",))}
    assert (await labels.all("a"), await labels.all("b")) == ({PC: LABEL}, theirs)
    assert await labels.between("a", PC, PC) == {PC: LABEL}
    assert await labels.between("b", PC, PC) == theirs
    await labels.remove("a", PC)
    assert (await labels.all("a"), await labels.all("b")) == ({}, theirs)
