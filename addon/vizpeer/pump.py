# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries news from the background threads into Blender's main thread.

Blender has no way for a thread to wake its interface, so a timer looks at the
queue; it runs only while a submission is under way or the panel is being drawn.
The farm is followed only for as long as somebody can see the panel.
"""

import os
import tempfile
import time

import bpy
import bpy.utils.previews

from . import client, jobs, pictures

TICK_SECONDS = 0.25
MOVIE_FRAME = 1048575  # stands for the movie of a job
# A panel that is visible is redrawn at least this often …
REDRAW_SECONDS = 5.0
# … so one that was not drawn for this long is not visible.
UNSEEN_SECONDS = 15.0

model = jobs.Model()

_link = None
_seen = 0.0  # when the panel was last drawn
_asked = 0.0  # when it was last asked to draw


def find():
    """The local peer's endpoint, with the data folder of the preferences."""
    return client.find(_chosen[0], ca=_chosen[1], pin=_chosen[2])


# The preferences, copied by the main thread so that threads need not ask Blender: the data
# folder, the file of the CA and its fingerprint.
_chosen = ("", "", "")


def _read_preferences():
    global _chosen
    addon = bpy.context.preferences.addons.get(__package__)
    _chosen = ("", "", "")
    if addon and addon.preferences:
        p = addon.preferences
        _chosen = (p.data_folder, p.ca_file, p.ca_fingerprint)


def seen():
    """The panel is being drawn: somebody looks."""
    global _seen
    _seen = time.monotonic()
    wake()


def wake():
    """Starts the timer, if it does not run."""
    if not bpy.app.timers.is_registered(tick):
        bpy.app.timers.register(tick, first_interval=0.0, persistent=True)


def link():
    """The link to the farm, started if there is none."""
    global _link
    if _link is None:
        _read_preferences()
        _link = jobs.Link(find, model.post)
        _link.start()
    return _link


# What Blender has loaded of the picture that came last, and where it is.
_previews = None
_loaded = None


def picture(job):
    """The icon of what there is to see of a job, and its caption; (0, "") for nothing."""
    shown = model.picture
    if shown is None or shown.job != job or _loaded is not shown:
        return 0, ""
    image = _previews.get("picture")
    return (image.icon_id if image is not None else 0), caption(shown.frame)


def caption(frame):
    return "Movie" if frame == MOVIE_FRAME else "Frame %d" % frame


def _load():
    """Hands the latest picture to Blender, which reads it from a file."""
    global _previews, _loaded
    if model.picture is _loaded:
        return
    _loaded = model.picture
    if _previews is None:
        _previews = bpy.utils.previews.new()
    _previews.clear()
    if _loaded is None:
        return
    handle, path = tempfile.mkstemp(prefix="vizpeer-", suffix=".jpg", dir=bpy.app.tempdir or None)
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(_loaded.data)
        len(_previews.load("picture", path, "IMAGE").image_pixels)  # now, and not when it is drawn: the file goes
    except (OSError, RuntimeError):
        pass  # a full disk is told where it matters more
    finally:
        os.remove(path)


def _shown():
    """The job whose picture is wanted, the selected one; "" for none."""
    state = bpy.context.window_manager.vizpeer
    job = model.jobs.get(state.jobs[state.job].name) if 0 <= state.job < len(state.jobs) else None
    return job.id if job is not None and job.total <= pictures.MAX_FRAMES else ""


def submit(collected, snapshot, job):
    """Starts a submission; the model tells how it goes."""
    _read_preferences()
    model.submission = jobs.Submission(find(), collected, snapshot, job, model.post)
    model.progress = jobs.Progress("Starting", 0, 0, None)
    model.notice = ("", "")
    model.submission.start()
    wake()


def unlink():
    """Lets go of the farm; the next link() looks for the peer anew."""
    global _link
    if _link is not None:
        _link.stop()
        _link = None


def tick(wait=0.0):
    """One look at the queue: a timer of Blender's, which returns its next delay.

    A script without a window calls it instead of the timer, and may wait for news
    for up to so many seconds.
    """
    global _asked
    news = model.drain(wait)
    if news:
        _load()
        _list_jobs()
        if model.last_job and model.submission is None:
            _select(model.last_job)
    while model.outputs:
        _show(model.outputs.pop())
    now = time.monotonic()
    visible = now - _seen < UNSEEN_SECONDS
    if visible:
        link().show(_shown())
    elif not bpy.app.background:
        unlink()
    if news or now - _asked > REDRAW_SECONDS:
        _asked = now
        _redraw()
    if visible or model.submission is not None:
        return TICK_SECONDS
    return None


def new_file():
    """Another .blend was opened: what was said of the last one's files is void."""
    model.missing, model.unsaved, model.checked = [], [], ""
    if model.submission is None:
        model.notice = ("", "")
    _list_jobs()


def _show(folder):
    try:
        bpy.ops.wm.path_open(filepath=folder)
    except RuntimeError as error:
        model.notice = ("ERROR", client.clean(error))


def _list_jobs():
    """Makes the list's rows. They hold the jobs' IDs only: rows are saved with the .blend."""
    state = bpy.context.window_manager.vizpeer
    ids = list(model.jobs)
    if [row.name for row in state.jobs] == ids:
        return
    active = state.jobs[state.job].name if 0 <= state.job < len(state.jobs) else ""
    state.jobs.clear()
    for name in ids:
        state.jobs.add().name = name
    if active not in ids:  # start with a job that the list shows
        user = model.farm.user if model.farm else ""
        active = next((job.id for job in model.jobs.values() if job.owner == user), ids[0] if ids else "")
    state.job = ids.index(active) if ids else 0


def _select(job):
    state = bpy.context.window_manager.vizpeer
    index = state.jobs.find(job)
    if index >= 0:
        state.job = index
        model.last_job = ""


def _redraw():
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "PROPERTIES" and area.spaces.active.context == "RENDER":
                area.tag_redraw()


def stop():
    """Ends every thread and the timer."""
    global _previews, _loaded
    if bpy.app.timers.is_registered(tick):
        bpy.app.timers.unregister(tick)
    if model.submission is not None:
        model.submission.cancel()
    unlink()
    if _previews is not None:
        bpy.utils.previews.remove(_previews)
        _previews, _loaded = None, None
