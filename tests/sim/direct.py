"""The product's envelopes, answered by a simulated PC without a network between them."""

from collections.abc import Mapping

from gwmodule.amt import wsman
from gwmodule.amt.wsman import Instance, Value
from gwmodule.sim.classes import identify, resources
from gwmodule.sim.machine import Machine
from gwmodule.sim.wsman import WsmanServer


class Direct:
    """What functions need of a client. The machine's clock is `now`."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.now = machine.now
        self.requests = 0
        page = machine.profile.mischief.page
        self._server = WsmanServer(resources(machine), identify(machine), page=page)

    def pass_time(self, seconds: float) -> None:
        """Let the machine do what is due, moment by moment."""
        end = self.now + seconds
        while (due := self.machine.next_timeout()) is not None and due <= end:
            self.machine.handle_timeout(due)
        self.now = end
        self.machine.handle_timeout(end)

    async def get(self, cls: str, selectors: Mapping[str, str] | None = None) -> Instance:
        return self._ask(wsman.get(cls, "1", selectors)).body

    async def put(
        self,
        cls: str,
        properties: Mapping[str, Value],
        selectors: Mapping[str, str] | None = None,
    ) -> Instance:
        return self._ask(wsman.put(cls, "1", properties, selectors)).body

    async def create(self, cls: str, properties: Mapping[str, Value]) -> Instance:
        return self._ask(wsman.create(cls, "1", properties)).body

    async def delete(self, cls: str, selectors: Mapping[str, str]) -> None:
        self._ask(wsman.delete(cls, "1", selectors))

    async def enumerate(self, cls: str) -> list[Instance]:
        context = self._ask(wsman.enumerate_(cls, "1")).context
        found: list[Instance] = []
        while context:
            page = self._ask(wsman.pull(cls, "1", context))
            found += page.items
            context = page.context
        return found

    async def invoke(
        self,
        cls: str,
        method: str,
        arguments: Mapping[str, Value] | None = None,
        selectors: Mapping[str, str] | None = None,
        *,
        reads: bool = False,
    ) -> Instance:
        return self._ask(wsman.invoke(cls, method, "1", arguments or {}, selectors)).body

    def _ask(self, request: bytes) -> wsman.Answer:
        self.requests += 1
        _, answer = self._server.respond(request, self.now)
        return wsman.parse_answer(answer)
