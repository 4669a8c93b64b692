"""Frames sent before the kernel has noticed a carrier are lost without a word; so wait for it."""

from __future__ import annotations

import json
import subprocess
import time


def wait_for_carrier(*ifnames: str) -> None:
    """In the namespace of the calling thread."""
    for _ in range(500):
        answer = subprocess.run(["ip", "-j", "link"], capture_output=True, check=True)
        states = {link["ifname"]: link["operstate"] for link in json.loads(answer.stdout)}
        if all(states.get(ifname) == "UP" for ifname in ifnames):
            return
        time.sleep(0.01)
    raise TimeoutError(f"no carrier on {', '.join(ifnames)}: {states}")
