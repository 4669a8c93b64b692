"""How every test is judged: by what the code did, never by how busy the machine was."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Over Hypothesis's own profile for CI, where that is the one in force.
settings.register_profile(
    "gwmodule",
    settings.default,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gwmodule")
