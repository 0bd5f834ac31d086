# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the tar of a project that POST /v1/projects takes, while it is sent.

Nothing is copied to disk and no file is held in memory. What the peer was sent
before and has not changed since is neither read nor sent: a receipt of the peer's
stands for it. The files must stay as they are from plan() to the end of the stream:
a project that mixes two states of a scene would render wrong frames without a word,
so a file that changes in between ends the stream with Changed. It never uses bpy.
"""

import collections
import json
import os
import stat
import tarfile
import time
import unicodedata

from .client import Problem
from .sent import stamp

MANIFEST = "vizpeer.json"
CONTENT_TYPE = "application/x-tar"
CHUNK = 1 << 20  # bytes read and sent at once
RECEIPT = "VIZPEER.receipt"  # the record of an entry whose bytes a receipt stands for

# A peer that lacks something may lack more when asked again; then all is sent.
TRIES = 3

# Beyond so many files, receipts would make too long an answer.
MAX_RECEIPTS = 100000


class Entry:
    """One file of a project."""

    def __init__(self, path, source, now, receipt, lasting):
        self.path = path  # in the project
        self.source = source
        self.stamp = now
        self.lasting = lasting  # not a copy that is made anew each time
        self.receipt = receipt  # sent instead of the bytes, if not ""
        self.read_ns = 0  # when the reading began


# total is the bytes of files that are to be sent.
Plan = collections.namedtuple("Plan", "manifest entries total")


class Changed(Problem):
    """A file was changed while it was being sent."""


def plan(collected, snapshot=None, sent=None):
    """What will be sent, from the answer of collect.collect.

    snapshot is the saved copy that stands in for the .blend, and sent a sent.Sent,
    or None to read every file. Raises Problem for a file that cannot be sent.
    """
    manifest = collected["manifest"]
    entries, taken = [], {}
    for item in _distinct(collected["files"], manifest.get("origin")):
        path, source = item["path"], item["source"]
        if path in taken:
            continue
        taken[path] = True
        copied = path == manifest["blend"] and snapshot is not None
        if copied:
            source = snapshot
        try:
            info = os.stat(source)
        except OSError as error:
            raise Problem("%s cannot be read (%s): check the files again" % (source, error.strerror)) from None
        if not stat.S_ISREG(info.st_mode):
            raise Problem("%s is not a file" % source)
        if not os.access(source, os.R_OK):
            raise Problem("%s cannot be read: you have no permission to" % source)
        now = stamp(info)
        receipt = "" if sent is None or copied else sent.receipt(source, now)
        entries.append(Entry(path, source, now, receipt, not copied))
    return _ordered(manifest, entries)


def _ordered(manifest, entries):
    """The plan of entries: receipts go first, so that a peer that lacks something says
    so at once, and then the .blend, so that one that must refuse it can do so at once."""
    entries = sorted(entries, key=lambda entry: (not entry.receipt, entry.path != manifest["blend"]))
    return Plan(manifest, entries, sum(entry.stamp.size for entry in entries if not entry.receipt))


def without(plan, lacks):
    """The plan with the bytes of the paths in lacks, or with all where lacks is None."""
    for entry in plan.entries:
        if lacks is None or entry.path in lacks:
            entry.receipt = ""
    return _ordered(plan.manifest, plan.entries)


def _distinct(files, system):
    """The files, where a and A, or two ways to write an accent, are not two names.

    Machines with Windows and macOS take such names for one. Where the artist's does,
    they mean one file, and the first spelling stands for all; elsewhere it is a Problem.
    """
    seen = {}  # folded path: (path, source), folders too
    for item in files:
        name, folded = "", ""
        for part in item["path"].split("/"):
            name = name + "/" + part if name else part
            folded += "/" + _fold(part)
            first, source = seen.setdefault(folded, (name, item["source"]))
            if first == name:
                continue
            if system not in ("windows", "darwin"):
                raise Problem(
                    "%s and %s differ only in capital letters or in how their accents are written (%s): "
                    "machines with Windows or macOS would take them for one. Rename one of the two"
                    % (source, item["source"], part)
                )
            name = first
        yield {"path": name, "source": item["source"]}


def _fold(name):
    normal = unicodedata.normalize("NFC", name)
    return unicodedata.normalize("NFC", normal.upper().lower())


def remember(plan, receipts, sent):
    """Notes the receipts that the peer gave for a project that was sent."""
    if sent is None or not isinstance(receipts, list) or len(receipts) != len(plan.entries) + 1:
        return
    for entry, receipt in zip(plan.entries, receipts[1:]):  # the first is the manifest's
        if entry.lasting and not entry.receipt:
            sent.add(entry.source, entry.stamp, entry.read_ns, receipt)
    sent.save()


def tar(plan, sent=lambda size: None):
    """Yields the tar in pieces; calls sent with the bytes of files so far."""
    manifest = json.dumps(plan.manifest, ensure_ascii=False, indent=1).encode("utf-8")
    yield _header(MANIFEST, len(manifest))
    yield manifest + _padding(len(manifest))
    done = 0
    for entry in plan.entries:
        if entry.receipt:
            yield _header(entry.path, 0, entry.receipt)
            continue
        entry.read_ns = time.time_ns()
        yield _header(entry.path, entry.stamp.size)
        for piece in _read(entry):
            yield piece
            done += len(piece)
            sent(done)
        if entry.stamp.size % tarfile.BLOCKSIZE:
            yield _padding(entry.stamp.size)
    for entry in plan.entries:
        _check(entry, os.stat(entry.source) if os.path.exists(entry.source) else None)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(path, size, receipt=""):
    info = tarfile.TarInfo(path)
    info.size = size
    info.mode = 0o644
    if receipt:
        info.pax_headers = {RECEIPT: receipt}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size):
    return bytes(-size % tarfile.BLOCKSIZE)


def _read(entry):
    """Yields exactly the bytes of a file, which must be as it was planned."""
    try:
        file = open(entry.source, "rb", buffering=0)
    except OSError as error:
        raise Problem("%s cannot be read any more (%s): check the files again" % (entry.source, error.strerror)) from None
    with file:
        _check(entry, os.fstat(file.fileno()))
        left = entry.stamp.size
        while left:
            try:
                piece = file.read(min(CHUNK, left))
            except OSError as error:
                raise Problem("%s cannot be read (%s)" % (entry.source, error.strerror)) from None
            if not piece:
                _check(entry, None)
            left -= len(piece)
            yield piece
        _check(entry, os.fstat(file.fileno()))


def _check(entry, info):
    if info is None or stamp(info) != entry.stamp:
        raise Changed("%s changed while it was being sent: submit again once it is finished" % entry.source)
