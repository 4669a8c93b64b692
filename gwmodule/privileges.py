"""Give up every privilege the process was started with, for good, and leave no memory behind.

The capture service needs CAP_NET_RAW until its sockets are open and the relay needs none at all;
both parse what strangers send, so neither keeps anything that a fault in a parser could be turned
into.
"""

from __future__ import annotations

import ctypes
import os
import resource

# linux/prctl.h and linux/capability.h
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_LINUX_CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def drop_all_capabilities() -> None:
    """Empty the five capability sets and set no_new_privs; OSError when that fails.

    Capabilities belong to a thread: call this before the first thread is started. The bounding
    set can only be emptied with CAP_SETPCAP; without it, no_new_privs alone keeps an execve from
    raising anything (capabilities(7), prctl(2)). Sockets that are open stay as useful as they
    were.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    _prctl(libc, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _empty_bounding_set(libc)
    header = _Header(_LINUX_CAPABILITY_VERSION_3, 0)
    nothing = (_Data * 2)()  # Version 3 has 64 bits per set, in two structures.
    _check(libc.capset(ctypes.byref(header), ctypes.byref(nothing)))


def forbid_core_dumps() -> None:
    """For processes whose memory holds keys and logins of devices; OSError when that fails.

    The limit alone does not stop a dump into a pipe (core(5)). Not dumpable also means that no
    other process of the same user may attach. Call this after capabilities were given up: that
    may set the flag anew (prctl(2)).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(ctypes.CDLL(None, use_errno=True), _PR_SET_DUMPABLE, 0)


def _empty_bounding_set(libc: ctypes.CDLL) -> None:
    capability = 0
    # Reading a number beyond the kernel's last capability fails with EINVAL.
    while libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        try:
            _prctl(libc, _PR_CAPBSET_DROP, capability)
        except PermissionError:
            return
        capability += 1


def _prctl(libc: ctypes.CDLL, option: int, argument: int) -> None:
    zero = ctypes.c_ulong(0)
    _check(libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero))


def _check(result: int) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
