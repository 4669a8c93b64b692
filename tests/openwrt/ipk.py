"""Builds the feed's packages once, and reads an .ipk with code that is not the builder's."""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
FEED = TREE / "openwrt"
MKIPK = FEED / "mkipk.py"
MINOR = "{}.{}".format(*sys.version_info)
SITE = f"./usr/lib/python{MINOR}/site-packages"
PINNED = dict(
    re.findall(r"^([\w-]+)==([\w.]+) ", (FEED / "requirements.txt").read_text(), re.MULTILINE)
)
FOREIGN = {name: importlib.metadata.version(name) for name in PINNED}

buildable = [
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="24.10 has Python 3.11"),
    pytest.mark.skipif(shutil.which("make") is None, reason="needs make"),
    pytest.mark.skipif(FOREIGN != PINNED, reason=f"needs {PINNED}, not {FOREIGN}"),
    pytest.mark.timeout(120),
]

CONFIG = """
config msp 'msp'
	list address '127.0.0.1:9'
config tls 'tls'
	option mode 'off'
config lan 'lan'
	list interface 'lo'
	option hello_port '0'
config control 'control'
	option socket '{folder}/control.sock'
config capture 'capture'
	option enabled '{capture}'
	option socket '{folder}/capture.sock'
"""


@dataclass
class Ipk:
    """An .ipk as read by a second, independent piece of code."""

    data: bytes
    outer: list[str]
    files: dict[str, tarfile.TarInfo]
    control: dict[str, str]
    scripts: dict[str, str]

    def depends(self) -> list[str]:
        return self.control["Depends"].split(", ")

    def unpack(self, root: Path) -> None:
        with tarfile.open(fileobj=io.BytesIO(member(self.data, "./data.tar.gz"))) as archive:
            archive.extractall(root, filter="tar")


def member(data: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


def opened(path: Path) -> Ipk:
    data = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        outer = archive.getnames()
    with tarfile.open(fileobj=io.BytesIO(member(data, "./data.tar.gz"))) as archive:
        files = {entry.name: entry for entry in archive.getmembers()}
    with tarfile.open(fileobj=io.BytesIO(member(data, "./control.tar.gz"))) as archive:
        texts = {}
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            if file is not None:
                texts[entry.name.removeprefix("./")] = file.read().decode()
    lines = texts.pop("control").splitlines()
    control = dict(line.split(": ", 1) for line in lines)
    return Ipk(data, outer, files, control, texts)


def vendor(folder: Path) -> Path:
    """The third-party modules as `pip install --target` leaves them, without a network."""
    for name in PINNED:
        for file in importlib.metadata.distribution(name).files or ():
            if file.suffix == ".pyc" or ".." in file.parts:
                continue
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target)
    return folder


def built(output: Path, modules: Path, **environment: str) -> dict[str, Ipk]:
    subprocess.run(
        [sys.executable, str(MKIPK), "--vendor", str(modules), "--output", str(output)],
        check=True,
        capture_output=True,
        env={**os.environ, **environment},
    )
    return {path.name.partition("_")[0]: opened(path) for path in sorted(output.glob("*.ipk"))}
