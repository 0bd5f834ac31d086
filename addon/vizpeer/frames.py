# SPDX-License-Identifier: GPL-3.0-or-later
"""Frame lists as an artist writes them: "1-40,50,60-80x2".

The peer checks again; this only lets the panel say at once what is wrong.
"""

import functools
import re

FIRST, LAST = -1048574, 1048574  # Blender's own bounds
MAX_PARTS = 10000
MAX_COUNTED = 100000

_PART = re.compile(r"(-?\d{1,8})(?:-(-?\d{1,8})(?:x(\d{1,8}))?)?\Z")


@functools.lru_cache(maxsize=32)
def count(text):
    """How many frames text stands for, each counted once.

    Raises ValueError with a sentence for the artist. A list of more frames than
    a job may have is counted without looking for repeated ones.
    """
    if not text.strip():
        raise ValueError("The frame list is empty: give frames such as 1-40 or 1-40,50,60-80x2")
    parts = text.split(",")
    if len(parts) > MAX_PARTS:
        raise ValueError("The frame list has more than %d parts: use ranges such as 1-40" % MAX_PARTS)
    ranges = []
    for part in parts:
        match = _PART.match(part.strip())
        if match is None:
            raise ValueError('"%s" is not a frame or a range: write frames such as 1-40,50,60-80x2' % part.strip()[:40])
        first = int(match.group(1))
        last = int(match.group(2)) if match.group(2) else first
        step = int(match.group(3)) if match.group(3) else 1
        if first > last:
            raise ValueError("The frame range %d-%d is inverted: write %d-%d" % (first, last, last, first))
        if step < 1:
            raise ValueError("The frame range %d-%d has a step of 0: use 1 or more" % (first, last))
        if first < FIRST or last > LAST:
            raise ValueError("Frames %d-%d are beyond Blender's limits of %d to %d" % (first, last, FIRST, LAST))
        ranges.append(range(first, last + 1, step))
    total = sum(len(r) for r in ranges)
    if total <= MAX_COUNTED:
        return len(set().union(*ranges))
    return total


def of_scene(start, end, step):
    """The frame list of a scene's own range."""
    if start == end:
        return str(start)
    return "%d-%d" % (start, end) + ("x%d" % step if step > 1 else "")
