# SPDX-License-Identifier: GPL-3.0-or-later
"""Submits the open .blend with the add-on, in a Blender without a window.

    VIZPEER_SUBMIT='{"frames_from": "CUSTOM", "frames": "1-4", "output": "/tmp/out"}' \\
    BLENDER_USER_SCRIPTS=SCRIPTS blender -b --factory-startup --python-exit-code 3 FILE -P submit_and_wait.py

SCRIPTS/addons/vizpeer is the add-on. VIZPEER_SUBMIT holds properties of
scene.vizpeer and, as "seconds", the time that the submission may take (120).
VIZPEER_DATA_DIR, VIZPEER_API and VIZPEER_TOKEN lead to the peer, as they do in
the add-on. It prints a line

    VIZ {"event": "submitted", "job": …, "project": …, "tasks": …, "missing": […], "text": …}

and exits with 0, or "failed" with the reason and exits with 1.
"""

import json
import os
import sys
import time

import addon_utils
import bpy


def main():
    wanted = json.loads(os.environ.get("VIZPEER_SUBMIT") or "{}")
    deadline = time.monotonic() + wanted.pop("seconds", 120)
    if addon_utils.enable("vizpeer", default_set=True) is None:
        return tell("failed", text="the add-on cannot be enabled: is it in BLENDER_USER_SCRIPTS/addons?")
    from vizpeer import pump

    settings = bpy.context.scene.vizpeer
    settings.render_on = "NETWORK"
    for name, value in wanted.items():
        setattr(settings, name, value)
    answers = []
    post = pump.model.post

    def overhear(kind, value=None):
        if kind == "submitted":
            answers.append(value)
        post(kind, value)

    pump.model.post = overhear
    if bpy.ops.vizpeer.submit() != {"FINISHED"}:
        return tell("failed", text=pump.model.notice[1], missing=pump.model.missing)
    while pump.model.submission is not None:
        left = deadline - time.monotonic()
        if left <= 0:
            pump.model.submission.cancel()
            return tell("failed", text="the submission took too long")
        pump.tick(wait=min(left, 1.0))
    if not answers:
        return tell("failed", text=pump.model.notice[1])
    return tell("submitted", missing=pump.model.missing, **answers[0])


def tell(event, **more):
    print("\nVIZ " + json.dumps(dict(more, event=event)), flush=True)
    return 0 if event == "submitted" else 1


sys.exit(main())
