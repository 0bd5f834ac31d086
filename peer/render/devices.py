# SPDX-License-Identifier: Apache-2.0
"""Chooses the devices that Cycles renders on, and makes sure of them.

Blender's own --cycles-device renders on the CPU, with exit code 0, when the
device it was asked for is not there.
"""

# Best first, where a device offers several.
BACKENDS = ("OPTIX", "CUDA", "HIP", "ONEAPI", "METAL")


class Unavailable(Exception):
    """No device of this machine does what was asked for."""


def _preferences(bpy):
    try:
        return bpy.context.preferences.addons["cycles"].preferences
    except KeyError:
        raise Unavailable("this Blender has no Cycles")


def _devices(preferences, backend):
    """The devices that offer backend, now the kind in use."""
    try:
        preferences.compute_device_type = backend
    except TypeError:  # this build does not know it
        return []
    if hasattr(preferences, "refresh_devices"):
        preferences.refresh_devices()
    else:
        preferences.get_devices()
    return [d for d in preferences.devices if d.type == backend]


def choose(bpy, scene, backends, gpu, ids=None):
    """Sets the scene and Blender up for the best device among backends.

    backends is a list of them, best first; None means every one. The CPU is taken
    where no GPU is there and gpu, which asks for one, is false. ids names one GPU, as
    Blender itself does, by backend: then it is that one, however many are like it.
    Answers the device's name.
    """
    preferences = _preferences(bpy)
    if backends == ["CPU"] or (getattr(scene.cycles, "shading_system", False) and not gpu):
        backends, ids = [], None  # Open Shading Language is the CPU's
    for backend in BACKENDS if backends is None else backends:
        if backend not in BACKENDS or (ids is not None and backend not in ids):
            continue
        mine = [d for d in _devices(preferences, backend) if ids is None or d.id == ids[backend]]
        if not mine:
            continue
        used = {d.id for d in mine}
        for device in preferences.devices:
            device.use = device.type == backend and device.id in used
        scene.cycles.device = "GPU"
        return "%s %s" % (backend, mine[0].name)
    if ids is not None:
        raise Unavailable("Blender does not find the GPU any more that it found when this machine's vizpeer "
                          "started (%s)" % ", ".join(sorted(ids.values())))
    if gpu:
        raise Unavailable("Blender finds no device for %s on this machine"
                          % (" or ".join(backends) if backends else "a GPU"))
    scene.cycles.device = "CPU"
    return "CPU"
