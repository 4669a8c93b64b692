#!/usr/bin/env python3
"""Build the feed's packages as .ipk without an SDK: mkipk.py --vendor DIR [--output DIR]

    Makefile --make--> fields, texts, filespec --> tree --> bytecode --> control, data --> .ipk
             (nosdk/ stands for the SDK)                                                Packages.gz

The feed's Makefiles stay the only description of the packages; make evaluates them against the few
stand-ins in nosdk/. Everything is pure Python, so one architecture (`all`) and no compiler will do.
An .ipk is a gzipped GNU tar of debian-binary, data.tar.gz and control.tar.gz, in this order
(OpenWrt's scripts/ipkg-build). The same tree gives the same bytes: times, owners, order and the
hash seed are fixed.

opkg releases only. From 25.12 on packages are apk's, which need apk's own tool: use the SDK.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

FEED = Path(__file__).resolve().parent
TREE = FEED.parent
# The bytecode in a package fits one minor version of Python, the release's.
RELEASES = {"23.05": (3, 11), "24.10": (3, 11)}
SITE = "usr/lib/python{}.{}/site-packages"

# scripts/package-ipkg.mk: what every package's scripts are; its own come after them.
POSTINST = """#!/bin/sh
[ "${IPKG_NO_SCRIPT}" = "1" ] && exit 0
[ -s ${IPKG_INSTROOT}/lib/functions.sh ] || exit 0
. ${IPKG_INSTROOT}/lib/functions.sh
default_postinst $0 $@
"""
PRERM = """#!/bin/sh
[ -s ${IPKG_INSTROOT}/lib/functions.sh ] || exit 0
. ${IPKG_INSTROOT}/lib/functions.sh
default_prerm $0 $@
"""
# apk refuses other versions, and a package must not change its version with the release.
VERSION = re.compile(r"[0-9]+(\.[0-9]+)*(_(alpha|beta|pre|rc|p)[0-9]*)*-r[0-9]+")


@dataclass
class Package:
    """What a Makefile says about one package."""

    name: str
    directory: Path
    fields: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return self.fields["PKG_VERSION"]

    def depends(self, minor: tuple[int, int]) -> str:
        names = [word.lstrip("+") for word in self.fields["DEPENDS"].split()]
        # opkg must not take a Python that cannot read the bytecode; the feeds' library has its
        # minor version in its name.
        if "python3-light" in names:
            names.append("libpython3-{}.{}".format(*minor))
        extra = self.fields["EXTRA_DEPENDS"]
        return ", ".join([*sorted(names), extra] if extra else sorted(names))


class BuildError(Exception):
    """The packages cannot be built; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the feed's packages as .ipk files.")
    parser.add_argument("--output", type=Path, default=TREE / "dist", metavar="DIR")
    parser.add_argument(
        "--vendor", type=Path, required=True, metavar="DIR", help="third-party modules, as pip puts"
    )
    parser.add_argument("--release", default="24.10", choices=sorted(RELEASES))
    arguments = parser.parse_args()
    # Sets in constants are written in hash order.
    if os.environ.get("PYTHONHASHSEED") != "0":
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-B", *sys.argv], environment)  # noqa: S606
    try:
        build(arguments.output, arguments.vendor.resolve(), arguments.release)
    except BuildError as exc:
        sys.stderr.write(f"mkipk: {exc}\n")
        return 1
    return 0


def build(output: Path, vendor: Path, release: str) -> None:
    minor = RELEASES[release]
    if sys.version_info[:2] != minor:
        wanted, running = ("{}.{}".format(*version) for version in (minor, sys.version_info))
        raise BuildError(
            f"OpenWrt {release} has Python {wanted} and this is {running}: "
            f"the bytecode would not load; run this with python{wanted}"
        )
    epoch = _epoch()
    output.mkdir(parents=True, exist_ok=True)
    index = []
    with tempfile.TemporaryDirectory(prefix="mkipk-") as folder:
        for makefile in sorted(FEED.glob("*/Makefile")):
            make = _Make(makefile.parent, Path(folder) / makefile.parent.name, vendor, minor)
            for package in make.packages():
                root = make.install(package)
                _compile(root)
                _keep(package, root)
                control = _control(package, root, minor, epoch)
                name = f"{package.name}_{package.version}_all.ipk"
                data = _ipk(package, root, control, epoch)
                (output / name).write_bytes(data)
                index.append(f"{control}Filename: {name}\nSize: {len(data)}\n{_sums(data)}\n")
                sys.stdout.write(f"{len(data):>9,} bytes  {name}\n")
    packages = "".join(index).encode()
    (output / "Packages").write_bytes(packages)
    (output / "Packages.gz").write_bytes(gzip.compress(packages, 9, mtime=0))


class _Make:
    """One Makefile of the feed, evaluated by GNU make."""

    def __init__(
        self, directory: Path, scratch: Path, vendor: Path, minor: tuple[int, int]
    ) -> None:
        self._directory = directory
        self._scratch = scratch
        self._vendor = vendor
        self._variables = {
            "TOPDIR": str(FEED / "nosdk"),
            "BUILD_DIR": str(scratch / "build"),
            "VENDOR": str(vendor),
            "PYTHON3_VERSION": "{}.{}".format(*minor),
        }

    def packages(self) -> list[Package]:
        """The packages as described, after everything they consist of was put together."""
        found = list(self._parse(self._run("dump")))
        for package in found:
            self._check(package)
        self._run("build")
        return found

    def install(self, package: Package) -> Path:
        """The package's files as a tree, with sources."""
        root = self._scratch / package.name
        self._run(f"install-{package.name}", DESTDIR=str(root))
        version = package.version.partition("-")[0]
        installed = self._scratch / "build" / f"{self._pkg_name}-{version}" / "ipkg-install"
        for line in package.texts["filespec"].split():
            sign, path = line.split("|")
            source, target = installed / path.lstrip("/"), root / path.lstrip("/")
            if not source.exists():
                raise BuildError(f"{package.name}: there is no {path}")
            if sign == "-":
                shutil.rmtree(target) if target.is_dir() else target.unlink()
            elif source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        return root

    def _run(self, target: str, **variables: str) -> str:
        settings = [f"{name}={value}" for name, value in (self._variables | variables).items()]
        command = ["make", "--silent", "--no-print-directory", "-C", str(self._directory)]
        # MAKEFLAGS of an outer make are about its own jobs.
        environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
        done = subprocess.run(
            [*command, target, *settings],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode:
            raise BuildError(f"{self._directory.name}: make {target}: {done.stderr.strip()}")
        return done.stdout

    def _parse(self, dump: str) -> Iterator[Package]:
        package: Package | None = None
        text: str | None = None
        for line in dump.splitlines():
            name, _, value = line.partition(" ")
            if text is not None and package is not None:
                if line == f"</{text}>":
                    text = None
                else:
                    package.texts[text] += f"{line}\n"
            elif name == "Package":
                if package is not None:
                    yield package
                package = Package(value, self._directory)
            elif package is not None and (opening := re.fullmatch(r"<(\w+)>", line)):
                text = opening[1]
                package.texts[text] = ""
            elif package is not None and name:
                package.fields[name] = value.strip()
        if package is not None:
            yield package

    def _check(self, package: Package) -> None:
        self._pkg_name = package.fields["PKG_NAME"]
        if not VERSION.fullmatch(package.version):
            raise BuildError(f"{package.name}: apk refuses the version {package.version}")
        if package.fields["PKGARCH"] != "all":
            raise BuildError(f"{package.name}: only pure Python can be built without an SDK")
        if project := package.fields["PYPI_NAME"]:
            version = package.version.partition("-")[0]
            if not (self._vendor / f"{project}-{version}.dist-info").is_dir():
                raise BuildError(
                    f"{package.name}: {self._vendor} does not hold {project} {version}"
                )


def _epoch() -> int:
    """SOURCE_DATE_EPOCH, or the day that the version is of."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    text = (TREE / "gwmodule" / "__init__.py").read_text()
    found = re.search(r"BUILD_DATE = datetime\.date\((\d+), (\d+), (\d+)\)", text)
    if found is None:
        raise BuildError("gwmodule/__init__.py names no BUILD_DATE")
    year, month, day = map(int, found.groups())
    return int(datetime(year, month, day, tzinfo=UTC).timestamp())


def _compile(root: Path) -> None:
    """Bytecode next to where the source was, and no sources: the layout of the feeds.

    Unchecked, because there is nothing to compare it with, and a time would not be reproducible.
    """
    for source in sorted(root.rglob("*.py")):
        name = "/" + source.relative_to(root).as_posix()
        py_compile.compile(
            str(source),
            str(source.with_suffix(".pyc")),
            dfile=name,
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        source.unlink()


def _keep(package: Package, root: Path) -> None:
    """As the SDK does: entries of conffiles that are no file of ours are kept by sysupgrade."""
    kept = [line for line in _conffiles(package) if not (root / line[1:]).is_file()]
    if kept:
        target = root / "lib/upgrade/keep.d" / package.name
        target.parent.mkdir(parents=True)
        target.write_text("".join(f"{line}\n" for line in kept))


def _conffiles(package: Package) -> list[str]:
    return package.texts.get("conffiles", "").split()


def _control(package: Package, root: Path, minor: tuple[int, int], epoch: int) -> str:
    description = " ".join(package.texts["description"].split())
    size = len(_tar(_files(root), epoch))
    values = {
        "Package": package.name,
        "Version": package.version,
        "Depends": package.depends(minor),
        "Source": f"openwrt/{package.directory.name}",
        "SourceName": package.fields["PKG_NAME"],
        "License": package.fields["PKG_LICENSE"],
        "Section": package.fields["SECTION"],
        "Require-User": package.fields["USERID"],
        "SourceDateEpoch": str(epoch),
        "URL": package.fields["URL"],
        "Maintainer": package.fields["PKG_MAINTAINER"],
        "Architecture": "all",
        "Installed-Size": str(size),
        "Description": description,
    }
    # An empty field crashes opkg.
    return "".join(f"{name}: {value}\n" for name, value in values.items() if value)


def _ipk(package: Package, root: Path, control: str, epoch: int) -> bytes:
    scripts = {"postinst": POSTINST, "prerm": PRERM}
    for name in ("postinst", "prerm"):
        if text := package.texts.get(name):
            scripts[f"{name}-pkg"] = text
    for name in ("preinst", "postrm"):
        if text := package.texts.get(name):
            scripts[name] = text
    parts = {name: (text.encode(), 0o755) for name, text in scripts.items()}
    parts["control"] = (control.encode(), 0o644)
    kept = [line for line in _conffiles(package) if (root / line[1:]).is_file()]
    if kept:
        parts["conffiles"] = ("".join(f"{line}\n" for line in kept).encode(), 0o644)
    members: dict[str, tuple[bytes | None, int]] = {".": (None, 0o755)}
    members |= {f"./{name}": parts[name] for name in sorted(parts)}
    whole: dict[str, tuple[bytes | None, int]] = {
        "./debian-binary": (b"2.0\n", 0o644),
        "./data.tar.gz": (_gzip(_tar(_files(root), epoch)), 0o644),
        "./control.tar.gz": (_gzip(_tar(members, epoch)), 0o644),
    }
    return _gzip(_tar(whole, epoch))


def _files(root: Path) -> dict[str, tuple[bytes | None, int]]:
    """Every folder (None) and file below `root` with its mode, in a fixed order."""
    members: dict[str, tuple[bytes | None, int]] = {".": (None, 0o755)}
    for path in sorted(root.rglob("*")):
        name = f"./{path.relative_to(root).as_posix()}"
        if path.is_dir():
            members[name] = (None, 0o755)
        else:
            # The builder's umask and checkout must not show; 0600 is INSTALL_CONF's.
            mode = path.stat().st_mode
            kind = 0o755 if mode & 0o100 else 0o644
            members[name] = (path.read_bytes(), 0o600 if "/etc/config/" in name else kind)
    return members


def _tar(members: dict[str, tuple[bytes | None, int]], epoch: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, (data, mode) in members.items():
            entry = tarfile.TarInfo(name)
            entry.mtime, entry.mode = epoch, mode
            if data is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            else:
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)


def _sums(data: bytes) -> str:
    return f"SHA256sum: {hashlib.sha256(data).hexdigest()}\n"


if __name__ == "__main__":
    sys.exit(main())
