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


def _inside(path, root):
    """Tells whether path is below root, wherever symlinks on it lead."""
    return (os.path.realpath(path) + os.sep).startswith(os.path.realpath(root) + os.sep)


def _fluid_domains(bpy):
    for ob in bpy.data.objects:
        for modifier in ob.modifiers:
            if modifier.type == "FLUID" and modifier.fluid_type == "DOMAIN":
                yield ob, modifier.domain_settings


def _fluids(bpy, folder, root):
    """Simulations write into their cache folder as they play."""
    for ob, domain in _fluid_domains(bpy):
        if root and not _inside(bpy.path.abspath(domain.cache_directory, library=ob.library), root):
            domain.cache_directory = os.path.join(folder, "fluid")
            yield "the fluid cache of %r is not part of the project" % ob.name


def _point_caches(bpy):
    """Every cache of particles, cloth, soft and rigid bodies."""
    for ob in bpy.data.objects:
        for modifier in ob.modifiers:
            if getattr(modifier, "point_cache", None) is not None:
                yield ob, modifier.point_cache
            for surface in getattr(getattr(modifier, "canvas_settings", None), "canvas_surfaces", ()):
                yield ob, surface.point_cache
        for system in ob.particle_systems:
            yield ob, system.point_cache
        if getattr(ob, "soft_body", None) is not None:
            yield ob, ob.soft_body.point_cache
    for scene in bpy.data.scenes:
        if scene.rigidbody_world is not None and scene.rigidbody_world.point_cache is not None:
            yield scene, scene.rigidbody_world.point_cache


def _names(bpy):
    """The name of a cache is a part of a file's, which is written as it plays."""
    for owner, cache in _point_caches(bpy):
        # Blender lets nobody type such a name, but reads it from a file.
        if cache.use_disk_cache and re.search(r"[/\\]", cache.name):
            cache.use_disk_cache = False
            yield "the cache %r of %r has no name for a file" % (cache.name, owner.name)


def _reads(bpy):
    """Everything that names a file to read, with its owner and the property's name."""
    for name in ("images", "movieclips", "sounds", "volumes", "cache_files"):
        for block in getattr(bpy.data, name, ()):
            if not getattr(block, "packed_file", None):
                yield block, block, "filepath"
    for tree in node_trees(bpy):
        for node in tree.nodes:
            yield tree, node, "filepath"  # IES lights and OSL scripts
    for scene in bpy.data.scenes:
        editor = scene.sequence_editor
        for strip in (getattr(editor, "strips_all", None) or editor.sequences_all) if editor else ():
            if strip.type in ("IMAGE", "MOVIE"):
                yield scene, strip, "directory" if strip.type == "IMAGE" else "filepath"


def _strangers(bpy, root):
    """Files outside of the project do not belong in anyone's frame."""
    for block, owner, name in list(_reads(bpy)):
        path = getattr(owner, name, "")
        if not path or path.startswith("<"):
            continue
        if not _inside(bpy.path.abspath(path, library=block.library), root):
            yield "%r is not part of the project: %s" % (owner.name, path)
            setattr(owner, name, os.path.join(root, "not part of the project"))


_held = []


def hold(bpy, folder, root):
    """Keeps caches in folder while the file opens, until release: see early.py."""
    for ob, domain in _fluid_domains(bpy):
        if not _inside(bpy.path.abspath(domain.cache_directory, library=ob.library), root):
            _held.append((domain, domain.cache_directory))
            domain.cache_directory = os.path.join(folder, "fluid")
    for _ in _names(bpy):
        pass


def release():
    """Gives the file back the paths it had, for what is to look at all of them."""
    for domain, path in _held:
        domain.cache_directory = path
    del _held[:]


def guard(bpy, folder, root=None):
    """Makes the file harmless; what must be written goes below folder.

    root is the project's folder where nothing but this guard confines Blender:
    there it also takes out what the file would show of the machine's other files,
    as far as Blender names them. Libraries it has opened already, and what is in
    a file of the project under a symlink is taken for where the symlink leads.
    Yields a sentence for each thing that was changed.
    """
    for scene in bpy.data.scenes:
        # Whether anything outlives its frame is the driver's to say: see history.py.
        if hasattr(scene.render, "use_persistent_data"):
            scene.render.use_persistent_data = False
    changes = [_freestyle(bpy), _file_outputs(bpy, folder), _fluids(bpy, folder, root), _names(bpy)]
    if root:
        changes.append(_strangers(bpy, root))
    for change in changes:
        for text in change:
            yield text
