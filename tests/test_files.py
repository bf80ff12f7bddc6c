"""What is written is whole, and by one process: guards against files that are cut off, mixed, lost, or found impossible
to write only after the work; and against names that are taken for markup."""

import errno
import importlib.util
import io
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from fxlrp.errors import InputError
from fxlrp.io import files, lock
from fxlrp.io.console import printable, say
from fxlrp.io.files import check_output, write_file
from fxlrp.io.lock import alone_in

ENDINGS = [".png", ".pdf"]

HOLD = """
import os, sys, time
from pathlib import Path
from fxlrp.io.lock import alone_in

with alone_in(Path(sys.argv[1])):
    # A child speaks for itself: what happens in it after the fork is over then.
    if len(sys.argv) > 2 and not os.fork():
        print(os.getpid(), flush=True)
    elif len(sys.argv) == 2:
        print(0, flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("picture", r"picture: it has no ending, and is to end in \.pdf, \.png"),
        ("picture.txt", r"ends in \.txt, and is to end in \.pdf, \.png"),
        (".png", "it has no ending"),
        ("none/picture.png", "there is no folder .*none"),
        ("file/picture.png", "there is no folder .*file"),
        ("folder.png", "it is a folder"),
        ("pipe.png", "it is not a file"),
        ("n" * 300 + ".png", "File name too long"),
    ],
)
def test_what_cannot_be_written_is_told_before(tmp_path, name, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    before = names(tmp_path)
    with pytest.raises(InputError, match=words):
        check_output(tmp_path / name, ENDINGS)
    assert names(tmp_path) == before


def test_what_is_protected_is_told_before(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "x.png").write_text("old")
    monkeypatch.setattr("pathlib.Path.open", refused)
    for name in ("x.png", "new.png"):
        with pytest.raises(InputError, match=f"cannot write .*{name}: Permission denied"):
            check_output(tmp_path / name, ENDINGS)


def test_a_look_at_what_can_be_written_changes_nothing(tmp_path):
    (tmp_path / "old.PNG").write_bytes(b"old")
    for name in ("old.PNG", "new.pdf"):
        check_output(tmp_path / name, ENDINGS)
    check_output(tmp_path / "any")
    assert names(tmp_path) == ["old.PNG"]
    assert (tmp_path / "old.PNG").read_bytes() == b"old"


def test_a_file_is_where_it_was_wanted(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "old").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "old")
    for name in ("link", "new"):
        write_file(tmp_path / name, lambda file: file.write(b"new"))
        assert (tmp_path / name).read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "far") == ["old"]
    assert names(tmp_path) == ["far", "link", "new"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch, moment):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def writing(file):
        file.write(b"new")
        if moment == "write":
            full()

    with monkeypatch.context() as patch:
        if moment != "write":
            patch.setattr(files.os, moment, full)
        with pytest.raises(InputError, match=r"cannot write .*x: No space left on device"):
            write_file(path, writing)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_disk_that_is_full_under_torch(tmp_path, monkeypatch):
    class Full(io.RawIOBase):
        def writable(self):
            return True

        def write(self, _):
            full()

    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="cannot write"):
        write_file(path, lambda _: torch.save({"weight": torch.zeros(9)}, Full()))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_an_interruption_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def interrupted(file):
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, interrupted)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


@pytest.fixture
def hold(tmp_path):
    """Starts a process that keeps the folder, and perhaps has a child; gives both processes' ids."""
    started = []

    def start(*flags):
        command = [sys.executable, "-c", HOLD, str(tmp_path / "new" / "folder"), *flags]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        child = int(process.stdout.readline())
        if child:
            children.append(child)
        return process

    children = []
    yield start
    for child in children:
        os.kill(child, signal.SIGKILL)
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused(tmp_path, hold):
    folder = tmp_path / "new" / "folder"
    process = hold()
    for _ in range(2):
        with (
            pytest.raises(InputError, match=f"folder is in use by process {process.pid} on .*another folder"),
            alone_in(folder),
        ):
            pytest.fail("two have it")
    process.kill()
    process.wait()
    assert names(folder) == [lock.LOCK]
    with alone_in(folder):
        pass
    assert names(folder) == []


def test_the_child_of_a_process_that_was_killed_does_not_keep_the_folder(tmp_path, hold):
    process = hold("child")
    process.kill()
    process.wait()
    with alone_in(tmp_path / "new" / "folder"):
        assert names(tmp_path / "new" / "folder") == [lock.LOCK]


def test_the_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path):
        raise ZeroDivisionError
    assert names(tmp_path) == []
    with alone_in(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()}"), alone_in(tmp_path):
        pytest.fail("two have it")


def test_a_lock_that_was_deleted_meanwhile_is_none(tmp_path, monkeypatch):
    acquire, met = lock._lock, []

    def late(file):
        if not met:  # Whoever had it goes, between our opening of the file and our locking it.
            (tmp_path / lock.LOCK).unlink()
        met.append(acquire(file))

    monkeypatch.setattr(lock, "_lock", late)
    with alone_in(tmp_path), pytest.raises(InputError, match="in use"), alone_in(tmp_path):
        pytest.fail("two have it")
    assert len(met) == 2


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def without(_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", without)
    with pytest.warns(UserWarning, match=r"without locks \(No locks available\)"), alone_in(tmp_path):
        pass


def test_on_windows_the_name_of_the_process_is_not_locked(tmp_path, monkeypatch):
    """There, what one process has locked no other can read."""
    locked = []

    def locking(descriptor, mode, count):
        locked.append((os.lseek(descriptor, 0, os.SEEK_CUR), mode, count))

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK="at once"))
    as_on_windows = importlib.util.module_from_spec(importlib.util.find_spec("fxlrp.io.lock"))
    as_on_windows.__spec__.loader.exec_module(as_on_windows)
    with as_on_windows.alone_in(tmp_path):
        text = (tmp_path / lock.LOCK).read_text()
    ((start, mode, count),) = locked
    assert text.startswith(f"process {os.getpid()} on ")
    assert len(text) < start
    assert (mode, count) == ("at once", 1)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file"), alone_in(tmp_path / "file" / "folder"):
        pytest.fail("there is none")


@pytest.mark.parametrize("name", ["[x]", "[/]", "[bold]a", ":cat:", "$5_{$", "a" * 300, "http://x/1"])
def test_a_name_is_printed_as_it_is(name):
    console = Console(record=True, width=40)
    say(console, f"in {name}.\nnext")
    assert console.export_text() == f"in {name}.\nnext\n"


def test_what_is_no_character_is_marked():
    broken = os.fsdecode(b"caf\xe9\n\x1b[2J")
    assert printable(broken) == "caf\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[2J"
    printable(broken).encode()
