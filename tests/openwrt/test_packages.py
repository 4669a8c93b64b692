from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gwmodule import __version__
from tests.openwrt.ipk import (
    CONFIG,
    FEED,
    MINOR,
    PINNED,
    SITE,
    Ipk,
    buildable,
    built,
    member,
)
from tests.test_layers import MODULES, imports

BARE = Path(__file__).with_name("bare.py")

pytestmark = buildable


@pytest.fixture
def mkipk() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("mkipk", FEED / "mkipk.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mkipk"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mkipk"]


def test_the_feed_is_five_packages(packages: dict[str, Ipk]) -> None:
    assert list(packages) == [
        "gwmodule-capture",
        "gwmodule-pyroute2",
        "gwmodule",
        "python3-construct",
        "python3-h11",
    ]


def test_the_version_is_the_programs_and_one_that_apk_takes(packages: dict[str, Ipk]) -> None:
    assert packages["gwmodule"].control["Version"] == f"{__version__}-r1"
    for name, version in PINNED.items():
        package = f"gwmodule-{name}" if name == "pyroute2" else f"python3-{name}"
        assert packages[package].control["Version"] == f"{version}-r1"
    for ipk in packages.values():
        assert re.fullmatch(
            r"\d+(\.\d+)*[a-z]?(_(alpha|beta|pre|rc|p)\d*)*-r\d+", ipk.control["Version"]
        )


def test_an_ipk_is_three_members_in_opkgs_order(packages: dict[str, Ipk]) -> None:
    for ipk in packages.values():
        assert ipk.outer == ["./debian-binary", "./data.tar.gz", "./control.tar.gz"]
        assert member(ipk.data, "./debian-binary") == b"2.0\n"


def test_tar_and_busybox_read_it_too(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.ipk"):
        for number, tar in enumerate((["tar"], ["busybox", "tar"])):
            if shutil.which(tar[0]) is None:
                continue
            target = tmp_path / f"{path.stem}-{number}"
            target.mkdir()
            subprocess.run([*tar, "-xzf", str(path), "-C", str(target)], check=True)
            listing = subprocess.run(
                [*tar, "-tzf", str(target / "control.tar.gz")],
                check=True,
                capture_output=True,
                text=True,
            )
            assert "./control" in listing.stdout.split()


def test_no_control_field_is_empty(packages: dict[str, Ipk]) -> None:
    for ipk in packages.values():
        assert all(value.strip() for value in ipk.control.values())
        assert ipk.control["Architecture"] == "all"
        for field in ("Package", "Version", "License", "Maintainer", "Description", "Depends"):
            assert field in ipk.control


def test_every_file_is_roots_with_a_fixed_time_and_mode(packages: dict[str, Ipk]) -> None:
    for ipk in packages.values():
        for name, entry in ipk.files.items():
            assert (entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, "", "")
            assert entry.mtime == int(ipk.control["SourceDateEpoch"])
            assert entry.isdir() or entry.isfile(), name
            assert entry.mode in ((0o755,) if entry.isdir() else (0o755, 0o644, 0o600))
        assert list(ipk.files) == sorted(ipk.files, key=lambda name: name.split("/"))


def test_two_builds_in_two_places_are_the_same_bytes(
    packages: dict[str, Ipk], folder: Path, modules: Path, tmp_path: Path
) -> None:
    other = tmp_path / "a folder with another name"
    copied = shutil.copytree(modules, tmp_path / "modules")
    again = built(other, copied, PYTHONHASHSEED="7", TZ="Asia/Kolkata", LC_ALL="C")
    assert {name: ipk.data for name, ipk in again.items()} == {
        name: ipk.data for name, ipk in packages.items()
    }
    assert (other / "Packages.gz").read_bytes() == (folder / "Packages.gz").read_bytes()


def test_the_index_names_every_file_with_its_hash(packages: dict[str, Ipk], folder: Path) -> None:
    text = gzip.decompress((folder / "Packages.gz").read_bytes()).decode()
    assert text == (folder / "Packages").read_text()
    entries = [
        dict(line.split(": ", 1) for line in entry.splitlines())
        for entry in text.strip().split("\n\n")
    ]
    assert len(entries) == len(packages)
    for entry in entries:
        data = (folder / entry["Filename"]).read_bytes()
        assert int(entry["Size"]) == len(data)
        assert entry["SHA256sum"] == hashlib.sha256(data).hexdigest()
        control = packages[entry["Package"]].control
        assert {name: entry[name] for name in control} == control


def test_python_is_bytecode_only_and_never_looks_for_a_source(packages: dict[str, Ipk]) -> None:
    for ipk in packages.values():
        assert not [name for name in ipk.files if name.endswith(".py") or "__pycache__" in name]
        with tarfile.open(fileobj=io.BytesIO(member(ipk.data, "./data.tar.gz"))) as archive:
            for name in ipk.files:
                if name.endswith(".pyc"):
                    file = archive.extractfile(name)
                    assert file is not None
                    head = file.read(8)
                    assert head[:4] == importlib.util.MAGIC_NUMBER
                    # PEP 552: hash-based, not checked.
                    assert head[4:] == b"\x01\0\0\0", name


def test_nothing_of_the_msp_the_simulator_or_the_capture_is_in_the_relay(
    packages: dict[str, Ipk],
) -> None:
    relay = set(packages["gwmodule"].files)
    assert not [name for name in relay if re.search(r"gwmodule/(msp|sim)\b|scapy", name)]
    capture = set(packages["gwmodule-capture"].files)
    shared = {name for name in relay & capture if not packages["gwmodule"].files[name].isdir()}
    assert shared == set()
    for module in ("service", "sniffer", "dissect"):
        assert f"{SITE}/gwmodule/capture/{module}.pyc" in capture


def test_a_router_gets_the_modules_that_the_command_can_reach_and_no_other(
    packages: dict[str, Ipk],
) -> None:
    wanted, open_ends = set[str](), {"gwmodule.__main__"}
    while open_ends:
        name = open_ends.pop()
        wanted.add(name)
        found = imports(MODULES[name]) | {name.rpartition(".")[0]}
        open_ends |= (found & MODULES.keys()) - wanted
    shipped = {
        name.removeprefix(f"{SITE}/").removesuffix(".pyc").replace("/", ".")
        for package in ("gwmodule", "gwmodule-capture")
        for name in packages[package].files
        if name.endswith(".pyc")
    }
    assert {name.removesuffix(".__init__") for name in shipped} == wanted


def test_what_a_router_keeps(packages: dict[str, Ipk], tmp_path: Path) -> None:
    ipk = packages["gwmodule"]
    assert ipk.scripts["conffiles"] == "/etc/config/gwmodule\n"
    assert ipk.files["./etc/config/gwmodule"].mode == 0o600
    ipk.unpack(tmp_path)
    assert (tmp_path / "lib/upgrade/keep.d/gwmodule").read_text() == "/etc/gwmodule/\n"


def test_users_come_with_the_packages(packages: dict[str, Ipk]) -> None:
    assert packages["gwmodule"].control["Require-User"] == "gwmodule=971:gwmodule=971"
    assert packages["gwmodule-capture"].control["Require-User"] == "gwcapture=972:gwmodule=971"


def test_every_dependency_is_ours_or_the_feeds(packages: dict[str, Ipk]) -> None:
    feeds = re.compile(r"python3-\w+|libpython3-3\.11|openssl-util|scapy")
    for ipk in packages.values():
        for name in ipk.depends():
            plain = name.partition(" ")[0]
            assert plain in packages or feeds.fullmatch(plain), name
    for name in set(packages) - {"gwmodule-capture"}:
        assert f"libpython3-{MINOR}" in packages[name].depends()
    assert f"gwmodule (= {__version__}-r1)" in packages["gwmodule-capture"].depends()


# ---- installed


@pytest.fixture(scope="session")
def relay_tree(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Ipk]) -> Path:
    root = tmp_path_factory.mktemp("relay")
    for name in packages:
        if name != "gwmodule-capture":
            packages[name].unpack(root)
    return root


def parts(packages: dict[str, Ipk]) -> str:
    """The parts of Python's library that come with the relay and its libraries."""
    names = {n for name in packages if name != "gwmodule-capture" for n in packages[name].depends()}
    return ",".join(sorted(n.removeprefix("python3-") for n in names if n.startswith("python3-")))


def command(tree: Path, declared: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-B", str(BARE), str(tree), declared, *arguments]


def config(folder: Path, capture: int = 0) -> str:
    file = folder / "gwmodule"
    file.write_text(CONFIG.format(folder=folder, capture=capture))
    return str(file)


def run(tree: Path, declared: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(tree, declared, *arguments), check=False, capture_output=True, text=True
    )


def test_the_installed_command_tells_its_version(
    relay_tree: Path, packages: dict[str, Ipk]
) -> None:
    done = run(relay_tree, parts(packages), "--version")
    assert (done.returncode, done.stdout) == (0, f"gwmodule {__version__}\n")


def test_it_checks_configurations(
    relay_tree: Path, packages: dict[str, Ipk], tmp_path: Path
) -> None:
    good = run(relay_tree, parts(packages), "check-config", "--config", config(tmp_path))
    assert good.returncode == 0, good.stderr
    shipped = str(relay_tree / "etc/config/gwmodule")
    bad = run(relay_tree, parts(packages), "check-config", "--config", shipped)
    assert bad.returncode == 78
    assert "msp.address: is empty" in bad.stderr


def test_it_provisions_with_nothing_but_what_is_declared(
    relay_tree: Path, packages: dict[str, Ipk], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("gwe_x\n")
    done = run(
        relay_tree, parts(packages), "provision", "--msp", "127.0.0.1:1", "--lan", "lo",
        "--token-file", str(token), "--ca-fingerprint", "0" * 64,
        "--config", str(tmp_path / "gwmodule.toml"),
    )  # fmt: skip
    # As far as the network, which has no MSP: key and request are made, HTTPS is loaded.
    assert (done.returncode, done.stdout) == (75, ""), done.stderr
    assert "Connection refused" in done.stderr
    assert (tmp_path / "gateway.key").exists()


def test_the_relay_runs_with_nothing_but_what_is_declared(
    relay_tree: Path, packages: dict[str, Ipk], tmp_path: Path
) -> None:
    file = config(tmp_path)
    relay = subprocess.Popen(
        command(relay_tree, parts(packages), "relay", "--config", file),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "control.sock").exists():
            assert relay.poll() is None, relay.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # Long enough for the first dump of the kernel's tables and an attempt to dial.
        time.sleep(1)
        status = run(relay_tree, parts(packages), "status", "--json", "--config", file)
        assert status.returncode == 0, status.stderr
    finally:
        relay.send_signal(signal.SIGTERM)
        errors = relay.communicate(timeout=20)[1]
    assert "Traceback" not in errors
    assert relay.returncode == 0


def test_every_module_of_the_relay_can_be_imported(
    relay_tree: Path, packages: dict[str, Ipk], tmp_path: Path
) -> None:
    prefix = f"{SITE}/"
    names = [
        name.removeprefix(prefix).removesuffix(".pyc").replace("/", ".").removesuffix(".__init__")
        for name in packages["gwmodule"].files
        if name.endswith(".pyc") and not name.endswith("__main__.pyc")
    ]
    # In the launcher's place: the same paths, and everything instead of one command. Names are
    # looked up as IDNA, which is not imported before the first one.
    tree = shutil.copytree(relay_tree, tmp_path / "tree")
    launcher = tree / "usr/bin/gwmodule"
    text = launcher.read_text().replace("sys.exit(main())", "")
    imports = "".join(f"import {name}\n" for name in names)
    launcher.write_text(f"{text}\n{imports}'msp.example'.encode('idna')\nprint('all')\n")
    done = run(tree, parts(packages))
    assert (done.returncode, done.stdout) == (0, "all\n"), done.stderr
    missing = run(tree, parts(packages).replace("codecs", "none"))
    assert "unknown encoding: idna" in missing.stderr


def test_no_declared_part_is_superfluous(
    relay_tree: Path, packages: dict[str, Ipk], tmp_path: Path
) -> None:
    declared = parts(packages).split(",")
    file = config(tmp_path)
    # codecs: see above. light is everything else; construct and h11 are no parts of the library;
    # the feed's xml needs urllib anyway.
    for part in sorted(set(declared) - {"codecs", "construct", "h11", "light", "urllib"}):
        others = ",".join(name for name in declared if name != part)
        done = run(relay_tree, others, "relay", "--config", file)
        assert done.returncode != 0, part
        assert "No module named" in done.stderr, part


def test_without_its_package_the_capture_says_so(
    relay_tree: Path, packages: dict[str, Ipk], tmp_path: Path
) -> None:
    done = run(relay_tree, parts(packages), "capture", "--config", config(tmp_path, 1))
    assert done.returncode == 78
    assert "capture.enabled: gwmodule-capture is not installed" in done.stderr


def test_another_python_is_refused_in_words(
    packages: dict[str, Ipk], tmp_path: Path, mkipk: ModuleType
) -> None:
    script = tmp_path / "preinst"
    script.write_text(packages["gwmodule"].scripts["preinst"])
    (tmp_path / "usr/lib/python3.13").mkdir(parents=True)
    environment = {**os.environ, "IPKG_INSTROOT": str(tmp_path)}
    done = subprocess.run(
        ["sh", str(script)], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert "this package is for Python 3.11, which is not installed" in done.stderr
    (tmp_path / "usr/lib/python3.11").mkdir()
    assert subprocess.run(["sh", str(script)], check=False, env=environment).returncode == 0
    mkipk.RELEASES["24.10"] = (3, 13)
    with pytest.raises(mkipk.BuildError, match=r"has Python 3\.13 and this is 3\.11"):
        mkipk.build(tmp_path, tmp_path, "24.10")


def test_a_command_without_its_modules_names_the_cure(tmp_path: Path) -> None:
    launcher = FEED / "gwmodule/files/gwmodule.launcher"
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(launcher)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 78
    assert f"cannot be loaded by Python {MINOR} (No module named 'gwmodule')" in done.stderr
    assert "install the package that was built for this release" in done.stderr


def test_modules_of_another_version_are_not_packaged(
    modules: Path, tmp_path: Path, mkipk: ModuleType
) -> None:
    other = shutil.copytree(modules, tmp_path / "modules")
    (other / f"h11-{PINNED['h11']}.dist-info").rename(other / "h11-0.1.dist-info")
    with pytest.raises(mkipk.BuildError, match=r"python3-h11: .* does not hold h11"):
        mkipk.build(tmp_path / "out", other, "24.10")


def test_the_packages_scripts_pass_shellcheck(packages: dict[str, Ipk], tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    for name, ipk in packages.items():
        for script in ("preinst", "postinst-pkg", "prerm-pkg", "postrm"):
            if script in ipk.scripts:
                file = tmp_path / f"{name}.{script}"
                file.write_text(ipk.scripts[script])
                done = subprocess.run(
                    ["shellcheck", "-s", "dash", str(file)],
                    check=False,
                    capture_output=True,
                    text=True,
                )
                assert done.stdout == ""


def test_our_own_part_is_small(packages: dict[str, Ipk]) -> None:
    relay = sum(len(packages[name].data) for name in packages if name != "gwmodule-capture")
    assert relay < 1.25 * 1024 * 1024
    assert len(packages["gwmodule-capture"].data) < 64 * 1024
