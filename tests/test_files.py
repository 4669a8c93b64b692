from pathlib import Path

import pytest

from gwmodule.files import remove_leftovers, write_atomically


def test_a_file_is_replaced_with_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("old")
    path.chmod(0o666)
    write_atomically(path, b"new", 0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "directory"
    target.mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(target, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["directory"]


def test_leftovers_of_a_killed_writer_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in (".key.abc12345", "key", ".other.abc12345", "key.old"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path / "key")
    assert {file.name for file in tmp_path.iterdir()} == {"key", ".other.abc12345", "key.old"}
