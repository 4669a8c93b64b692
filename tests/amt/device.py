"""A device without network for the tests of functions: classes, methods, and what was asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gwmodule.amt.functions import CATALOGUE, Context, Result, validate
from gwmodule.amt.wsman import Instance, Value
from gwmodule.errors import WsmanFault

Method = Callable[[Mapping[str, Value]], Instance]


def absent() -> WsmanFault:
    return WsmanFault("Sender", "DestinationUnreachable", "No route to the class.")


@dataclass
class FakeDevice:
    """What a class is not in answers as firmware does: with a fault."""

    instances: dict[str, list[Instance]] = field(default_factory=dict)
    methods: dict[str, Method] = field(default_factory=dict)
    # (operation, class or Class.Method) in the order asked.
    asked: list[tuple[str, str]] = field(default_factory=list)
    put_instances: list[Mapping[str, Value]] = field(default_factory=list)
    arguments: list[Mapping[str, Value]] = field(default_factory=list)

    async def get(self, cls: str, selectors: Mapping[str, str] | None = None) -> Instance:
        self.asked.append(("get", cls))
        found = self.instances.get(cls)
        if not found:
            raise absent()
        return dict(found[0])

    async def put(
        self,
        cls: str,
        properties: Mapping[str, Value],
        selectors: Mapping[str, str] | None = None,
    ) -> Instance:
        self.asked.append(("put", cls))
        self.put_instances.append(properties)
        written = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in properties.items()
        }
        self.instances[cls][0] |= written
        return dict(self.instances[cls][0])

    async def delete(self, cls: str, selectors: Mapping[str, str]) -> None:
        self.asked.append(("delete", cls))
        self.arguments.append(selectors)

    async def enumerate(self, cls: str) -> list[Instance]:
        self.asked.append(("enumerate", cls))
        if cls not in self.instances:
            raise absent()
        return self.instances[cls]

    async def invoke(
        self,
        cls: str,
        method: str,
        arguments: Mapping[str, Value] | None = None,
        selectors: Mapping[str, str] | None = None,
        *,
        reads: bool = False,
    ) -> Instance:
        name = f"{cls}.{method}"
        self.asked.append(("invoke", name))
        self.arguments.append(arguments or {})
        if name not in self.methods:
            raise absent()
        return self.methods[name](arguments or {})

    @property
    def steps(self) -> list[str]:
        return [name for _, name in self.asked]


async def no_sleep(seconds: float) -> None:
    """Tests of functions have no time to lose."""


async def run(
    device: Any, name: str, context: Context | None = None, /, **arguments: Any
) -> Result:
    """Validate and run, as the gateway does."""
    function = CATALOGUE[name]
    return await function.run(
        device, validate(function, arguments), context or Context(sleep=no_sleep)
    )
