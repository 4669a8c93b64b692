import pytest

from gwmodule.sim.serial import SerialLine, Software


def line(software: Software = Software.SYSTEM) -> SerialLine:
    serial = SerialLine("pc", "the-uuid", 1.0)
    serial.run(software)
    serial.listen()
    said(serial)
    return serial


def said(serial: SerialLine) -> str:
    return serial.data_to_send(1 << 20).decode()


def test_a_script_is_said_in_its_time_and_then_the_prompt_comes() -> None:
    serial = line()
    serial.start([(1.0, "one "), (2.0, "two ")], Software.NETWORK, 10.0)
    assert serial.next_timeout() == 11.0
    assert not serial.handle_timeout(11.0)
    assert said(serial) == "one "
    assert serial.software is None
    assert serial.handle_timeout(13.0)
    assert said(serial) == "two netboot> "
    assert serial.next_timeout() is None
    assert not serial.handle_timeout(14.0)


@pytest.mark.parametrize("software", [Software.SETUP, Software.NETWORK, Software.DISC])
def test_leaving_what_was_booted_restarts_the_pc(software: Software) -> None:
    serial = line(software)
    assert serial.receive_data(b"exit\rlost")
    assert said(serial) == "exit\r\n"


def test_leaving_the_system_is_a_logout() -> None:
    serial = line()
    assert not serial.receive_data(b"anna\rexit\r")
    assert said(serial).endswith("pc login: ")


def test_sleep_keeps_who_is_logged_in() -> None:
    serial = line()
    serial.receive_data(b"anna\r")
    serial.halt(sleep=True)
    said(serial)
    serial.run(Software.SYSTEM)
    assert said(serial) == "pc:~$ "
    serial.halt()
    serial.run(Software.SYSTEM)
    assert said(serial) == "pc login: "


def test_what_nobody_hears_is_lost() -> None:
    serial = line()
    serial.hang_up()
    serial.say("hello")
    serial.listen()
    assert said(serial) == "\r\npc login: "


def test_a_halted_pc_greets_nobody() -> None:
    serial = line()
    serial.halt()
    serial.hang_up()
    serial.listen()
    assert said(serial) == ""


def test_what_a_session_took_is_kept_for_comparison() -> None:
    serial = line()
    serial.say("hello")
    said(serial)
    serial.say("never taken")
    assert serial.spoken.endswith(b"hello")
