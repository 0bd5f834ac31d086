# SPDX-License-Identifier: GPL-3.0-or-later
"""The panel in the render properties. It draws what the model knows, and asks nobody."""

import textwrap

import bpy

from . import client, frames, jobs, operators, pump

MAX_LISTED = 8  # missing files that are shown
PICTURE_SCALE = 9.0  # of a job's picture, in rows: Blender's own pictures of this kind have 256 pixels

STATE_ICONS = {
    "queued": "SORTTIME",
    "running": "RENDER_ANIMATION",
    "paused": "PAUSE",
    "done": "CHECKMARK",
    "failed": "ERROR",
    "cancelled": "CANCEL",
}


def write(layout, context, text, icon="NONE", alert=False):
    """A label of as many lines as the text needs in this width: Blender's labels cut it off."""
    width = letters(context, 60 if icon == "NONE" else 80)
    column = layout.column(align=True)
    column.alert = alert
    column.scale_y = 0.8
    for number, line in enumerate(textwrap.wrap(text, width) or [""]):
        blank = "NONE" if icon == "NONE" else "BLANK1"
        column.label(text=line, icon=blank if number else icon)


def letters(context, taken):
    """About how many letters fit into the panel beside so many points that are taken."""
    scale = context.preferences.system.ui_scale or 1.0
    return max(20, int((context.region.width / scale - taken) / 6.2))


def ending(text, width):
    """The last part of a path that does not fit: it is what tells files apart."""
    return text if len(text) <= width else "…" + text[1 - width :]


class _Panel:
    bl_space_type = "PROPERTIES"
    bl_region_type = "WINDOW"
    bl_context = "render"


class _NetworkPanel(_Panel):
    bl_parent_id = "RENDER_PT_vizpeer"

    @classmethod
    def poll(cls, context):
        return context.scene.vizpeer.render_on == "NETWORK"


class RENDER_PT_vizpeer(_Panel, bpy.types.Panel):
    bl_label = "vizpeer"
    bl_idname = "RENDER_PT_vizpeer"

    def draw(self, context):
        layout = self.layout
        settings = context.scene.vizpeer
        layout.row().prop(settings, "render_on", expand=True)
        if settings.render_on == "LOCAL":
            row = layout.row(align=True)
            row.operator("render.render", text="Image", icon="RENDER_STILL")
            row.operator("render.render", text="Animation", icon="RENDER_ANIMATION").animation = True
            return
        pump.seen()
        self._farm(context)
        self._submit(context, self._settings(context, settings))

    def _farm(self, context):
        model = pump.model
        box = self.layout.box().column()
        if model.farm is not None:
            write(box, context, model.farm.line, "NETWORK_DRIVE")
            if model.farm.warning:
                write(box, context, model.farm.warning, "ERROR", alert=True)
        elif model.offline:
            write(box, context, model.offline, "UNLINKED", alert=True)
        else:
            write(box, context, "Looking for the vizpeer of this machine …", "SORTTIME")

    def _settings(self, context, settings):
        """Draws what to render, and returns what is wrong with it."""
        column = self.layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.prop(settings, "frames_from")
        if settings.frames_from == "CUSTOM":
            column.prop(settings, "frames", text=" ")
        problem = ""
        try:
            count = frames.count(settings.frame_list(context.scene))
            detail = "%d frame%s" % (count, "" if count == 1 else "s")
        except ValueError as error:
            problem = detail = str(error)
        if problem:
            write(column, context, problem, "ERROR", alert=True)
        else:
            split = column.split(factor=0.4)
            split.label(text="")
            split.label(text=detail)
        column.prop(settings, "tier")
        column.prop(settings, "output")
        return problem

    def _submit(self, context, problem):
        model = pump.model
        layout = self.layout
        if model.submission is None:
            row = layout.row()
            row.scale_y = 1.4
            row.enabled = not problem
            row.operator("vizpeer.submit", icon="EXPORT")
        elif model.progress is not None:
            self._progress(context, model.progress)
        icon, text = model.notice
        if text and text != problem:
            write(layout.column(), context, text, icon or "NONE", alert=icon == "ERROR")

    def _progress(self, context, progress):
        row = self.layout.row(align=True)
        text = progress.phase
        if progress.phase == "Sending":
            text = "%s of %s" % (jobs.size(progress.sent), jobs.size(progress.total))
            if progress.eta is not None:
                text += ", %s left" % jobs.duration(progress.eta)
        elif progress.phase == "Storing":
            text = "All sent; vizpeer stores it"
        if hasattr(row, "progress"):  # since 4.0
            factor = progress.sent / progress.total if progress.total else 0.0
            row.progress(factor=factor, text="%s: %d %%" % (progress.phase, 100 * factor))
        else:
            bar = row.row(align=True)
            bar.enabled = False
            bar.prop(context.window_manager.vizpeer, "progress", text=progress.phase, slider=True)
        row.operator("vizpeer.cancel_submission", text="", icon="X")
        write(self.layout.column(), context, text, "BLANK1")


class RENDER_PT_vizpeer_needs(_NetworkPanel, bpy.types.Panel):
    bl_label = "Hardware Requirements"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        settings = context.scene.vizpeer
        column = self.layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.prop(settings, "backend")
        gpu = column.column()
        gpu.active = settings.backend != "CPU"
        gpu.prop(settings, "require_gpu")
        gpu.prop(settings, "gpu_vendor")
        gpu.prop(settings, "min_vram")
        column.prop(settings, "min_ram")
        column.prop(settings, "system")
        column.prop(settings, "labels")
        column.prop(settings, "blender")


class RENDER_PT_vizpeer_advanced(_NetworkPanel, bpy.types.Panel):
    bl_label = "Advanced"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        column = self.layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.prop(context.scene.vizpeer, "split")


class RENDER_PT_vizpeer_files(_NetworkPanel, bpy.types.Panel):
    bl_label = "Files"

    def draw_header(self, context):
        if pump.model.missing or pump.model.unsaved:
            self.layout.label(text="", icon="ERROR")

    def draw(self, context):
        model = pump.model
        layout = self.layout
        column = layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.prop(context.scene.vizpeer, "on_missing")
        layout.operator("vizpeer.check_files", icon="VIEWZOOM")
        if not model.checked:
            return
        if not model.missing and not model.unsaved:
            write(layout.column(), context, model.checked + ", none missing", "CHECKMARK")
            return
        self._list(context, "%d missing" % len(model.missing), model.missing)
        self._list(context, "Painted but not saved: save or pack them", model.unsaved)

    def _list(self, context, title, names):
        if not names:
            return
        box = self.layout.box().column(align=True)
        write(box, context, title, "ERROR", alert=True)
        for name in names[:MAX_LISTED]:
            box.label(text=ending(name, letters(context, 70)), translate=False)
        if len(names) > MAX_LISTED:
            box.label(text="and %d more" % (len(names) - MAX_LISTED))


class VIZPEER_UL_jobs(bpy.types.UIList):
    def draw_item(self, context, layout, data, item, icon, active_data, active_property, index=0, flt_flag=0):
        job = pump.model.jobs.get(item.name)
        if job is None:
            layout.label(text="")
            return
        split = layout.split(factor=0.55)
        split.label(text=job.name, icon=STATE_ICONS.get(job.state, "QUESTION"), translate=False)
        split = split.split(factor=0.55)
        split.label(text=job.state.capitalize())
        right = split.row()
        right.alignment = "RIGHT"
        right.label(text="%d / %d" % jobs.counts(job)[:2])

    def draw_filter(self, context, layout):
        row = layout.row()
        row.prop(self, "filter_name", text="")
        row.prop(context.window_manager.vizpeer, "mine", text="", icon="USER")

    def filter_items(self, context, data, property):
        model = pump.model
        user = model.farm.user if model.farm is not None and data.mine else ""
        wanted = self.filter_name.lower()
        flags = []
        for row in getattr(data, property):
            job = model.jobs.get(row.name)
            show = job is not None and (not user or job.owner == user) and wanted in job.name.lower()
            flags.append(self.bitflag_filter_item if show else 0)
        return flags, []


class RENDER_PT_vizpeer_jobs(_NetworkPanel, bpy.types.Panel):
    bl_label = "Jobs"

    def draw(self, context):
        model = pump.model
        layout = self.layout
        state = context.window_manager.vizpeer
        row = layout.row()
        row.active = model.farm is not None  # else the list is what was last known
        row.template_list("VIZPEER_UL_jobs", "", state, "jobs", state, "job", rows=4, maxrows=8)
        buttons = row.column(align=True)
        buttons.operator("vizpeer.refresh", text="", icon="FILE_REFRESH")
        buttons.separator()
        buttons.operator("vizpeer.open_output", text="", icon="FILE_FOLDER")
        buttons.operator("vizpeer.cancel_job", text="", icon="CANCEL")
        if model.jobs_problem:
            write(layout.column(), context, model.jobs_problem, "ERROR", alert=True)
        job = operators.selected(context)
        if job is None:
            if model.jobs_known and not model.jobs:
                write(layout.column(), context, "No jobs yet")
            return
        text = "%s: %s, %s done" % (job.id, job.state, jobs.amount(job))
        if job.failed:
            text += ", %d task%s failed" % (job.failed, "" if job.failed == 1 else "s")
        write(layout.column(), context, text)
        if job.reason:
            write(layout.column(), context, client.clean(job.reason, 400), "INFO", alert=job.state == "failed")
        icon, caption = pump.picture(job.id)
        if icon:
            column = layout.column(align=True)
            column.template_icon(icon_value=icon, scale=PICTURE_SCALE)
            column.label(text=caption)


CLASSES = (
    RENDER_PT_vizpeer,
    RENDER_PT_vizpeer_needs,
    RENDER_PT_vizpeer_advanced,
    RENDER_PT_vizpeer_files,
    VIZPEER_UL_jobs,
    RENDER_PT_vizpeer_jobs,
)
