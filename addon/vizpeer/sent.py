# SPDX-License-Identifier: GPL-3.0-or-later
"""Remembers which files the peer was sent, so that what has not changed is neither
read nor sent again.

For each file the peer gave a receipt: it is good for whoever sent the file, on that
machine alone. Together with what tells the file's state without reading it, the
receipts lie in the user's own cache, readable by nobody else. Whatever is wrong
there, it is only ignored, and files are read again. It never uses bpy.
"""

import collections
import json
import os
import sys
import tempfile
import time

# What changes with the file; none of it needs the file to be read.
Stamp = collections.namedtuple("Stamp", "size modified changed device inode")

# How old a file's times must be when it is read: a clock that ticks in steps, of two
# seconds on FAT, would not tell a later change.
SETTLED_NS = 2 * 10**9

MAX_FILES = 100000
MAX_BYTES = 64 << 20  # of the index


def stamp(info):
    """The stamp in the answer of os.stat."""
    return Stamp(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_dev, info.st_ino)


def cache_folder(environ=None, system=None):
    """The user's folder for what can be made again; "" where there is none."""
    environ = os.environ if environ is None else environ
    system = sys.platform if system is None else system
    if system.startswith("win"):
        return environ.get("LOCALAPPDATA", "")
    home = environ.get("HOME", "")
    if system == "darwin":
        return os.path.join(home, "Library", "Caches") if home else ""
    return environ.get("XDG_CACHE_HOME") or (os.path.join(home, ".cache") if home else "")


class Sent:
    """What the peer of that ID was sent by this user."""

    def __init__(self, peer, folder=None):
        folder = cache_folder() if folder is None else folder
        self._path = os.path.join(folder, "vizpeer", "addon-sent.json") if folder and peer else ""
        self._peer = peer
        self._fresh = {}  # what was added or used
        self._files = self._read()

    def receipt(self, path, now):
        """The peer's receipt for the file as it is now; "" where it has none."""
        known = self._files.get(self._key(path))
        if not isinstance(known, list) or len(known) != 3 or known[0] != list(now) or not isinstance(known[1], str):
            return ""
        self._fresh[self._key(path)] = [known[0], known[1], int(time.time())]
        return known[1]

    def add(self, path, now, read_ns, receipt):
        """Remembers a file that had that stamp before and after it was read, from read_ns on."""
        if isinstance(receipt, str) and receipt and max(now.modified, now.changed) < read_ns - SETTLED_NS:
            self._fresh[self._key(path)] = [list(now), receipt, int(time.time())]

    def save(self):
        """Writes the index for the next time."""
        if not self._path or not self._fresh:
            return
        files = self._read()  # another Blender may have written its own meanwhile
        files.update(self._fresh)
        if len(files) > MAX_FILES:
            files = dict(sorted(files.items(), key=_used)[-MAX_FILES:])
        folder = os.path.dirname(self._path)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".sent-", dir=folder)  # readable by its owner alone
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as f:
                    json.dump({"version": 1, "files": files}, f)
                os.replace(name, self._path)
            except BaseException:
                os.remove(name)
                raise
        except (OSError, ValueError):
            pass  # files are read again, no more

    def _key(self, path):
        return self._peer + " " + path

    def _read(self):
        if not self._path:
            return {}
        try:
            with open(self._path, encoding="utf-8") as f:
                document = json.loads(f.read(MAX_BYTES))
            files = document["files"] if document["version"] == 1 else {}
            return files if isinstance(files, dict) else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}


def _used(item):
    known = item[1]
    return known[2] if isinstance(known, list) and len(known) == 3 and isinstance(known[2], int) else 0
