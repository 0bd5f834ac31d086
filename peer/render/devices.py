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


def available(bpy):
    """The names of the devices by backend, CPU apart."""
    preferences = _preferences(bpy)
    found = {}
    for backend in BACKENDS:
        names = [d.name for d in _devices(preferences, backend)]
        if names:
            found[backend] = names
    try:
        preferences.compute_device_type = "NONE"
    except TypeError:
        pass
    return found


def choose(bpy, scene, backends, gpu):
    """Sets the scene and Blender up for the best device among backends.

    None means every backend; the CPU is taken where no GPU is there and gpu, which
    asks for one, is false. Answers the device's name.
    """
    preferences = _preferences(bpy)
    osl = getattr(scene.cycles, "shading_system", False)
    if backends == ["CPU"] or (osl and not gpu):
        backends = []
    for backend in BACKENDS if backends is None else backends:
        if backend not in BACKENDS:
            continue
        mine = _devices(preferences, backend)
        if not mine:
            continue
        for device in preferences.devices:
            device.use = device.type == backend
        scene.cycles.device = "GPU"
        return "%s %s" % (backend, mine[0].name)
    if gpu:
        raise Unavailable("Blender finds no device for %s on this machine"
                          % (" or ".join(backends) if backends else "a GPU"))
    scene.cycles.device = "CPU"
    return "CPU"
