"""Third-party data storage of AMT 3 to 11 (reference/amt-protocols.md 3.9)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from gwmodule.sim.classes.common import returns, service, singleton
from gwmodule.sim.machine import Machine
from gwmodule.sim.profiles import Feature
from gwmodule.sim.storage import MTU, TOTAL_SIZE, Application, Status, Storage, StorageRefused
from gwmodule.sim.wsman import Element, Invocation, Method, Properties, Resource

_Outputs = dict[str, str | int | bool | tuple[int, ...]]
_Call = Callable[[Storage, Element], _Outputs]


def classes(machine: Machine) -> list[Resource]:
    if not machine.profile.has(Feature.STORAGE):
        return []
    return [
        _service(
            machine,
            "AMT_ThirdPartyDataStorageService",
            "Intel(r) AMT Third Party Data Storage Service",
            _CALLS,
        ),
        _service(
            machine,
            "AMT_ThirdPartyDataStorageAdministrationService",
            "Intel(r) AMT Third Party Data Storage Administration Service",
            _ADMINISTRATION,
        ),
    ]


def _service(machine: Machine, name: str, title: str, calls: dict[str, _Call]) -> Resource:
    def properties() -> Properties:
        return service(name, title) | {"EnabledState": 5, "RequestedState": 12}

    methods = {method: _method(machine.storage, call) for method, call in calls.items()}
    return Resource(name, singleton(properties), methods=methods)


def _method(storage: Storage, call: _Call) -> Method:
    def run(invocation: Invocation) -> Properties:
        try:
            return {"ReturnValue": int(Status.SUCCESS), **call(storage, invocation.input)}
        except StorageRefused as exc:
            return returns(exc.status)

    return run


def _session(given: Element) -> str:
    return given.read("SessionHandle").upper()


def _register(storage: Storage, given: Element) -> _Outputs:
    names = ("CallerUUID", "VendorName", "ApplicationName", "EnterpriseName")
    return {"SessionHandle": storage.register(Application(*map(given.read, names)))}


def _unregister(storage: Storage, given: Element) -> _Outputs:
    storage.unregister(_session(given))
    return {}


def _remove(storage: Storage, given: Element) -> _Outputs:
    storage.remove_application(_session(given))
    return {}


def _attributes(storage: Storage, given: Element) -> _Outputs:
    wanted = given.number("ApplicationBeingRequested")
    application = storage.attributes(_session(given), wanted)
    return {"ApplicationName": application.name, "VendorName": application.vendor}


def _allocate(storage: Storage, given: Element) -> _Outputs:
    hidden = given.read("BlockHidden") in ("true", "1")
    size, name = given.number("BytesRequested"), given.read("BlockName")
    return {"BlockHandle": storage.allocate(_session(given), size, name, hidden=hidden)}


def _deallocate(storage: Storage, given: Element) -> _Outputs:
    storage.deallocate(_session(given), given.number("BlockHandle"))
    return {}


def _block_attributes(storage: Storage, given: Element) -> _Outputs:
    block = storage.block(_session(given), given.number("BlockHandle"))
    return {
        "BlockHidden": block.hidden,
        "BlockName": block.name,
        "BlockSize": len(block.data),
    }


def _lock(storage: Storage, given: Element) -> _Outputs:
    storage.lock(_session(given), given.number("BlockHandle"))
    return {}


def _unlock(storage: Storage, given: Element) -> _Outputs:
    storage.unlock(_session(given), given.number("BlockHandle"))
    return {}


def _read(storage: Storage, given: Element) -> _Outputs:
    numbers = (given.number(name) for name in ("BlockHandle", "ByteOffset", "ByteCount"))
    return {"Data": base64.b64encode(storage.read(_session(given), *numbers)).decode()}


def _write(storage: Storage, given: Element) -> _Outputs:
    handle, offset = given.number("BlockHandle"), given.number("ByteOffset")
    try:
        data = base64.b64decode(given.read("Data"), validate=True)
        return {"BytesWritten": storage.write(_session(given), handle, offset, data)}
    except StorageRefused as exc:
        # The one method that tells its output also when it fails.
        return {"BytesWritten": 0, "ReturnValue": int(exc.status)}
    except (binascii.Error, ValueError):
        return {"BytesWritten": 0, "ReturnValue": int(Status.INVALID_PARAMETER)}


_CALLS: dict[str, _Call] = {
    "GetMTU": lambda storage, given: {"Mtu": MTU},
    "RegisterApplication": _register,
    "UnregisterApplication": _unregister,
    "RemoveApplication": _remove,
    "GetRegisteredApplications": lambda storage, given: {
        "AppHandles": tuple(storage.applications(_session(given)))
    },
    "GetCurrentApplicationHandle": lambda storage, given: {
        "ApplicationHandle": storage.application(_session(given))
    },
    "GetApplicationAttributes": _attributes,
    "GetBytesAvailable": lambda storage, given: {
        "BytesAvailable": storage.available(_session(given))
    },
    "GetAllocatedBlocks": lambda storage, given: {
        "BlockHandles": tuple(
            storage.blocks(_session(given), given.number("BlockOwnerApplication"))
        )
    },
    "GetBlockAttributes": _block_attributes,
    "AllocateBlock": _allocate,
    "DeallocateBlock": _deallocate,
    "LockBlock": _lock,
    "UnlockBlock": _unlock,
    "ReadBlock": _read,
    "WriteBlock": _write,
}


def _add_enterprise(storage: Storage, given: Element) -> _Outputs:
    return {"Handle": storage.add_enterprise(given.read("EnterpriseName"))}


def _enterprise(storage: Storage, given: Element) -> _Outputs:
    name = storage.enterprises.get(given.number("Handle"))
    if name is None:
        raise StorageRefused(Status.INVALID_HANDLE)
    return {"EnterpriseName": name}


def _remove_enterprise(storage: Storage, given: Element) -> _Outputs:
    storage.remove_enterprise(given.number("Handle"))
    return {}


def _add_partner(storage: Storage, given: Element) -> _Outputs:
    quota = given.number("TotalAllocationSize")
    vendor, application = given.read("VendorName"), given.read("ApplicationName")
    return {"Handle": storage.add_partner(vendor, application, quota)}


_ADMINISTRATION: dict[str, _Call] = {
    "GetGlobalStorageAttributes": lambda storage, given: {"TotalStorage": TOTAL_SIZE},
    "EnumerateStorageEaclEntries": lambda storage, given: {"Handles": tuple(storage.enterprises)},
    "GetStorageEaclEntry": _enterprise,
    "AddStorageEaclEntry": _add_enterprise,
    "RemoveStorageEaclEntry": _remove_enterprise,
    "AddStorageFpaclEntry": _add_partner,
}
