from hypothesis import given
from hypothesis import strategies as st

from gwmodule.msp.sol_log import MAX_MARKS, Mark, SolLog


def read_all(log: SolLog, offset: int = 0, mark: int = 0, budget: int = 7) -> list[bytes | str]:
    read: list[bytes | str] = []
    while (item := log.next_item(offset, mark, budget)) is not None:
        if isinstance(item, Mark):
            mark = item.number + 1
            read.append(item.text)
        else:
            offset += len(item)
            if read and isinstance(read[-1], bytes):
                read[-1] += item
            else:
                read.append(item)
    return read


def test_marks_come_where_they_were_made() -> None:
    log = SolLog(100)
    log.mark("connected", 1.0)
    log.append(b"hello")
    log.mark("lost", 2.0, gap=True)
    log.append(b" again")
    assert read_all(log) == ["connected", b"hello", "lost", b" again"]


def test_who_comes_back_goes_on_where_he_was() -> None:
    log = SolLog(100)
    log.append(b"hello")
    log.mark("seen", 1.0)
    log.append(b"world")
    assert read_all(log, offset=5, mark=0) == ["seen", b"world"]
    assert read_all(log, offset=5, mark=1) == [b"world"]
    assert read_all(log, offset=10, mark=1) == []


def test_only_the_last_bytes_are_kept() -> None:
    log = SolLog(4)
    log.append(b"abcdef")
    assert (log.start, log.end) == (2, 6)
    assert read_all(log, offset=2) == [b"cdef"]


def test_marks_are_bounded_too() -> None:
    log = SolLog(4)
    for number in range(MAX_MARKS + 10):
        log.mark(str(number), 0.0)
    assert len(read_all(log)) == MAX_MARKS


def test_a_window_that_is_full_gets_nothing() -> None:
    log = SolLog(100)
    log.append(b"hello")
    assert log.next_item(0, 0, 0) is None


@given(st.lists(st.binary(min_size=1, max_size=30)), st.integers(1, 40), st.integers(1, 9))
def test_what_is_read_is_the_end_of_what_was_written(
    written: list[bytes], capacity: int, budget: int
) -> None:
    log = SolLog(capacity)
    for data in written:
        log.append(data)
    whole = b"".join(written)
    assert (
        b"".join(i for i in read_all(log, log.start, 0, budget) if isinstance(i, bytes))
        == (whole[-capacity:])
    )
