"""Each module has its test file, and each test file its module: tests/ mirrors gwmodule/."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TESTS = ROOT / "gwmodule", ROOT / "tests"

# Modules without a test file of their own: which file tests them, and it must exist.
ELSEWHERE = {
    # Compositions: nothing in them is worth a test that is not true of the whole system.
    "__main__.py": "test_supervisor.py",
    "gateway.py": "lab/test_demo.py",
    # Seen as their users see them: a process with arguments.
    "msp/commands": "msp/test_cli.py",
    # The two ends of the link are judged together, over a real connection.
    "msp/session.py": "uplink/test_dialer.py",
    # Rows, their SQL and the rules over them are judged by what the registry then says.
    "msp/observations.py": "msp/test_registry.py",
    "msp/records.py": "msp/test_registry.py",
    "msp/tables.py": "msp/test_registry.py",
    # Parts of one request: each is judged by what a client gets.
    "msp/api": "msp/test_api.py",
    "msp/seam.py": "msp/test_server.py",
    # What builds the lab is proved by what the lab proves.
    "sim/demo.py": "lab/test_demo.py",
    "sim/dhcp.py": "lab/test_dhcp.py",
    "sim/hosts.py": "lab/test_hosts.py",
    "sim/isolate.py": "lab/test_hosts.py",
    "sim/lab.py": "lab/test_lab_command.py",
    "sim/services.py": "lab/test_restarts.py",
    "sim/topology.py": "lab/test_hosts.py",
    # Parts of the simulated device, seen as its peers see them.
    "sim/classes": "sim/test_classes.py",
}
# Test files that are about more than one module.
ACROSS = {
    "provisioning/test_recipes.py",
    "amt/test_loopback.py",
    "amt/test_replay.py",
    "sim/test_catalogue.py",
    "test_documents.py",
    "test_layers.py",
    "test_manual.py",
    "test_pairing.py",
    "wire/test_mux_properties.py",
    "wire/test_protocol_document.py",
    "wire/test_session_machine.py",
}
# Directories of tests that look at the whole system or at what is around it.
WHOLE = {"bench", "console", "faults", "interop", "lab", "openwrt", "systemd"}


def is_trivial(path: Path) -> bool:
    """Docstring, imports, names and types: nothing that could be wrong by itself."""

    def plain(node: ast.stmt) -> bool:
        if isinstance(node, ast.ClassDef):
            return all(map(plain, node.body))
        return isinstance(
            node, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.Pass
        )

    return all(map(plain, ast.parse(path.read_text()).body))


def own_test(module: str) -> str:
    path = Path(module)
    if path.name == "__init__.py":
        path = path.parent
    return str(path.parent / f"test_{path.stem}.py")


def stand_in(module: str) -> str | None:
    """The file that ELSEWHERE names for a module or for its package."""
    return ELSEWHERE.get(module) or ELSEWHERE.get(str(Path(module).parent))


MODULES = [
    str(path.relative_to(SOURCE))
    for path in sorted(SOURCE.rglob("*.py"))
    if path.name != "__init__.py" and not is_trivial(path)
]
TEST_FILES = [
    str(path.relative_to(TESTS))
    for path in sorted(TESTS.rglob("test_*.py"))
    if path.relative_to(TESTS).parts[0] not in WHOLE
]


@pytest.mark.parametrize("module", MODULES)
def test_each_module_has_its_test_file(module: str) -> None:
    if (TESTS / own_test(module)).exists():
        assert module not in ELSEWHERE, f"{module} has {own_test(module)} now: drop its row"
        return
    other = stand_in(module)
    assert other, f"{module} has neither {own_test(module)} nor a row in ELSEWHERE"
    assert (TESTS / other).exists(), f"{other}, which stands in for {module}, is not there"


@pytest.mark.parametrize("test_file", TEST_FILES)
def test_each_test_file_has_its_module(test_file: str) -> None:
    path = Path(test_file)
    name = path.stem.removeprefix("test_")
    mirrored = SOURCE / path.parent / f"{name}.py"
    package = SOURCE / path.parent / name / "__init__.py"
    assert mirrored.exists() or package.exists() or test_file in ACROSS, (
        f"{test_file} mirrors nothing: a typing error, or a row for ACROSS?"
    )


def test_the_lists_name_only_what_exists() -> None:
    assert [name for name in ELSEWHERE if not (SOURCE / name).exists()] == []
    assert [name for name in ACROSS if not (TESTS / name).exists()] == []
