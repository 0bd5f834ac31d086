# SPDX-License-Identifier: GPL-3.0-or-later
"""The panel in a real window, against a fake peer; it leaves pictures to look at.

    VIZPEER_SHOTS=FOLDER BLENDER_USER_SCRIPTS=SCRIPTS xvfb-run -a -s "-screen 0 1280x1000x24" \\
        blender --factory-startup --window-geometry 0 0 1280 1000 -P blender_window.py

It fails if the panel raises, or does not come to show what it must. FOLDER gets
shot.png (a farm with jobs), and one picture for each other state of the panel.
Blender 4 with software GL makes black pictures of what it has drawn; all else
is tested there as well.
"""

import os
import sys
import tempfile
import threading
import time
import traceback

import addon_utils
import bpy

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from fake_peer import FakePeer, problem  # noqa: E402

SHOTS = os.environ["VIZPEER_SHOTS"]
SECONDS = 150

root = tempfile.mkdtemp(prefix="vizpeer-window-")
peer = FakePeer(root)
os.environ["VIZPEER_DATA_DIR"] = peer.folder
bpy.context.preferences.view.show_splash = False
addon_utils.enable("vizpeer", default_set=True)

from vizpeer import jobs, panel, pump  # noqa: E402

drawn = []  # panels that were drawn since the last step
errors = []


def noted(name, draw, *arguments):
    """Draws, and notes that it was done, or why not: Blender only prints what a panel raises."""
    try:
        draw(*arguments)
        drawn.append(name)
    except Exception:
        errors.append(traceback.format_exc())
        raise


def watch_panel(cls, draw):
    cls.draw = lambda self, context: noted(cls.__name__, draw, self, context)


def watch_list(cls, draw):
    # Blender counts the arguments, so they must stand here one by one.
    cls.draw_item = lambda self, context, layout, data, item, icon, active_data, active_property, index=0, flag=0: noted(
        cls.__name__, draw, self, context, layout, data, item, icon, active_data, active_property, index, flag
    )


for cls in panel.CLASSES:
    if issubclass(cls, bpy.types.UIList):
        watch_list(cls, cls.draw_item)
    else:
        watch_panel(cls, cls.draw)


def job(name, state, done, total, **more):
    tasks = {"total": total, "done": done, "failed": 3 if state == "failed" else 0}
    return peer.add_job(name=name, state=state, tasks=tasks, frames_total=total, frames_done=done, **more)


def window():
    return bpy.context.window_manager.windows[0]


def area():
    return max(window().screen.areas, key=lambda a: a.width * a.height)


def settings():
    return bpy.context.scene.vizpeer


def set_up():
    bpy.ops.wm.save_as_mainfile(filepath=os.path.join(root, "shot.blend"))
    area().type = "PROPERTIES"


def only_ours():
    """Leaves only our panels in the tab, open, so that they fit into one picture."""
    for each in window().screen.areas:  # a wide one, and a narrow one as artists have it
        if each.type == "PROPERTIES":
            each.spaces.active.context = "RENDER"
    for name in dir(bpy.types):
        cls = getattr(bpy.types, name)
        if getattr(cls, "bl_context", "") == "render" and "vizpeer" not in name and hasattr(cls, "bl_rna"):
            try:
                bpy.utils.unregister_class(cls)
            except RuntimeError:
                pass
    ours = [cls for cls in panel.CLASSES if hasattr(cls, "bl_parent_id")]
    for cls in ours:
        bpy.utils.unregister_class(cls)
    for cls in ours:
        cls.bl_options = set()
        bpy.utils.register_class(cls)


def network():
    job("intro_010_lighting", "done", 24, 24)
    job("kitchen_turntable", "failed", 17, 40, reason="task 4 failed three times: Blender died of signal 11")
    job("street_day_v3", "running", 13, 60)
    job("character_closeup", "queued", 0, 250, tier="high")
    job("of somebody else", "running", 1, 2, owner="bob")
    still = job("product_still", "running", 0, 1, frames=[{"frame": 7}], split={"by": "samples"}, units_done=312, units_total=512)
    peer.answers["GET /v1/jobs/%s/frames/7" % still["id"]] = (200, picture())
    settings().render_on = "NETWORK"
    settings().output = "//frames/"


def picture():
    """A JPEG, as a peer answers it."""
    image = bpy.data.images.new("still", 320, 180)
    image.pixels = [(n // 4 % 320) / 320 if n % 4 < 3 else 1.0 for n in range(4 * 320 * 180)]
    image.file_format, image.filepath_raw = "JPEG", os.path.join(root, "still.jpg")
    image.save()
    bpy.data.images.remove(image)
    with open(os.path.join(root, "still.jpg"), "rb") as f:
        return f.read()


def still():
    state = bpy.context.window_manager.vizpeer
    state.job = [row.name for row in state.jobs].index("jtest6")


def failed_job():
    state = bpy.context.window_manager.vizpeer
    state.job = [row.name for row in state.jobs].index("jtest2")


def files():
    settings().frames_from, settings().frames = "CUSTOM", "40-1"
    for number in range(11):
        image = bpy.data.images.new("gone", 4, 4)
        image.source, image.filepath = "FILE", "//textures/level_%d/gone.png" % number
        image.use_fake_user = True
    bpy.ops.vizpeer.check_files()


def refused():
    bpy.ops.vizpeer.submit()


def sending():
    settings().frames_from, settings().on_missing = "SCENE", "CONTINUE"
    peer.hold["POST /v1/projects"] = threading.Event()
    bpy.ops.vizpeer.submit()


def halfway():
    """So small a file is sent at once: once all is, show a large one in its middle."""
    if model.progress is None or model.progress.phase != "Storing":
        return False
    model.progress = jobs.Progress("Sending", 700 << 20, 1800 << 20, 95)
    return True


def submitted():
    peer.hold.pop("POST /v1/projects").set()


def leaderless():
    for path in ("/v1/farm", "/v1/jobs", "/v1/events"):
        peer.answers["GET " + path] = problem(503, "no coordinator can be reached: this peer has heard of none for 12 s")
    status = peer.answer("GET", "/v1/status", None)[1]
    peer.answers["GET /v1/status"] = (200, dict(status, leader=""))
    for stream in list(peer.streams):
        stream.put(None)


def nobody():
    peer.close()
    pump.link().refresh()


model = pump.model
ALL = {cls.__name__ for cls in panel.CLASSES}
# What to do, until when, and the picture's name.
STEPS = [
    (set_up, lambda: True, None),
    (only_ours, lambda: "RENDER_PT_vizpeer" in drawn, "local"),
    (network, lambda: len(bpy.context.window_manager.vizpeer.jobs) == 6 and not ALL - set(drawn), "shot"),
    (still, lambda: pump.picture("jtest6")[0], "picture"),
    (failed_job, lambda: "RENDER_PT_vizpeer_jobs" in drawn, "failed"),
    (files, lambda: "RENDER_PT_vizpeer_files" in drawn, None),
    (refused, lambda: "inverted" in model.notice[1], "missing"),
    (sending, halfway, "sending"),
    (submitted, lambda: model.submission is None and len(model.jobs) == 7, "submitted"),
    (leaderless, lambda: model.farm is not None and model.farm.warning, "leaderless"),
    (nobody, lambda: model.offline, "nobody"),
]
deadline = time.monotonic() + SECONDS
doing = None


def redraw():
    for each in window().screen.areas:
        each.tag_redraw()


def step():
    """Does one step after the other; between them the window is drawn."""
    global doing
    try:
        if errors:
            return over(1, errors[0])
        if time.monotonic() > deadline:
            return over(1, "it took too long: %s" % (doing and doing[0].__name__))
        if doing is None:
            if not STEPS:
                return over(0, "every picture was made")
            doing = list(STEPS.pop(0))
            drawn.clear()
            doing[0]()
            redraw()
            return 0.4
        if "settled" not in doing:
            if not doing[1]():
                redraw()
                return 0.2
            doing.append("settled")  # one more drawing with what has come
            redraw()
            return 0.5
        if doing[2]:
            with bpy.context.temp_override(window=window()):
                bpy.ops.screen.screenshot(filepath=os.path.join(SHOTS, doing[2] + ".png"))
        doing = None
        return 0.05
    except Exception:
        return over(1, traceback.format_exc())


def over(code, text):
    print("\nVIZ window: " + text, flush=True)
    sys.stdout.flush()
    addon_utils.disable("vizpeer", default_set=True)
    os._exit(code)  # Blender's own quitting always says 0


bpy.app.timers.register(step, first_interval=1.0)
