import pytest

from gwmodule.msp.api.limits import Attempts, LoginLimits, Rate, network_of


def test_a_burst_is_let_through_and_then_one_in_each_period() -> None:
    attempts = Attempts(Rate(3, 10.0))
    assert [attempts.charge("a", 100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert attempts.charge("a", 100.0) == 10.0
    assert attempts.charge("a", 104.0) == 6.0
    assert attempts.charge("a", 110.0) == 0.0
    assert attempts.charge("a", 110.0) == 10.0
    assert attempts.charge("b", 110.0) == 0.0


def test_a_refused_attempt_costs_nothing() -> None:
    attempts = Attempts(Rate(1, 10.0))
    attempts.charge("a", 0.0)
    for _ in range(1000):
        assert attempts.charge("a", 0.0) == 10.0
    assert attempts.charge("a", 10.0) == 0.0


def test_what_is_remembered_is_bounded() -> None:
    attempts = Attempts(Rate(1, 10.0), most=100)
    for number in range(10_000):
        attempts.charge(str(number), 0.0)
    assert len(attempts) == 100


def test_a_success_is_given_back() -> None:
    limits = LoginLimits(Rate(1, 60.0), Rate(1, 60.0))
    for _ in range(5):
        assert limits.charge("192.0.2.1", "anna", 0.0) == 0
        limits.succeeded("192.0.2.1", "anna")
    assert limits.charge("192.0.2.1", "anna", 0.0) == 0
    assert limits.charge("192.0.2.1", "anna", 0.5) == 60


def test_one_account_is_protected_from_many_addresses() -> None:
    limits = LoginLimits(Rate(10, 1.0), Rate(3, 60.0))
    waits = [limits.charge(f"192.0.2.{n}", "anna", 0.0) for n in range(5)]
    assert waits == [0, 0, 0, 60, 60]
    # What the account refused is not charged to the address.
    assert [limits.charge("192.0.2.3", f"user{n}", 0.0) for n in range(10)] == [0] * 10


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unix", "unix"),
        ("x" * 1000, "x" * 64),
    ],
)
def test_addresses_of_one_customer_count_together(address: str, network: str) -> None:
    assert network_of(address) == network
