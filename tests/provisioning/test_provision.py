from __future__ import annotations

import datetime
import stat
import threading
from pathlib import Path

import pytest

from gwmodule import BUILD_DATE
from gwmodule.config import load
from gwmodule.errors import ConfigError
from gwmodule.provisioning import provision as module
from gwmodule.provisioning.client import Refused, TryLater
from gwmodule.provisioning.identity import ImageKey, Paths, ProvisioningError
from gwmodule.provisioning.provision import (
    MAX_TOKEN,
    deprovision,
    provision,
    renew,
    token_from,
    wall_clock,
    with_port,
)
from gwmodule.uplink.tls import client_context
from tests.provisioning.conftest import LINK_PORT, Gateway, Msp

DAY = 86400.0
AT_BOOT = datetime.datetime(1970, 1, 1, 0, 0, 40, tzinfo=datetime.UTC)


def later(days: float) -> datetime.datetime:
    return wall_clock() + datetime.timedelta(days=days)


def test_a_gateway_gets_all_that_a_link_needs(msp: Msp, gateway: Gateway) -> None:
    done = provision(gateway.wanted(msp, msp.token()))
    assert done["changed"]
    assert done["gateway"] == "home-1"
    config = load(gateway.config)
    assert config.msp.address == (f"127.0.0.1:{LINK_PORT}",)
    assert config.msp.enrolment == msp.address
    assert config.lan.interface == ("br-lan",)
    client_context(config.tls, clock_trusted=True)
    assert msp.allowed("home-1", gateway.certificate)
    assert stat.S_IMODE(gateway.key.stat().st_mode) in (0o600, 0o640)
    assert msp.audit()[:2] == ["gateway.enrol", "gateway.invite"]


def test_a_second_run_changes_nothing_and_needs_no_token(msp: Msp, gateway: Gateway) -> None:
    wanted = gateway.wanted(msp, msp.token())
    provision(wanted)
    before = gateway.state()
    gateway.token_file.unlink()
    assert not provision(wanted)["changed"]
    assert gateway.state() == before


def test_a_dry_run_writes_nothing_and_asks_nobody(msp: Msp, gateway: Gateway) -> None:
    wanted = gateway.wanted(msp, "no token at all", check=True)
    msp.stop()
    try:
        done = provision(wanted)
    finally:
        msp.start()
    assert done["changed"]
    assert any("gateway.key" in step for step in done["changes"])
    assert gateway.state() == {}


def test_a_lost_answer_is_given_again_to_the_same_key(
    msp: Msp, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = gateway.wanted(msp, msp.token())

    def lost(*_: object) -> None:
        raise OSError("the power failed")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_install", lost)
        with pytest.raises(OSError, match="power"):
            provision(wanted)
    assert [file.name for file in gateway.directory.iterdir()] == ["gateway.key"]
    provision(wanted)
    assert msp.allowed("home-1", gateway.certificate)
    assert msp.audit().count("gateway.enrol") == 1


def test_a_used_token_is_nothing_for_another_key(
    msp: Msp, gateway: Gateway, tmp_path: Path
) -> None:
    token = msp.token()
    provision(gateway.wanted(msp, token))
    other = Gateway(tmp_path / "other")
    with pytest.raises(Refused, match="used already") as refused:
        provision(other.wanted(msp, token))
    assert refused.value.error == "TOKEN_USED"
    assert not other.certificate.exists()
    assert not other.config.exists()
    assert msp.allowed("home-1", gateway.certificate)


def test_wrong_and_expired_tokens_are_refused(msp: Msp, gateway: Gateway) -> None:
    with pytest.raises(Refused, match="no such token"):
        provision(gateway.wanted(msp, "gwe_wrong"))
    token = msp.token()
    msp.now += 8 * DAY
    with pytest.raises(Refused, match="expired"):
        provision(gateway.wanted(msp, token))
    assert not gateway.certificate.exists()


def test_a_token_for_another_gateway_is_not_used_up(msp: Msp, gateway: Gateway) -> None:
    token = msp.token("home-2")
    with pytest.raises(Refused, match="for the gateway home-2"):
        provision(gateway.wanted(msp, token, gateway="home-1"))
    assert provision(gateway.wanted(msp, token, gateway="home-2"))["gateway"] == "home-2"


def test_another_msp_than_the_pinned_one_never_sees_the_token(msp: Msp, gateway: Gateway) -> None:
    with pytest.raises(ProvisioningError, match="somebody in between"):
        provision(gateway.wanted(msp, msp.token(), ca_fingerprint="0" * 64))
    assert msp.audit() == ["gateway.invite"]


def test_without_a_pin_an_unknown_authority_is_refused(msp: Msp, gateway: Gateway) -> None:
    with pytest.raises(ProvisioningError, match="--ca-fingerprint"):
        provision(gateway.wanted(msp, msp.token(), ca_fingerprint=None))
    assert msp.audit() == ["gateway.invite"]


def test_an_authority_that_the_image_brought_is_a_pin(msp: Msp, gateway: Gateway) -> None:
    gateway.ca.write_text(msp.authority.ca)
    provision(gateway.wanted(msp, msp.token(), ca_fingerprint=None))
    assert msp.allowed("home-1", gateway.certificate)


def test_before_the_clock_is_set_dates_do_not_count_but_the_pin_does(
    tmp_path: Path, gateway: Gateway
) -> None:
    """The MSP's certificate begins in ten years: to a clock that is set, it is not valid."""
    directory = tmp_path / "future"
    directory.mkdir()
    msp = Msp(directory)
    try:
        msp.stop()
        for file in directory.iterdir():
            file.unlink()
        msp.now += 3650 * DAY
        msp.start()
        wanted = gateway.wanted(msp, msp.token())
        with pytest.raises(ProvisioningError, match="not yet valid"):
            provision(wanted)
        with pytest.raises(TryLater, match="clock is not set"):
            provision(gateway.wanted(msp, msp.token(), ca_fingerprint=None), lambda: AT_BOOT)
        wanted = gateway.wanted(msp, msp.token())
        assert provision(wanted, lambda: AT_BOOT)["changed"]
        assert not provision(wanted, lambda: AT_BOOT)["changed"]
        with pytest.raises(TryLater, match="whether renewal is due"):
            renew(gateway.config, lambda: AT_BOOT)
    finally:
        msp.stop()
        msp.end()
    assert AT_BOOT.date() < BUILD_DATE


def test_an_msp_that_is_away_is_a_reason_to_try_again(msp: Msp, gateway: Gateway) -> None:
    token, port = msp.token(), msp.port
    wanted = gateway.wanted(msp, token)
    msp.stop()
    with pytest.raises(TryLater, match="refused"):
        provision(wanted)
    msp.start(port)
    provision(wanted)
    assert msp.allowed("home-1", gateway.certificate)


def test_it_waits_for_the_msp(msp: Msp, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES", (0.1,))
    wanted = gateway.wanted(msp, msp.token(), wait=10.0)
    port = msp.port
    msp.stop()
    timer = threading.Timer(0.5, msp.start, [port])
    timer.start()
    assert provision(wanted)["changed"]
    timer.join()


def test_a_provisioned_gateway_is_not_taken_over_by_the_way(msp: Msp, gateway: Gateway) -> None:
    wanted = gateway.wanted(msp, msp.token())
    provision(wanted)
    before = gateway.state()
    for other in (
        gateway.wanted(msp, "x", gateway="home-2"),
        gateway.wanted(msp, "x", msp="other.example:1"),
        gateway.wanted(msp, "x", ca_fingerprint="0" * 64),
    ):
        with pytest.raises(ProvisioningError, match="gwmodule deprovision"):
            provision(other)
    assert gateway.state() == before


def test_the_lan_is_not_guessed(msp: Msp, gateway: Gateway) -> None:
    with pytest.raises(ConfigError, match="--lan"):
        provision(gateway.wanted(msp, msp.token(), lan=()))
    assert gateway.state() == {}


@pytest.mark.parametrize(
    ("text", "lan"),
    [("", ("br 0",)), ("msp = {connect_timeout = 3.0}\n", ("br0",)), ("", ("x" * 16,))],
)
def test_what_cannot_be_written_is_found_before_the_token_is_used(
    msp: Msp, gateway: Gateway, text: str, lan: tuple[str, ...]
) -> None:
    if text:
        gateway.config.write_text(text)
    with pytest.raises(ConfigError):
        provision(gateway.wanted(msp, msp.token(), lan=lan))
    assert msp.audit() == ["gateway.invite"]


def test_comments_and_other_settings_stay(msp: Msp, gateway: Gateway) -> None:
    paths = "".join(
        f'{key} = "{path}"\n'
        for key, path in (
            ("key", gateway.key),
            ("certificate", gateway.certificate),
            ("cafile", gateway.ca),
        )
    )
    text = f'# ours\n[log]\nlevel = "debug"  # for now\n\n[lan]\ninterface = "br0"\n[tls]\n{paths}'
    gateway.config.write_text(text)
    provision(gateway.wanted(msp, msp.token(), lan=()))
    new = gateway.config.read_text()
    assert new.startswith(text)
    assert load(gateway.config).log.level == "debug"
    deprovision(gateway.config)
    assert load(gateway.config).msp.address == ()
    assert gateway.config.read_text().startswith(text)


def test_a_key_of_the_image_is_refused(
    msp: Msp, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provision(gateway.wanted(msp, msp.token()))
    rom = tmp_path / "rom"
    (rom / gateway.directory.relative_to("/")).mkdir(parents=True)
    image = rom / gateway.key.relative_to("/")
    image.write_bytes(gateway.key.read_bytes())
    monkeypatch.setattr("gwmodule.provisioning.identity.ROM", rom)
    with pytest.raises(ImageKey, match="every box made from the image"):
        provision(gateway.wanted(msp, "x"))
    with pytest.raises(ImageKey, match="every box made from the image"):
        renew(gateway.config, force=True)
    deprovision(gateway.config)
    provision(gateway.wanted(msp, msp.token(replace=True)))
    assert gateway.key.read_bytes() != image.read_bytes()


def test_renewal_is_due_at_two_thirds_and_keeps_the_key(msp: Msp, gateway: Gateway) -> None:
    provision(gateway.wanted(msp, msp.token()))
    before = gateway.state()
    assert not renew(gateway.config, lambda: later(240))["changed"]
    assert gateway.state() == before
    msp.now += 250 * DAY
    done = renew(gateway.config, lambda: later(250))
    assert done["changed"]
    after = gateway.state()
    assert {name for name in after if after[name] != before[name]} == {"gateway.crt"}
    assert msp.audit()[0] == "gateway.renew"


def test_both_certificates_are_good_until_the_next_one_is_used(msp: Msp, gateway: Gateway) -> None:
    provision(gateway.wanted(msp, msp.token()))
    first = gateway.directory.parent / "first.crt"
    first.write_bytes(gateway.certificate.read_bytes())
    renew(gateway.config, force=True)
    assert msp.allowed("home-1", first)
    assert msp.allowed("home-1", gateway.certificate)
    use(msp, gateway.certificate)
    assert msp.allowed("home-1", gateway.certificate)
    assert not msp.allowed("home-1", first)


def use(msp: Msp, certificate: Path) -> None:
    """The gateway makes a link with it."""
    from cryptography import x509

    from gwmodule.msp.pki import fingerprint
    from gwmodule.msp.registry import LinkUp

    shown = fingerprint(x509.load_pem_x509_certificate(certificate.read_bytes()))
    msp.run(msp.registry.record([LinkUp("home-1", shown, "192.0.2.1", 1, "test", msp.now)]))


def test_an_expired_certificate_renews_within_the_grace_period(msp: Msp, gateway: Gateway) -> None:
    msp.now -= 380 * DAY
    token = msp.token()
    provision(gateway.wanted(msp, token))
    msp.now += 380 * DAY  # It ended 15 days ago.
    assert renew(gateway.config)["changed"]
    msp.now += 400 * DAY
    with pytest.raises(Refused, match="30 days of grace"):
        renew(gateway.config, force=True)


def test_one_that_ended_long_ago_is_enrolled_anew_with_a_new_token(
    msp: Msp, gateway: Gateway
) -> None:
    msp.now -= 500 * DAY
    provision(gateway.wanted(msp, msp.token()))
    msp.now += 500 * DAY
    with pytest.raises(Refused, match="grace"):
        renew(gateway.config)
    assert provision(gateway.wanted(msp, msp.token(replace=True)))["changed"]
    assert msp.allowed("home-1", gateway.certificate)


def test_a_revoked_gateway_may_not_renew(msp: Msp, gateway: Gateway) -> None:
    provision(gateway.wanted(msp, msp.token()))
    unused = msp.token(replace=True)
    msp.run(msp.registry.revoke_gateway("home-1", msp.now + 1, actor="test"))
    before = gateway.state()
    with pytest.raises(Refused, match="not enrolled any more"):
        renew(gateway.config, force=True)
    assert gateway.state() == before
    deprovision(gateway.config)
    with pytest.raises(Refused, match="revoked after"):
        provision(gateway.wanted(msp, unused))


def test_deprovisioning_tells_the_msp_and_leaves_nothing(msp: Msp, gateway: Gateway) -> None:
    provision(gateway.wanted(msp, msp.token()))
    copy = gateway.directory.parent / "copy.crt"
    copy.write_bytes(gateway.certificate.read_bytes())
    done = deprovision(gateway.config)
    assert done["msp_told"]
    assert [file.name for file in gateway.directory.iterdir()] == ["gwmodule.toml"]
    assert not msp.allowed("home-1", copy)
    assert msp.audit()[0] == "gateway.deprovision"
    assert not deprovision(gateway.config)["changed"]


def test_deprovisioning_works_without_the_msp(msp: Msp, gateway: Gateway) -> None:
    provision(gateway.wanted(msp, msp.token()))
    msp.stop()
    try:
        done = deprovision(gateway.config)
    finally:
        msp.start()
    assert done["changed"]
    assert not done["msp_told"]
    assert not gateway.key.exists()


def test_two_at_once_do_not_disturb_each_other(msp: Msp, gateway: Gateway) -> None:
    wanted = gateway.wanted(msp, msp.token())
    with (
        module._alone(Paths(gateway.key, gateway.certificate, gateway.ca)),
        pytest.raises(TryLater, match="another command"),
    ):
        provision(wanted)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"a b", b"\xff\xfe", b"x" * (MAX_TOKEN + 1), b"a\x00b"]
)
def test_what_is_no_token(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ProvisioningError, match="token"):
        token_from(str(path))


@pytest.mark.parametrize(
    ("given", "complete"),
    [
        ("msp.example", "msp.example:8884"),
        ("msp.example:1", "msp.example:1"),
        ("[2001:db8::1]", "[2001:db8::1]:8884"),
        ("[2001:db8::1]:1", "[2001:db8::1]:1"),
    ],
)
def test_the_port_may_be_left_out(given: str, complete: str) -> None:
    assert with_port(given) == complete
