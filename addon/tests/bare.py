# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the add-on's modules that need no bpy importable where there is no Blender."""

import os
import sys
import types

ADDON = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "vizpeer")

if "vizpeer" not in sys.modules:
    package = types.ModuleType("vizpeer")  # its __init__ would want bpy
    package.__path__ = [ADDON]
    sys.modules["vizpeer"] = package
