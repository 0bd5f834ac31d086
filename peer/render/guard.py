# SPDX-License-Identifier: Apache-2.0
"""Takes out of the open .blend what runs code or writes files during a render.

Blender's -Y already stops registered texts, handlers and unsafe drivers. It
does not stop Freestyle's script modules, nor nodes that write files anywhere.
"""

import os
import posixpath
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


def _local(path):
    """The path of a file as it stands in a folder of any machine: none that climbs, hides
    or has a name that only some systems take."""
    parts = path.replace("\\", "/").split("/")
    names = []
    for at, part in enumerate(parts):
        name = re.sub(r"[\x00-\x1f\x7f-\x9f:*?\"<>|]", "_", part)
        name = re.sub(r"(?i)^(con|prn|aux|nul|conin\$|conout\$|com[0-9]|lpt[0-9])(?= *(\.|$))", r"_\1", name)
        if name.strip(" ."):
            # A file's name goes on with the frame's number.
            names.append(re.sub(r"^\.|[. ]$" if at < len(parts) - 1 else r"^\.", "_", name))
    return "/".join(names), not parts[-1].strip(" .")


def _normal(bpy, path):
    """A folder's path as text, for comparisons: the system may be another than its own."""
    if path.startswith("//"):
        path = bpy.path.abspath(path)
    return posixpath.normpath(path.replace("\\", "/"))


DEEPEST = 6  # folders that a node may write below the output folder, and a slot below that


class _Places:
    """Gives the folders that nodes write to a place below the scene's output folder: the
    same one where they lie in it, else one with their name."""

    def __init__(self, bpy, scene):
        self.bpy = bpy
        self.home = _normal(bpy, re.sub(r"[^/\\]*$", "", scene.render.filepath))
        self.taken = {"": self.home}

    def inside(self, path):
        if not path:
            return True
        full = _normal(self.bpy, path)
        # In the root folder lies everything: that says nothing.
        return full == self.home or self.home != "/" and full.startswith(self.home + "/") and (
            full.count("/") - self.home.count("/") <= DEEPEST)

    def of(self, path):
        full = _normal(self.bpy, path) if path else self.home
        name = full[len(self.home):] if self.inside(path) else full.rsplit("/", 1)[-1]
        name = _local(name + "/")[0]
        place, number = name, 1
        while self.taken.setdefault(place.lower(), full) != full:
            number += 1
            place = "%s_%d" % (name, number) if name else "_%d" % number
        return place


def _file_outputs(bpy, scene, folder):
    """Makes File Output nodes write below folder, at the places where what they write
    belongs below the scene's output folder."""
    places = _Places(bpy, scene)
    nodes = []
    for tree in node_trees(bpy):
        for node in tree.nodes:
            if node.type != "OUTPUT_FILE":
                continue
            path, name = getattr(node, "base_path", None), None
            if path is None:  # Blender 5
                path, name = node.directory, node.file_name
            elif node.format.file_format == "OPEN_EXR_MULTILAYER":
                # One file for all slots, and the path is its own.
                cut = max(path.rfind("/"), path.rfind("\\")) + 1
                path, name = path[:cut], path[cut:]
            nodes.append((node, path, name))
    # A place of its own goes before one that was only chosen.
    for node, path, name in sorted(nodes, key=lambda n: not places.inside(n[1])):
        here = os.path.join(folder, *places.of(path).split("/") + [""])
        name = name and _local(name)[0].replace("/", "_")
        if hasattr(node, "base_path"):
            node.base_path = os.path.join(here, name or "")
            for slot in node.file_slots:  # a slot may climb out of the base path
                slot.path = _slot(slot.path)
        else:
            node.directory = here
            node.file_name = name
            for item in node.file_output_items:
                item.name = _slot(item.name)


def _slot(path):
    local, is_folder = _local(path)
    local = "/".join(local.split("/")[-DEEPEST - (not is_folder):])
    return local + "/" if local and is_folder else local


def _suffixes(bpy):
    """What a view appends to the name of its file must not lead elsewhere."""
    for scene in bpy.data.scenes:
        for view in scene.render.views:
            safe = re.sub(r"[\x00-\x1f\x7f-\x9f/\\:*?\"<>|]", "_", view.file_suffix)
            if safe != view.file_suffix:
                view.file_suffix = safe


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


def guard(bpy, folder, root, scene, outputs):
    """Makes the file harmless; what must be written goes below folder, and what File
    Output nodes write when scene is rendered below outputs.

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
    _file_outputs(bpy, scene, outputs)
    _suffixes(bpy)
    changes = [_freestyle(bpy), _fluids(bpy, folder, root), _names(bpy)]
    if root:
        changes.append(_strangers(bpy, root))
    for change in changes:
        for text in change:
            yield text
