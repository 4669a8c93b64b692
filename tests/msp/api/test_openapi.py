import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gwmodule.errors import Code
from gwmodule.msp.api.openapi import document, markdown
from gwmodule.msp.api.routes import ROUTES
from tests.msp.api.conftest import Site
from tests.msp.conftest import PC, answer

ROOT = Path(__file__).parents[3]


def test_the_api_document_is_that_of_the_code() -> None:
    assert (ROOT / "docs/api.md").read_text() == markdown(), (
        "docs/api.md is old: gwmodule-msp openapi --markdown > docs/api.md"
    )


def test_every_route_is_described_and_every_reference_leads_somewhere() -> None:
    described = document()
    found = {
        (method.upper(), path)
        for path, operations in described["paths"].items()
        for method in operations
    }
    assert found == {(route.method, route.path) for route in ROUTES}
    schemas = described["components"]["schemas"]

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            here = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return here.union(*map(references, value.values()))
        if isinstance(value, list):
            return set().union(*map(references, value))
        return set()

    assert {ref.rpartition("/")[2] for ref in references(described)} <= set(schemas)


def test_a_body_without_its_fields_is_described_as_closed() -> None:
    call = document()["components"]["schemas"]["CallRequest"]
    assert call["additionalProperties"] is False
    assert call["required"] == ["function"]


def test_the_command_needs_no_service() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gwmodule.msp.cli", "openapi"],
        capture_output=True, text=True, timeout=15, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["openapi"] == "3.1.0"


# What schemathesis must not call: a stream that never ends, a WebSocket.
_EXCLUDED = "^(/api/v1/events|/relay/.*)$"


def of_the_lab(described: dict[str, Any]) -> dict[str, Any]:
    """The same, with the one device and the one gateway that there are: random ones are all 404."""
    there = {"guid": str(PC), "name": "home1", "gateway": "home1"}
    for operations in described["paths"].values():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                if parameter["in"] == "path" and parameter["name"] in there:
                    parameter["schema"] = {"type": "string", "enum": [there[parameter["name"]]]}
    return described


@pytest.mark.timeout(120)
async def test_the_service_keeps_what_the_document_says(site: Site, tmp_path: Path) -> None:
    # Everything that a handler looks for, so that what is not our fault is no server error.
    everything = {"power_state": 2, "instance": {}, "uuid": str(PC), "realm": "Digest:1"}
    site.service.session.answer = answer(Code.OK, everything)
    description = tmp_path / "openapi.json"
    description.write_text(json.dumps(of_the_lab(document())))
    # 501 is the answer to what Open AMT does and we do not, and no fault.
    (tmp_path / "schemathesis.toml").write_text(
        '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", "501"]\n'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "run", str(description),
        "--url", site.url, "--header", f"Authorization: Bearer {site.token()}",
        "--exclude-path-regex", _EXCLUDED, "--exclude-operation-id", "devices.forget",
        "--exclude-operation-id", "gateways.revoke", "--phases", "examples,coverage,fuzzing",
        "--max-examples", "4", "--seed", "1", "--workers", "1", "--no-color",
        "--suppress-health-check", "all", "--request-timeout", "5",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_schema_conformance,negative_data_rejection,unsupported_method,ignored_auth",
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-8000:]
