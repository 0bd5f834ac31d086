# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of the job that somebody looks at: what is there of its latest frame.

It is fetched by a thread of its own, so that one that has to come from a machine far
away holds up neither Blender nor the list of jobs. It was made by another machine:
what is not a small JPEG is not shown.
"""

import collections
import queue
import threading
import urllib.parse

from . import client

MAX_BYTES = 1 << 20
MAX_SIDE = 2048
MAX_FRAMES = 10000  # a job with more is too much to read for its picture
PAUSE_SECONDS = 1.0  # between two pictures: they are to be looked at

Picture = collections.namedtuple("Picture", "job frame data")


class Show:
    """Fetches one picture at a time, as wished last, until its client is closed."""

    def __init__(self, api, post):
        self._api = api
        self._post = post
        self._wishes = queue.Queue()  # of (job, frame), frame None for the latest; None at the end
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vizpeer-pictures", daemon=True)

    def start(self):
        self._thread.start()

    def stop(self):
        """Ends it; close the client too, so that a picture under way does not hold it up."""
        self._ended.set()
        self._wishes.put(None)

    def want(self, job, frame=None):
        self._wishes.put((job, frame))

    def _run(self):
        while not self._ended.is_set():
            wish = self._wishes.get()
            while not self._wishes.empty():
                wish = self._wishes.get()
            if wish is None:
                return
            try:
                picture = self._fetch(*wish)
            except client.Stopped:
                return
            except Exception:  # there is nothing to see, or it is nothing to look at: what was shown stays
                picture = None
            if picture is not None and not self._ended.is_set():
                self._post("picture", picture)
            self._ended.wait(PAUSE_SECONDS)

    def _fetch(self, job, frame):
        path = "/v1/jobs/" + urllib.parse.quote(job, safe="")
        if frame is None:
            frame = latest(self._api.get(path))
        if frame is None:
            return None
        data = self._api.fetch("%s/frames/%d?size=preview" % (path, frame), MAX_BYTES)
        width, height = size(data)
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            return None
        return Picture(job, frame, data)


def latest(job):
    """The number of the frame that people want to see, of an answer of GET /v1/jobs/{id}.

    It is the first that is being rendered in parts, or else the last that is there.
    """
    listed = job.get("frames")
    frames = [f for f in listed if isinstance(f, dict) and _whole(f.get("frame"))] if isinstance(listed, list) else []
    growing = [f["frame"] for f in frames if f.get("units_done") and f.get("state") in ("queued", "leased")]
    there = [f["frame"] for f in frames if f.get("cid")]
    if growing:
        return growing[0]
    if there:
        return there[-1]
    return frames[0]["frame"] if len(frames) == 1 else None


def _whole(number):
    return isinstance(number, int) and not isinstance(number, bool) and abs(number) < 1 << 31


def size(data):
    """The width and height of a JPEG; (0, 0) for what is none."""
    if data[:2] != b"\xff\xd8":
        return 0, 0
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a start of frame
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        if length < 2:
            break
        at += 2 + length
    return 0, 0
