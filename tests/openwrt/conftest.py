from pathlib import Path

import pytest

from tests.openwrt.box import Box
from tests.openwrt.ipk import Ipk, built, opened, vendor


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vendor(tmp_path_factory.mktemp("vendor"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, modules: Path) -> Path:
    output = tmp_path_factory.mktemp("ipk")
    built(output, modules)
    return output


@pytest.fixture(scope="session")
def packages(folder: Path) -> dict[str, Ipk]:
    return {path.name.partition("_")[0]: opened(path) for path in sorted(folder.glob("*.ipk"))}
