# SPDX-License-Identifier: Apache-2.0
"""Runs before the .blend is opened, where nothing but the guard confines Blender.

Opening a file plays its simulations for a frame, which writes their caches, and
only then do scripts of the command line run. Handlers run before that.
"""

import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import bpy  # noqa: E402

import guard  # noqa: E402


@bpy.app.handlers.persistent
def opened(*_):
    guard.hold(bpy, ARGS["scratch"], ARGS["root"])


with open(sys.argv[sys.argv.index("--") + 1], encoding="utf-8") as f:
    ARGS = json.load(f)
bpy.app.handlers.load_post.append(opened)
