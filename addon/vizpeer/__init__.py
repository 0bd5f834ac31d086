# SPDX-License-Identifier: GPL-3.0-or-later
"""vizpeer for Blender: render on the farm without leaving Blender.

The add-on talks to the vizpeer that runs on this machine, over loopback, and to
nothing else. It has no settings of the farm: it finds the peer and its token by
itself. Loopback is not the internet, so it works with Blender's online access
switched off, too.
"""

bl_info = {
    "name": "vizpeer",
    "author": "The vizpeer authors",
    "version": (0, 1, 0),
    "blender": (2, 93, 0),
    "location": "Properties > Render > vizpeer",
    "description": "Render on the machines of a vizpeer farm",
    "category": "Render",
}

import bpy

from . import operators, panel, properties, pump

CLASSES = properties.CLASSES + operators.CLASSES + panel.CLASSES


@bpy.app.handlers.persistent
def _opened(*_):
    pump.new_file()


def register():
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    properties.register()
    bpy.app.handlers.load_post.append(_opened)


def unregister():
    pump.stop()
    bpy.app.handlers.load_post.remove(_opened)
    properties.unregister()
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
