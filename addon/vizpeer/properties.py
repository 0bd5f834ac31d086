# SPDX-License-Identifier: GPL-3.0-or-later
"""What the artist chooses, kept with the scene, and what the panel needs to draw.

The farm's own configuration is nowhere in Blender: the local peer has it.
"""

import os

import bpy
from bpy.props import (
    BoolProperty,
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)

from . import frames, pump

GIB = 1 << 30

# Since 4.5 Blender must be told that "//" is welcome in a path of an add-on.
_RELATIVE = {"PATH_SUPPORTS_BLEND_RELATIVE"} if bpy.app.version >= (4, 5, 0) else set()

_ANY = ("ANY", "Any", "No requirement")


class VIZPEER_PG_settings(bpy.types.PropertyGroup):
    """How this scene is rendered on the farm."""

    render_on: EnumProperty(
        name="Render On",
        description="Where the scene is rendered",
        items=(
            ("LOCAL", "Local", "In this Blender, as usual", "BLENDER", 0),
            ("NETWORK", "Network", "On the machines of the farm, while you go on working", "NETWORK_DRIVE", 1),
        ),
        default="LOCAL",
    )
    frames_from: EnumProperty(
        name="Frames",
        description="Which frames are rendered",
        items=(
            ("SCENE", "Scene Range", "The scene's frame range and step"),
            ("CURRENT", "Current", "The current frame alone"),
            ("CUSTOM", "Custom", "Frames and ranges of your own"),
        ),
        default="SCENE",
    )
    frames: StringProperty(
        name="Frames",
        description="Frames and ranges, with steps if you like: 1-40,50,60-80x2",
        default="1-40",
    )
    tier: EnumProperty(
        name="Priority",
        description="Work of a higher priority goes first; within one, the oldest job does",
        items=(
            ("LOW", "Low", "When nothing else waits"),
            ("NORMAL", "Normal", "As most jobs"),
            ("HIGH", "High", "Before the others"),
            ("URGENT", "Urgent", "Before everything"),
        ),
        default="NORMAL",
    )
    split: EnumProperty(
        name="Split Frames",
        description="How machines share one frame; only Cycles renders parts of one",
        items=(
            ("AUTO", "Automatic", "A still that is worth it, in the way that gives the same picture"),
            ("NONE", "None", "Each frame is rendered whole, by one machine"),
            ("SAMPLES", "Samples", "Each machine renders some samples of the whole frame; adaptive sampling is switched off"),
            ("TILES", "Tiles", "Each machine renders some tiles of the frame"),
        ),
        default="AUTO",
    )
    output: StringProperty(
        name="Output",
        description="Folder on this machine where the frames are written as they come",
        subtype="DIR_PATH",
        default="//frames/",
        options={"ANIMATABLE"} | _RELATIVE,
    )
    on_missing: EnumProperty(
        name="Missing Files",
        description="What to do where files that the scene needs are missing",
        items=(
            ("STRICT", "Do Not Submit", "Nothing is sent until every file is there"),
            ("CONTINUE", "Submit Anyway", "Render without them, as Blender does"),
        ),
        default="STRICT",
    )
    backend: EnumProperty(
        name="Backend",
        description="The way of rendering that a machine must offer",
        items=(
            _ANY,
            ("OPTIX", "OptiX", "NVIDIA, with ray tracing hardware"),
            ("CUDA", "CUDA", "NVIDIA"),
            ("HIP", "HIP", "AMD"),
            ("ONEAPI", "oneAPI", "Intel"),
            ("METAL", "Metal", "Apple"),
            ("CPU", "CPU", "The processor"),
        ),
        default="ANY",
    )
    require_gpu: BoolProperty(name="Require GPU", description="Only machines that have a GPU", default=False)
    gpu_vendor: EnumProperty(
        name="GPU Vendor",
        description="The maker that the machine's GPU must be of",
        items=(
            _ANY,
            ("NVIDIA", "NVIDIA", ""),
            ("AMD", "AMD", ""),
            ("INTEL", "Intel", ""),
            ("APPLE", "Apple", ""),
        ),
        default="ANY",
    )
    min_vram: FloatProperty(
        name="Min VRAM (GiB)",
        description="Memory that one GPU must have, in GiB; 0 for any",
        min=0,
        max=4096,
        soft_max=96,
        precision=1,
        step=100,
    )
    min_ram: FloatProperty(
        name="Min RAM (GiB)",
        description="Memory that the machine must have, in GiB; 0 for any",
        min=0,
        max=65536,
        soft_max=1024,
        precision=1,
        step=100,
    )
    system: EnumProperty(
        name="System",
        description="The operating system of the machine",
        items=(
            _ANY,
            ("linux", "Linux", ""),
            ("windows", "Windows", ""),
            ("darwin", "macOS", ""),
        ),
        default="ANY",
    )
    labels: StringProperty(
        name="Labels",
        description="Labels that a machine must all carry, separated by commas",
    )
    blender: StringProperty(
        name="Blender",
        description="Blender version that must render: 3.4 for every 3.4.x, 3.4.1 for itself, any for every one that is not older than this; empty for this Blender's release",
    )

    def frame_list(self, scene):
        """The frames as the farm reads them; ValueError says what is wrong with them."""
        if self.frames_from == "CURRENT":
            return str(scene.frame_current)
        text = self.frames.strip()
        if self.frames_from == "SCENE":
            text = frames.of_scene(scene.frame_start, scene.frame_end, scene.frame_step)
        frames.count(text)
        return text

    def needs(self):
        """The requirements as the farm reads them: only those that were asked for."""
        needs = {}
        if self.backend != "ANY":
            needs["backend"] = self.backend
        if self.require_gpu:
            needs["require_gpu"] = True
        if self.gpu_vendor != "ANY":
            needs["gpu_vendor"] = self.gpu_vendor
        if self.min_vram > 0:
            needs["min_vram"] = int(self.min_vram * GIB)
        if self.min_ram > 0:
            needs["min_ram"] = int(self.min_ram * GIB)
        if self.system != "ANY":
            needs["os"] = self.system
        labels = [label.strip() for label in self.labels.split(",") if label.strip()]
        if labels:
            needs["labels"] = list(dict.fromkeys(labels))
        if self.blender.strip():
            needs["blender"] = self.blender.strip().lower()
        return needs

    def job(self, scene):
        """The body of POST /v1/jobs, less the project; ValueError says what is wrong."""
        folder = self.output_folder()
        return {
            "name": os.path.splitext(os.path.basename(bpy.data.filepath))[0] or "untitled",
            "frames": self.frame_list(scene),
            "priority": self.tier.lower(),
            "split": self.split.lower(),
            "needs": self.needs(),
            "output": folder,
            "strict": self.on_missing == "STRICT",
        }

    def output_folder(self):
        """The absolute output folder."""
        if not self.output.strip():
            raise ValueError("Choose an output folder")
        return os.path.abspath(bpy.path.abspath(self.output))


class VIZPEER_PG_job(bpy.types.PropertyGroup):
    """A row of the job list; its name is the job's ID, under which the model has the rest."""


class VIZPEER_PG_state(bpy.types.PropertyGroup):
    """What Blender's widgets need a property for."""

    jobs: CollectionProperty(type=VIZPEER_PG_job)
    job: IntProperty(name="Job", description="The selected job")
    mine: BoolProperty(name="My Jobs Only", description="Hide the jobs of others", default=True)

    def _percent(self):
        progress = pump.model.progress
        return 100.0 * progress.sent / progress.total if progress and progress.total else 0.0

    progress: FloatProperty(name="Progress", subtype="PERCENTAGE", min=0, max=100, precision=0, get=_percent)


class VIZPEER_preferences(bpy.types.AddonPreferences):
    bl_idname = __package__

    data_folder: StringProperty(
        name="Data Folder",
        description="The vizpeer data folder of this machine, where it is not in the usual place",
        subtype="DIR_PATH",
        update=lambda self, context: pump.unlink(),
    )

    ca_file: StringProperty(
        name="CA File",
        description="The farm's ca.crt, where VIZPEER_API names a peer of another machine (https)",
        subtype="FILE_PATH",
        update=lambda self, context: pump.unlink(),
    )
    ca_fingerprint: StringProperty(
        name="CA Fingerprint",
        description="Instead of the file: the SHA-256 that `vizpeer status` shows",
        update=lambda self, context: pump.unlink(),
    )

    def draw(self, context):
        for name in ("data_folder", "ca_file", "ca_fingerprint"):
            self.layout.prop(self, name)
        self.layout.label(text="Leave these empty: the vizpeer of this machine is found by itself.", icon="INFO")


CLASSES = (VIZPEER_PG_settings, VIZPEER_PG_job, VIZPEER_PG_state, VIZPEER_preferences)


def register():
    bpy.types.Scene.vizpeer = PointerProperty(type=VIZPEER_PG_settings)
    bpy.types.WindowManager.vizpeer = PointerProperty(type=VIZPEER_PG_state)


def unregister():
    del bpy.types.WindowManager.vizpeer
    del bpy.types.Scene.vizpeer
