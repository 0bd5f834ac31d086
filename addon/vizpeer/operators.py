# SPDX-License-Identifier: GPL-3.0-or-later
"""The buttons of the panel."""

import os
import shutil
import tempfile

import bpy

from . import client, collect, jobs, pump


def unsaved_images():
    """Images painted in this session that are neither saved nor packed: no copy of the .blend holds them."""
    return [
        image.name
        for image in bpy.data.images
        if image.is_dirty and not image.packed_file and image.type not in {"RENDER_RESULT", "COMPOSITING"} and image.users
    ]


def survey():
    """Looks for the files that the scene needs, and tells the panel; returns collect's answer."""
    collected = collect.collect(bpy)
    model = pump.model
    model.missing = [client.clean(path, 500) for path in collected["manifest"]["missing"]]
    model.unsaved = [client.clean(name) for name in unsaved_images()]
    count = len(collected["files"])
    model.checked = "%d file%s found" % (count, "" if count == 1 else "s")
    return collected


def snapshot():
    """Saves an uncompressed copy of the open .blend to a folder of its own, and returns its path.

    The copy has the .blend's own name, because caches are named after it, and the
    references of the original, because its bytes stand in the original's place.
    Uncompressed, an unchanged part of the scene has unchanged bytes and is sent
    to the farm's machines only once.
    """
    folder = tempfile.mkdtemp(prefix="vizpeer-", dir=bpy.app.tempdir or None)
    path = os.path.join(folder, os.path.basename(bpy.data.filepath))
    try:
        bpy.ops.wm.save_as_mainfile(filepath=path, copy=True, compress=False, relative_remap=False, check_existing=False)
        if not os.path.getsize(path):
            raise OSError("the copy is empty")
    except (RuntimeError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RuntimeError("The scene cannot be copied to %s (%s): is the disk full?" % (folder, client.clean(error)))
    return path


class VIZPEER_OT_submit(bpy.types.Operator):
    """Send the scene, as it is now, to the farm, and go on working"""

    bl_idname = "vizpeer.submit"
    bl_label = "Submit to Network"

    @classmethod
    def poll(cls, context):
        if pump.model.submission is not None:
            return _no(cls, "A submission is under way")
        if not pump.model.may_submit():
            return _no(cls, "Your key may watch the farm but not submit jobs")
        return True

    def invoke(self, context, event):
        if not bpy.data.filepath:
            self.report({"WARNING"}, "Save the .blend first, then submit it")
            bpy.ops.wm.save_as_mainfile("INVOKE_DEFAULT")
            return {"CANCELLED"}
        return self.execute(context)

    def execute(self, context):
        if not bpy.data.filepath:
            return self._refuse("Save the .blend first: relative paths start from its folder")
        settings = context.scene.vizpeer
        try:
            job = settings.job(context.scene)
            collected = survey()
        except ValueError as error:
            return self._refuse(str(error))
        model = pump.model
        if settings.on_missing == "STRICT" and (model.missing or model.unsaved):
            count = len(model.missing) + len(model.unsaved)
            return self._refuse(
                "%d file%s missing or not saved: see the list, or choose Submit Anyway" % (count, " is" if count == 1 else "s are")
            )
        copy = None
        try:
            copy = snapshot()
            pump.submit(collected, copy, job)
        except (RuntimeError, client.Problem) as error:
            if copy is not None:
                shutil.rmtree(os.path.dirname(copy), ignore_errors=True)
            return self._refuse(str(error))
        return {"FINISHED"}

    def _refuse(self, text):
        pump.model.notice = ("ERROR", text)
        # A warning: an error would raise in scripts before they can read the model.
        self.report({"WARNING"}, text)
        return {"CANCELLED"}


class VIZPEER_OT_check(bpy.types.Operator):
    """List the files that the scene needs and that are not there"""

    bl_idname = "vizpeer.check_files"
    bl_label = "Check Files"

    def execute(self, context):
        try:
            survey()
        except ValueError as error:
            self.report({"WARNING"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class VIZPEER_OT_cancel_submission(bpy.types.Operator):
    """Stop sending; nothing will be queued"""

    bl_idname = "vizpeer.cancel_submission"
    bl_label = "Cancel Submission"

    @classmethod
    def poll(cls, context):
        return pump.model.submission is not None

    def execute(self, context):
        if not pump.model.submission.cancel():
            self.report({"INFO"}, "The job is already being queued: cancel it in the list")
        return {"FINISHED"}


class VIZPEER_OT_refresh(bpy.types.Operator):
    """Ask the farm now; the list follows it by itself, too"""

    bl_idname = "vizpeer.refresh"
    bl_label = "Refresh"

    def execute(self, context):
        pump.link().refresh()
        pump.wake()
        return {"FINISHED"}


class _JobOperator:
    job: bpy.props.StringProperty(name="Job", options={"HIDDEN", "SKIP_SAVE"})


class VIZPEER_OT_cancel_job(_JobOperator, bpy.types.Operator):
    """Cancel the selected job; the frames it has stay"""

    bl_idname = "vizpeer.cancel_job"
    bl_label = "Cancel Job"

    @classmethod
    def poll(cls, context):
        job = selected(context)
        if job is None or job.state in jobs.ENDED:
            return _no(cls, "Select a job that has not ended")
        if not pump.model.may_control(job):
            return _no(cls, "The job is not yours")
        return True

    def invoke(self, context, event):
        # The list may move while the question is open.
        self.job = selected(context).id
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, context):
        pump.link().cancel(self.job or selected(context).id)
        pump.wake()
        return {"FINISHED"}


class VIZPEER_OT_open_output(_JobOperator, bpy.types.Operator):
    """Show the folder that the selected job's frames are written to"""

    bl_idname = "vizpeer.open_output"
    bl_label = "Open Output Folder"

    @classmethod
    def poll(cls, context):
        return selected(context) is not None or _no(cls, "Select a job")

    def execute(self, context):
        pump.link().open_output(self.job or selected(context).id)
        pump.wake()
        return {"FINISHED"}


def selected(context):
    """The selected job, or None."""
    state = context.window_manager.vizpeer
    if 0 <= state.job < len(state.jobs):
        return pump.model.jobs.get(state.jobs[state.job].name)
    return None


def _no(operator, why):
    if hasattr(operator, "poll_message_set"):  # since 3.0
        operator.poll_message_set(why)
    return False


CLASSES = (
    VIZPEER_OT_submit,
    VIZPEER_OT_check,
    VIZPEER_OT_cancel_submission,
    VIZPEER_OT_refresh,
    VIZPEER_OT_cancel_job,
    VIZPEER_OT_open_output,
)
