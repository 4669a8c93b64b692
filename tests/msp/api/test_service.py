import asyncio
import re

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gwmodule.errors import Code
from gwmodule.msp.accounts import Role
from gwmodule.msp.api import service as service_module
from gwmodule.msp.api.events import MAX_QUEUE
from gwmodule.msp.database import RegistryError
from gwmodule.msp.strangers import Strangers
from gwmodule.msp.traffic import Direction
from gwmodule.wire.frames import Priority
from tests.msp.api.conftest import Site
from tests.msp.conftest import NOW, PC

EVENTS = "/api/v1/events"


async def test_health_and_readiness_need_no_login(site: Site) -> None:
    assert await site.request("GET", "/healthz") == (200, {"status": "ok"})
    assert await site.request("GET", "/readyz") == (200, {"status": "ok"})


async def test_health_and_version_have_open_amts_members(site: Site) -> None:
    status, health = await site.request("GET", "/api/v1/health", token=site.token(Role.VIEWER))
    assert (status, health["db"]) == (200, {"name": "SQLITE", "status": "OK"})
    assert health["secretStore"]["status"] == {"initialized": True, "sealed": False}
    _, version = await site.request("GET", "/api/v1/version", token=site.token(Role.VIEWER))
    assert version["serviceVersion"] == version["version"]
    await site.service.database.aclose()
    status, error = await site.request("GET", "/api/v1/health", token=site.token())
    assert (status, error["error"]) == (503, "REGISTRY_UNAVAILABLE")


async def test_without_its_registry_it_lives_but_is_not_ready(site: Site) -> None:
    await site.service.database.aclose()
    assert (await site.request("GET", "/healthz"))[0] == 200
    status, error = await site.request("GET", "/readyz")
    assert (status, error["error"]) == (503, "REGISTRY_UNAVAILABLE")


async def test_metrics_name_no_device_and_nobody(site: Site) -> None:
    await site.request(
        "POST", f"/api/v1/devices/{PC}/call", {"function": "power.get"}, token=site.token()
    )
    await site.request("POST", f"/api/v1/devices/{PC}/call", {"function": "x"}, token=site.token())
    status, text = await site.request("GET", "/metrics", token=site.token(Role.VIEWER))
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    ops = {sample.labels["op"] for sample in families["amt_request_seconds"].samples}
    assert ops == {"power.get", "other"}
    routes = {sample.labels["route"] for sample in families["http_requests"].samples}
    assert "/api/v1/devices/{guid}/call" in routes
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}|home1|@default", text)
    assert {"gateways", "streams", "watchers", "logins"} <= set(families)
    assert families["process_resident_memory_bytes"].samples[0].value > 10e6


async def scraped(site: Site) -> dict[tuple[str, ...], float]:
    """Samples by name and labels, as `("stream_bytes_total", "bulk", "to_device")`."""
    status, text = await site.request("GET", "/metrics", token=site.token())
    assert status == 200
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_tell_what_the_sessions_carry(site: Site) -> None:
    traffic = site.service.sessions.traffic
    traffic.carried[Priority.BULK, Direction.TO_DEVICE] += 1000
    traffic.refused[Code.REFUSED_POLICY] += 2
    traffic.resumed += 3
    traffic.lost += 1
    traffic.links_lost[Code.CONNECTION_LOST] += 4
    site.service.session.buffered = 70
    found = await scraped(site)
    assert found["stream_bytes_total", "bulk", "to_device"] == 1000
    assert found["stream_bytes_total", "interactive", "from_device"] == 0
    assert found["denied_opens_total", "refused_policy"] == 2
    assert found["stream_resumes_total", "ok"] == 3
    assert found["stream_resumes_total", "lost"] == 1
    assert found["reconnects_total", "connection_lost"] == 4
    assert found["buffered_bytes",] == 70
    assert found["devices", "managed"] == 1
    assert found["devices", "setup"] == 0
    # The one gateway: 21 ms.
    buckets = ("gateway_rtt_seconds_bucket", "0.02"), ("gateway_rtt_seconds_bucket", "0.03")
    assert [found[bucket] for bucket in buckets] == [0, 1]
    site.service.session.connected = False
    assert (await scraped(site))["gateway_rtt_seconds_bucket", "+Inf"] == 0


async def test_without_the_registry_the_other_numbers_are_still_there(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise RegistryError("disk full")

    monkeypatch.setattr(site.service.registry, "states", fail)
    found = await scraped(site)
    assert ("stream_resumes_total", "ok") in found
    assert ("devices", "managed") not in found


async def test_events_are_streamed_as_they_come(site: Site) -> None:
    headers = {"Authorization": f"Bearer {site.token(Role.VIEWER)}"}
    async with site.http.get(site.url + EVENTS, headers=headers) as response:
        assert response.content_type == "text/event-stream"
        assert await response.content.readuntil(b"\n\n") == b": gwmodule\n\n"
        site.service.api.events.publish("default", "device", {"guid": "x"})
        assert await response.content.readuntil(b"\n\n") == b'event: device\ndata: {"guid":"x"}\n\n'
    async with asyncio.timeout(5):
        while len(site.service.api.events):
            site.service.api.events.publish("default", "device", {})
            await asyncio.sleep(0.01)


async def test_a_service_that_stops_ends_its_event_streams(site: Site) -> None:
    headers = {"Authorization": f"Bearer {site.token()}"}
    async with site.http.get(site.url + EVENTS, headers=headers) as response:
        await response.content.readuntil(b"\n\n")
        async with asyncio.timeout(1.5), asyncio.TaskGroup() as group:
            group.create_task(site.service.runner.shutdown())
            assert await response.content.read() == b""


async def test_who_is_locked_out_hears_no_more(site: Site) -> None:
    headers = {"Authorization": f"Bearer {site.token(Role.VIEWER)}"}
    async with site.http.get(site.url + EVENTS, headers=headers) as response:
        await response.content.readuntil(b"\n\n")
        await site.service.accounts.set_user(
            "viewer@default", "default", disabled=True, at=NOW, actor="test"
        )
        site.service.api.events.publish("default", "device", {"guid": "secret"})
        async with asyncio.timeout(5):
            # Cut in the middle: what follows the first comment would have been the event.
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.readuntil(b"\n\n")
    assert len(site.service.api.events) == 0


async def test_a_client_that_stops_reading_is_dropped(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "WRITE_TIMEOUT", 0.3)
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(
        f"GET {EVENTS} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Authorization: Bearer {site.token()}\r\n\r\n".encode()
    )
    await reader.readuntil(b": gwmodule\n\n")
    events = site.service.api.events
    async with asyncio.timeout(15):
        while len(events):
            for _ in range(MAX_QUEUE):
                events.publish("default", "device", {"padding": "x" * 1000})
            await asyncio.sleep(0.01)
    writer.close()
    assert (await site.request("GET", "/healthz"))[0] == 200


async def test_metrics_tell_who_stands_at_the_ports(site: Site) -> None:
    link = Strangers[int]("link", 1)
    link.enter(1, "192.0.2.1", 0.0)
    link.enter(2, "192.0.2.1", 0.0)
    site.service.api.metrics.strangers([link])
    _, text = await site.request("GET", "/metrics", token=site.token())
    assert 'strangers{port="link"} 1.0' in text
    assert 'strangers_cut_total{port="link"} 1.0' in text


async def test_events_go_on_while_the_registry_cannot_be_read(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(name: str) -> None:
        raise RegistryError("disk full")

    headers = {"Authorization": f"Bearer {site.token(Role.VIEWER)}"}
    async with site.http.get(site.url + EVENTS, headers=headers) as response:
        await response.content.readuntil(b"\n\n")
        with monkeypatch.context() as patch:
            patch.setattr(site.service.accounts, "principal", fail)
            site.service.api.events.publish("default", "device", {"guid": "x"})
            async with asyncio.timeout(5):
                event = await response.content.readuntil(b"\n\n")
        assert event == b'event: device\ndata: {"guid":"x"}\n\n'
        site.service.api.events.publish("default", "device", {"guid": "y"})
        assert b'"y"' in await response.content.readuntil(b"\n\n")


async def test_metrics_count_what_was_answered(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(tenant: str) -> None:
        raise RegistryError("disk full")

    monkeypatch.setattr(site.service.registry, "gateways", fail)
    user = {"name": "viewer@default", "role": "viewer", "password": "long enough"}
    asked = [
        ("POST", "/api/v1/users", user, 409), ("GET", "/api/v1/gateways", None, 503),
        ("GET", "/api/v1/keys", None, 200), ("GET", "/api/v1/users/%00", None, 405),
    ]  # fmt: skip
    for method, path, body, status in asked:
        assert (await site.request(method, path, body, token=site.token()))[0] == status
    found = await scraped(site)
    counted = {key[1:]: number for key, number in found.items() if key[0] == "http_requests_total"}
    # What has no row in the table of routes is not counted: its path is the caller's own.
    assert counted == {
        ("POST", "/api/v1/users", "409"): 1,
        ("GET", "/api/v1/gateways", "503"): 1,
        ("GET", "/api/v1/keys", "200"): 1,
    }
