"""Run a command in namespaces of its own, so that nothing of it outlives it.

    python -m gwmodule.sim.isolate -- COMMAND [ARGUMENT ...]

The command is process 1 of a PID namespace: when it ends, for whatever reason, the kernel kills
all it ever started, and with the processes go their network namespaces and mounts. Nothing has to
be cleaned up, also after Ctrl-C or `kill -9`. `/run` is an empty tmpfs, so that no socket or state
file of the machine is touched. An ordinary user becomes root of a new user namespace first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from gwmodule.errors import GatewayError

# Set for everything inside; says to a program that it may build networks here.
MARK = "GWMODULE_ISOLATED"

NAMESPACES = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
USER_NAMESPACE = ("--user", "--map-root-user")

# What a new mount and network namespace lack.
PREPARE = 'mount -t tmpfs -o mode=755 tmpfs /run && ip link set lo up && exec "$@"'

# Where Debian keeps ip, nft and dnsmasq; an ordinary user's PATH leaves it out.
SBIN = ("/usr/sbin", "/sbin")

CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21


class IsolationError(GatewayError):
    """The kernel or a missing program forbids it; the message says what would help."""


def isolated() -> bool:
    return MARK in os.environ


def privileged() -> bool:
    """Whether we may make namespaces without a user namespace: uid 0 alone does not say so."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    needed = 1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN
    return effective & needed == needed


def search_path() -> str:
    return os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN))


def unshare_command() -> list[str]:
    """The start of a command line that isolates the rest of it; IsolationError if that fails."""
    path = search_path()
    missing = [name for name in ("unshare", "mount", "ip") if not shutil.which(name, path=path)]
    if missing:
        raise IsolationError(f"not installed: {', '.join(missing)} (util-linux, iproute2)")
    prefix = ["unshare", *(() if privileged() else USER_NAMESPACE), *NAMESPACES]
    prefix += ["sh", "-c", PREPARE, "isolate"]
    environment = {**os.environ, "PATH": path}
    trial = subprocess.run([*prefix, "true"], capture_output=True, text=True, env=environment)
    if trial.returncode != 0:
        raise IsolationError(
            f"this kernel does not allow namespaces here ({trial.stderr.strip()}). Run as root, or"
            " let ordinary users have them: sysctl -w kernel.unprivileged_userns_clone=1"
            " kernel.apparmor_restrict_unprivileged_userns=0 (whichever of the two exists)"
        )
    return prefix


def execute(command: list[str]) -> NoReturn:
    """Replace this process by the isolated command; its process id becomes that of `unshare`."""
    prefix = unshare_command()
    sys.stdout.flush()
    sys.stderr.flush()
    environment = {**os.environ, "PATH": search_path(), MARK: "1"}
    os.execvpe(prefix[0], [*prefix, *command], environment)  # noqa: S606


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m gwmodule.sim.isolate -- COMMAND [ARGUMENT ...]")
        return 0 if arguments else 2
    try:
        execute(arguments)
    except (IsolationError, OSError) as exc:
        print(f"isolate: {exc}", file=sys.stderr)
        return 77


if __name__ == "__main__":
    sys.exit(main())
