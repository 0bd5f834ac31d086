# SPDX-License-Identifier: Apache-2.0
"""Tells what one Blender can do: engines, denoiser, devices by backend.

    blender -b --factory-startup -noaudio --python-exit-code 3 -P probe.py -- OUT.json
"""

import json
import sys

import bpy

BACKENDS = ("OPTIX", "CUDA", "HIP", "ONEAPI", "METAL")
ENGINES = ["CYCLES", "BLENDER_EEVEE", "BLENDER_EEVEE_NEXT", "BLENDER_WORKBENCH"]


def engines():
    """The engines that can be chosen; Blender lists only some of them itself."""
    render = bpy.context.scene.render
    found = []
    for name in ENGINES + [c.bl_idname for c in bpy.types.RenderEngine.__subclasses__()]:
        try:
            render.engine = name
        except TypeError:
            continue
        if name not in found:
            found.append(name)
    return found


def denoiser():
    """Whether OpenImageDenoise is there; a Blender that does not tell is trusted."""
    try:
        import _cycles
    except ImportError:
        return True
    return bool(getattr(_cycles, "with_openimagedenoise", True))


def devices():
    """Cycles' devices by backend: their IDs tell equal cards apart."""
    addon = bpy.context.preferences.addons.get("cycles")
    found = {}
    if addon is None:
        return found
    preferences = addon.preferences
    for backend in BACKENDS:
        try:
            preferences.compute_device_type = backend
        except TypeError:  # not in this build
            continue
        getattr(preferences, "refresh_devices", preferences.get_devices)()
        mine = [{"id": d.id, "name": d.name} for d in preferences.devices if d.type == backend]
        if mine:
            found[backend] = mine
    return found


with open(sys.argv[sys.argv.index("--") + 1], "w", encoding="utf-8") as f:
    json.dump({
        "version": "%d.%d.%d" % tuple(bpy.app.version),
        "hash": bpy.app.build_hash.decode("utf-8", "replace"),
        "engines": engines(),
        "oidn": denoiser(),
        "gpus": devices(),
    }, f)
