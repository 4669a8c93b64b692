"""Runs the installed command in a tree with only the declared parts of Python's library.

bare.py TREE PART,PART... ARGUMENTS: a module of a part that no package depends on is not found.
"""

from __future__ import annotations

import importlib.abc
import sys
from pathlib import Path

# What OpenWrt's feeds split off from python3-light (lang/python/python3, 24.10), by package.
PARTS = {
    "asyncio": ("asyncio",),
    "cgi": ("cgi",),
    "cgitb": ("cgitb",),
    "codecs": ("unicodedata", "_multibytecodec"),
    "ctypes": ("ctypes", "_ctypes"),
    "dbm": ("dbm", "_dbm", "_gdbm"),
    "decimal": ("decimal", "_decimal", "_pydecimal"),
    "distutils": ("distutils",),
    "email": ("email",),
    "lib2to3": ("lib2to3",),
    "logging": ("logging",),
    "lzma": ("lzma", "_lzma"),
    "multiprocessing": ("multiprocessing", "_multiprocessing"),
    "ncurses": ("curses", "_curses"),
    "openssl": ("_ssl", "_hashlib"),
    "pydoc": ("pydoc", "pydoc_data"),
    "readline": ("readline",),
    "sqlite3": ("sqlite3", "_sqlite3"),
    "unittest": ("unittest",),
    "urllib": ("urllib",),
    "uuid": ("uuid", "_uuid"),
    "venv": ("venv", "ensurepip"),
    "xml": ("xml", "xmlrpc", "pyexpat", "_elementtree"),
}


class Missing(importlib.abc.MetaPathFinder):
    def __init__(self, parts: set[str]) -> None:
        self._names = {name for part, names in PARTS.items() if part not in parts for name in names}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main() -> None:
    tree, parts, *arguments = sys.argv[1:]
    declared = set(parts.split(","))
    # urllib's package needs email's, xml's needs urllib's.
    declared |= {"urllib"} if "xml" in declared else set()
    declared |= {"email"} if "urllib" in declared else set()
    for name in [name for names in PARTS.values() for name in names]:
        for loaded in [m for m in sys.modules if m.partition(".")[0] == name]:
            del sys.modules[loaded]
    sys.meta_path.insert(0, Missing(declared))
    version = "python{}.{}".format(*sys.version_info)
    sys.path.append(f"{tree}/usr/lib/{version}/site-packages")
    launcher = Path(tree, "usr/bin/gwmodule")
    text = launcher.read_text().replace('"/usr/lib/gwmodule"', repr(f"{tree}/usr/lib/gwmodule"))
    sys.argv = [str(launcher), *arguments]
    exec(compile(text, str(launcher), "exec"), {"__name__": "__main__"})


main()
