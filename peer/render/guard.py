# SPDX-License-Identifier: Apache-2.0
"""Takes out of the open .blend what runs code or writes files during a render.

Blender's -Y already stops registered texts, handlers and unsafe drivers. It
does not stop Freestyle's script modules, nor nodes that write files anywhere.
"""

import os
import re


def node_trees(bpy):
    """Every node tree of the file, linked ones and groups included."""
    for name in ("materials", "worlds", "lights", "textures", "linestyles", "scenes"):
        for block in getattr(bpy.data, name):
            tree = getattr(block, "node_tree", None)
            if tree is not None:
                yield tree
    for group in bpy.data.node_groups:  # the compositor's too, from Blender 5 on
        yield group


def _freestyle(bpy):
    stopped = 0
    for scene in bpy.data.scenes:
        for layer in scene.view_layers:
            settings = getattr(layer, "freestyle_settings", None)
            if settings is None:
                continue
            if settings.mode == "SCRIPT":
                # Changing the mode instead can crash Blender.
                layer.use_freestyle = False
                stopped += 1
            # An animation could switch the layer on again: leave it nothing to run.
            for module in list(settings.modules):
                settings.modules.remove(module)
    if stopped:
        yield "Freestyle scripts do not run on a farm: %d view layers render without Freestyle" % stopped


def _flat(name):
    return re.sub(r"[^\w.#-]", "_", name)


def _file_outputs(bpy, folder):
    count = 0
    for tree in node_trees(bpy):
        for node in tree.nodes:
            if node.type != "OUTPUT_FILE":
                continue
            here = os.path.join(folder, "output_%d" % count, "")
            count += 1
            if hasattr(node, "base_path"):
                node.base_path = here
                for slot in node.file_slots:  # a slot may climb out of the base path
                    slot.path = _flat(slot.path)
            else:  # Blender 5
                node.directory = here
                node.file_name = _flat(node.file_name)
                for item in node.file_output_items:
                    item.name = _flat(item.name)
    if count:
        yield "what %d File Output nodes write is not kept" % count


def _caches(bpy, folder, root):
    """Simulations write into their cache folder as they play."""
    for ob in bpy.data.objects:
        for modifier in ob.modifiers:
            if modifier.type != "FLUID" or modifier.fluid_type != "DOMAIN":
                continue
            where = os.path.normpath(bpy.path.abspath(modifier.domain_settings.cache_directory, library=ob.library))
            if root and not where.startswith(os.path.join(os.path.normpath(root), "")):
                modifier.domain_settings.cache_directory = os.path.join(folder, "fluid")
                yield "the fluid cache of %r is not part of the project" % ob.name


def guard(bpy, folder, root=None):
    """Makes the file harmless; what must be written goes below folder.

    root is the project's folder where nothing but this guard confines Blender.
    Yields a sentence for each thing that was changed.
    """
    for scene in bpy.data.scenes:
        # Whether anything outlives its frame is the driver's to say: see history.py.
        if hasattr(scene.render, "use_persistent_data"):
            scene.render.use_persistent_data = False
    for change in (_freestyle(bpy), _file_outputs(bpy, folder), _caches(bpy, folder, root)):
        for text in change:
            yield text
