"""A folder that stands for a router: our scripts, stand-ins around them, busybox ash below."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STUBS = Path(__file__).parent / "stubs"
FILES = Path(__file__).parents[2] / "openwrt" / "gwmodule" / "files"
# Absolute paths of the scripts that lie inside the box.
INSIDE = re.compile(r"(?<![\w.}])/(?=(?:etc|var|usr|sbin|lib|tmp)/)")
# What OpenWrt 24.10's busybox has by default and our scripts use; nothing else is on their PATH.
APPLETS = (
    "cat chmod cp grep ls md5sum mkdir mktemp mv rm sed sort touch".split()  # noqa: SIM905
)
# Commands that leave a line instead of doing something: they need root, or a router.
RECORDED = ("chgrp", "chown", "logger")
INSTALLED = {
    "gwmodule.init": "etc/init.d/gwmodule",
    "gwmodule.config": "etc/config/gwmodule",
    "gwmodule.defaults": "etc/uci-defaults/60_gwmodule",
    "gwmodule.provisionserver": "usr/libexec/gwmodule-provisionserver",
    "gwmodule.rpcd": "usr/libexec/rpcd/gwmodule",
    "relay.capabilities.json": "etc/capabilities/gwmodule-relay.json",
}


@dataclass
class Service:
    """What procd was handed."""

    instances: dict[str, dict[str, Any]] = field(default_factory=dict)
    triggers: list[list[str]] = field(default_factory=list)
    firewall: dict[str, str] = field(default_factory=dict)


class Box:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._bin = root / "bin"
        self._bin.mkdir()
        busybox = shutil.which("busybox") or "/bin/busybox"
        for applet in APPLETS:
            (self._bin / applet).symlink_to(busybox)
        (self._bin / "python3").symlink_to(sys.executable)
        for stub in ("uci", "nslookup"):
            (self._bin / stub).symlink_to(STUBS / stub)
        for command in RECORDED:
            self.write(f"bin/{command}", f'#!/bin/sh\necho "{command} $*" >>{root}/log\n', 0o755)
        for service in ("firewall", "dnsmasq", "rpcd"):
            text = f'#!/bin/sh\necho "{service} $*" >>{root}/log\n'
            self.write(f"etc/init.d/{service}", text, 0o755)
        for source, target in INSTALLED.items():
            text = (FILES / source).read_text()
            if not source.endswith(".json") and not source.endswith(".config"):
                text = self._inside(text)
            self.write(target, text, 0o755)
        for stub, target in (
            ("functions.sh", "lib/functions.sh"),
            ("network.sh", "lib/functions/network.sh"),
            ("jshn.sh", "usr/share/libubox/jshn.sh"),
        ):
            self.write(target, (STUBS / stub).read_text())
        self.write("sbin/ujail", "", 0o755)
        self.write("etc/hosts", "127.0.0.1 localhost\n")
        (root / "tmp").mkdir()
        (root / "var").mkdir()
        self.command('echo "checked $*" >>"$LOG"; exec python3 -m gwmodule "$@"')

    def _inside(self, text: str) -> str:
        return INSIDE.sub(f"{self.root}/", text)

    def outside(self, text: str) -> str:
        return text.replace(str(self.root), "")

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)
        return target

    def command(self, body: str) -> None:
        """What /usr/bin/gwmodule does."""
        self.write("usr/bin/gwmodule", f"#!/bin/sh\n{body}\n", 0o755)

    def install_capture(self) -> None:
        text = (FILES / "capture.capabilities.json").read_text()
        self.write("etc/capabilities/gwmodule-capture.json", text)

    def configure(self, text: str) -> None:
        self.write("etc/config/gwmodule", text)

    def run(
        self, script: str, *arguments: str, check: bool = True, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of the box in busybox ash; a command that is not there fails the test."""
        command = ["busybox", "ash", str(self.root / script), *arguments]
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            input=stdin,
            env={
                "PATH": str(self._bin),
                "ROUTER": str(STUBS),
                "RECORD": str(self.root / "record"),
                "LOG": str(self.root / "log"),
                "UCI_STUB": str(self.root / "etc/config"),
                "PYTHONPATH": os.pathsep.join(sys.path),
                **environment,
            },
            executable=shutil.which("busybox"),
        )
        assert "not found" not in done.stderr, done.stderr
        assert not check or done.returncode == 0, done.stderr
        return done

    def init(self, action: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """/etc/init.d/gwmodule ACTION"""
        self.write("etc/rc.common", (STUBS / "rc.common").read_text())
        script = str(self.root / "etc/init.d/gwmodule")
        return self.run("etc/rc.common", script, action, check=check)

    def log(self) -> list[str]:
        """The lines left since the last call."""
        path = self.root / "log"
        lines = self.outside(path.read_text()).splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def handed(self) -> Service | None:
        """The last definition that procd got since the last call; None: it got none."""
        path = self.root / "record"
        lines = self.outside(path.read_text()).splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        service: Service | None = None
        finished: Service | None = None
        instance: dict[str, Any] = {}
        for line in lines:
            verb, *words = line.rstrip("\t").split("\t")
            if verb == "service":
                service = Service()
            if service is None:
                continue
            match verb, words:
                case "set", []:
                    finished = service
                case "open_instance", [name]:
                    instance = service.instances[name] = {}
                case "set_param", [name, *values]:
                    instance[name] = values
                case "append_param", [name, *values]:
                    instance[name].extend(values)
                case "add_jail", [name, *flags]:
                    instance["jail"] = {"name": name, "flags": flags, "mount": {}}
                case "add_jail_mount", paths:
                    instance["jail"]["mount"] |= dict.fromkeys(paths, "ro")
                case "add_jail_mount_rw", paths:
                    instance["jail"]["mount"] |= dict.fromkeys(paths, "rw")
                case (
                    ("add_reload_trigger" | "add_reload_interface_trigger" | "add_raw_trigger"),
                    _,
                ):
                    service.triggers.append([verb, *words])
                case "json_add_string", [name, value]:
                    service.firewall[name] = value
                case _:
                    pass
        return finished
