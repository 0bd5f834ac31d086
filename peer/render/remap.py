# SPDX-License-Identifier: Apache-2.0
"""Points absolute paths of the open .blend at the project's own files.

Needed where the project could not be put at its original paths: without a
sandbox, or for files that come from another system. Relative paths hold by
themselves, because the project keeps the shape of the original tree.
"""

import os

from collect import project_path
from guard import node_trees


class _Tree:
    """A project's files, found by the paths they had where they come from."""

    def __init__(self, bpy, root, system):
        self.bpy = bpy
        self.root = os.path.dirname(os.path.normpath(root))  # project paths begin with "files/"
        self.system = system
        self.folded = None

    def _fold(self, path):
        """Finds path whatever its case, as its own system would."""
        if self.folded is None:
            self.folded = {}
            for top, folders, names in os.walk(self.root):
                for name in folders + names:
                    full = os.path.join(top, name)
                    self.folded[full.lower()] = full
        full = self.folded.get(path.lower())
        if full is None:
            folder = self.folded.get(os.path.dirname(path).lower())
            full = folder and os.path.join(folder, os.path.basename(path))
        return full

    def place(self, path):
        """Where the project has the file of an absolute path; None where it has not."""
        if not path or path.startswith(("//", "<")):
            return None
        new = os.path.join(self.root, *project_path(path, self.system).split("/"))
        if os.path.exists(new):
            return new
        # Where the paths come from, another case may mean the same file.
        folded = self._fold(new) if self.system in ("windows", "darwin") else None
        if folded is not None:
            return folded
        # A sequence or a set of tiles has no file of just that name.
        return new if os.path.isdir(os.path.dirname(new)) else None


def _libraries(bpy, tree):
    """Loads the libraries from the project; those they link follow."""
    tried = set()
    again = True
    while again:
        again = False
        for library in bpy.data.libraries:
            new = tree.place(library.filepath)
            if new is None or os.path.normpath(library.filepath) == new or (library.name, new) in tried:
                continue
            tried.add((library.name, new))
            library.filepath = new
            try:
                library.reload()
            except RuntimeError as e:
                yield "the library %s could not be loaded: %s" % (os.path.basename(new), str(e).strip())
            again = True  # a reload replaces what the loop walks over
            break


def _owners(bpy):
    """Everything that holds a path of its own, with the property's name."""
    for name in ("images", "fonts", "sounds", "movieclips", "volumes", "cache_files"):
        for block in getattr(bpy.data, name, ()):
            if not getattr(block, "packed_file", None):
                yield block, "filepath"
    for node_tree in node_trees(bpy):
        for node in node_tree.nodes:
            yield node, "filepath"  # IES lights and OSL scripts
    for ob in bpy.data.objects:
        for modifier in ob.modifiers:
            for name in ("filepath", "simulation_bake_directory", "bake_directory"):
                yield modifier, name
            if modifier.type == "FLUID" and modifier.fluid_type == "DOMAIN":
                yield modifier.domain_settings, "cache_directory"
            if getattr(modifier, "point_cache", None) is not None:
                yield modifier.point_cache, "filepath"
        for system in ob.particle_systems:
            yield system.point_cache, "filepath"
    for scene in bpy.data.scenes:
        editor = scene.sequence_editor
        for strip in (getattr(editor, "strips_all", None) or editor.sequences_all) if editor else ():
            if strip.type in ("IMAGE", "MOVIE"):
                yield strip, "directory" if strip.type == "IMAGE" else "filepath"


def remap(bpy, root, system):
    """Points everything at the project below root ("…/files").

    system is the GOOS where the paths come from. Yields a sentence for each
    thing that did not work.
    """
    tree = _Tree(bpy, root, system)
    for text in _libraries(bpy, tree):
        yield text
    for owner, name in list(_owners(bpy)):
        path = getattr(owner, name, None)
        new = tree.place(path) if isinstance(path, str) else None
        if new is None:
            continue
        setattr(owner, name, new)
        if isinstance(owner, bpy.types.Image):
            owner.reload()
