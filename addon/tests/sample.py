# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a project that refers to files in every way that the tests look at."""

import os

import bpy


class Sample:
    """shot.blend with relative and absolute textures, a linked library with a
    texture of its own, an image sequence, UDIM tiles and a missing texture."""

    def __init__(self, root):
        self.blend = os.path.join(root, "work", "Übung shot.blend")
        self.missing = os.path.join(root, "work", "tex", "gone.png")
        self.relative = self._picture(root, "work", "tex", "wood.png")
        self.absolute = self._picture(root, "elsewhere", "sky.png")
        self.library = os.path.join(root, "lib", "kit.blend")
        self.inner = self._picture(root, "lib", "maps", "kit.png")
        self.sequence = [self._picture(root, "work", "seq", "fire_%04d.png" % n) for n in (1, 2, 3)]
        self.tiles = [self._picture(root, "work", "udim", "skin.%d.png" % n) for n in (1001, 1002)]
        self._picture(root, "work", "tex", "not_used.png")
        self._kit()
        self._shot()

    def files(self):
        """Everything that must be sent."""
        return [self.blend, self.relative, self.absolute, self.library, self.inner] + self.sequence + self.tiles

    def _picture(self, *path):
        path = os.path.join(*path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        image = bpy.data.images.new("made", 4, 4)
        image.pixels = [len(path) % 10 / 10, hash(path) % 100 / 100, 0.5, 1.0] * 16
        image.filepath_raw, image.file_format = path, "PNG"
        image.save()
        bpy.data.images.remove(image)
        return path

    def _kit(self):
        bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
        os.makedirs(os.path.dirname(self.library), exist_ok=True)
        bpy.ops.wm.save_as_mainfile(filepath=self.library)
        bpy.ops.mesh.primitive_cube_add()
        bpy.context.object.name = "Kit"
        self._textured(bpy.context.object, "//maps/kit.png")
        bpy.ops.wm.save_mainfile()

    def _shot(self):
        bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
        bpy.ops.wm.save_as_mainfile(filepath=self.blend)
        scene = bpy.context.scene
        with bpy.data.libraries.load(self.library, link=True, relative=True) as (there, here):
            here.objects = ["Kit"]
        scene.collection.objects.link(here.objects[0])
        bpy.ops.mesh.primitive_plane_add()
        plane = bpy.context.object
        self._textured(plane, "//tex/wood.png")
        self._textured(plane, self.absolute)
        self._textured(plane, "//tex/gone.png")
        self._textured(plane, "//seq/fire_0001.png").source = "SEQUENCE"
        tiled = self._textured(plane, "//udim/skin.1001.png")
        tiled.source = "TILED"
        tiled.filepath = "//udim/skin.<UDIM>.png"
        bpy.ops.object.camera_add(location=(0, 0, 5))
        scene.camera = bpy.context.object
        scene.frame_start, scene.frame_end, scene.frame_step, scene.frame_current = 1, 8, 1, 3
        bpy.ops.wm.save_mainfile()

    def _textured(self, ob, path):
        material = bpy.data.materials.new("m")
        material.use_nodes = True
        node = material.node_tree.nodes.new("ShaderNodeTexImage")
        image = bpy.data.images.new(os.path.basename(path), 4, 4)
        image.source, image.filepath = "FILE", path
        node.image = image
        ob.data.materials.append(material)
        return image
