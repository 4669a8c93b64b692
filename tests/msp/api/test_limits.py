from gwmodule.flood import FloodLimit
from gwmodule.msp.api.limits import LoginLimits


def test_a_success_is_given_back() -> None:
    limits = LoginLimits(FloodLimit(1 / 60, 1), FloodLimit(1 / 60, 1))
    for _ in range(5):
        assert limits.charge("192.0.2.1", "anna", 0.0) == 0
        limits.succeeded("192.0.2.1", "anna")
    assert limits.charge("192.0.2.1", "anna", 0.0) == 0
    assert limits.charge("192.0.2.1", "anna", 0.5) == 60


def test_one_account_is_protected_from_many_addresses() -> None:
    limits = LoginLimits(FloodLimit(1 / 1, 10), FloodLimit(1 / 60, 3))
    waits = [limits.charge(f"192.0.2.{n}", "anna", 0.0) for n in range(5)]
    assert waits == [0, 0, 0, 60, 60]
    # What the account refused is not charged to the address.
    assert [limits.charge("192.0.2.3", f"user{n}", 0.0) for n in range(10)] == [0] * 10
