# SPDX-License-Identifier: Apache-2.0
"""Lists everything that the open .blend needs to render somewhere else.

collect(bpy) only reads: it changes neither the session nor any file. It needs
the standard library and bpy, runs on the Python of Blender 2.80 and later, and
must be called from Blender's main thread. As a script,

    blender -b --factory-startup -Y FILE -P collect.py -- OUT.json

writes the answer of collect(bpy) to OUT.json.

The answer is {"manifest": {...}, "files": [{"source", "path"}, ...]}. The
manifest is the project's vizpeer.json as it must be written; "source" is a file
of this machine and "path" its place in the project. The .blend itself is among
the files: a caller that saved a copy of it replaces its source, not its path.
"""

import json
import os
import re
import sys

# Never shipped, whatever refers to them: they are the machine, not the project.
_MACHINE = ("/proc/", "/sys/", "/dev/", "/run/")

_TILE_TOKENS = ("<UDIM>", "<UVTILE>")


def origin():
    """The name that Go has for this operating system."""
    if sys.platform.startswith("win"):
        return "windows"
    return re.sub(r"\d+$", "", sys.platform)


def project_path(path, system=None):
    """The place of an absolute path of this system inside a project.

    "/home/a/x.blend" is "files/home/a/x.blend", "C:\\a" is "files/C/a" and
    "\\\\server\\share\\x" is "files/UNC/server/share/x".
    """
    if (system or origin()) != "windows":
        parts = path.split("/")
    else:
        path = path.replace("/", "\\")
        for prefix, instead in (("\\\\?\\UNC\\", "\\\\"), ("\\\\?\\", "")):
            if path.upper().startswith(prefix):
                path = instead + path[len(prefix):]
                break
        if path.startswith("\\\\"):
            path = "UNC" + path[1:]
        elif path[1:2] == ":":
            path = path[0].upper() + "\\" + path[2:]
        parts = path.split("\\")
    clean = []
    for part in parts:
        if part == "..":
            clean = clean[:-1]
        elif part not in ("", "."):
            clean.append(part)
    return "/".join(["files"] + clean)


def _siblings(path, pattern):
    """The files next to path whose whole name matches pattern, in order."""
    folder = os.path.dirname(path)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    match = re.compile(pattern).match
    return [os.path.join(folder, n) for n in names if match(n)]


def _sequence(path):
    """The files of the image sequence that path is one frame of."""
    name = os.path.basename(path)
    stem, ext = os.path.splitext(name)
    digits = None
    for digits in re.finditer(r"\d+", stem):
        pass  # Blender counts in the last number of the name
    if digits is None:
        return [path] if os.path.isfile(path) else []
    head, tail = stem[:digits.start()], stem[digits.end():] + ext
    return _siblings(path, re.escape(head) + r"\d+" + re.escape(tail) + r"\Z")


def _tiles(path):
    """The UDIM tiles that path, with or without a token, stands for."""
    name = os.path.basename(path)
    for token, digits in zip(_TILE_TOKENS, (r"\d{4}", r"u\d+_v\d+")):
        if token in name:
            head, tail = name.split(token, 1)
            return _siblings(path, re.escape(head) + digits + re.escape(tail) + r"\Z")
    numbers = list(re.finditer(r"1\d{3}", name))  # before 2.90 the name of the first tile stood there
    if not numbers:
        return [path] if os.path.isfile(path) else []
    head, tail = name[:numbers[-1].start()], name[numbers[-1].end():]
    return _siblings(path, re.escape(head) + r"1\d{3}" + re.escape(tail) + r"\Z")


def _tree(folder):
    """Every file below folder, in order."""
    found = []
    for top, folders, names in os.walk(folder):
        folders.sort()
        found.extend(os.path.join(top, n) for n in sorted(names))
    return found


class _Collector:
    def __init__(self, bpy):
        self.bpy = bpy
        self.blend = os.path.abspath(bpy.data.filepath)
        self.absolute = False
        self.files = {}    # source, in the order found
        self.missing = {}  # what was asked for
        self.seen = set()  # paths that need no second look

    def resolve(self, path, library=None):
        """The absolute path that Blender means by path; notes absolute references."""
        if not path.startswith("//"):
            self.absolute = True
        return os.path.normpath(self.bpy.path.abspath(path, library=library))

    def take(self, path):
        """Adds one file; False where it is not there."""
        if path.startswith(_MACHINE):
            return False
        try:
            path.encode("utf-8")
        except UnicodeEncodeError:  # a project's names are UTF-8
            return False
        if not os.path.isfile(path):
            return False
        self.files[path] = True
        return True

    def need(self, path, found=None):
        """Adds the files that path stands for, or lists it as missing."""
        self.seen.add(path)
        taken = [self.take(f) for f in ([path] if found is None else found)]
        if not any(taken):
            self.missing[path.encode("utf-8", "replace").decode("utf-8")] = True

    def folder(self, path):
        """Adds a cache folder; one that is not there is no loss: Blender simulates."""
        self.seen.add(path)
        # A cache "folder" above the .blend would be the artist's whole disk.
        if os.path.isdir(path) and not (self.blend + os.sep).startswith(os.path.join(path, "")):
            for f in _tree(path):
                self.take(f)

    def datablocks(self):
        """What blend_paths names only in part: sequences, tiles, fonts, sounds."""
        data = self.bpy.data
        for image in data.images:
            if not image.filepath or image.packed_file or getattr(image, "packed_files", None):
                continue
            if image.source not in {"FILE", "SEQUENCE", "MOVIE", "TILED"}:
                continue
            path = self.resolve(image.filepath, image.library)
            if image.source == "SEQUENCE":
                self.need(path, _sequence(path))
            elif image.source == "TILED":
                self.need(path, _tiles(path))
            else:
                self.need(path)
        for clip in data.movieclips:
            path = self.resolve(clip.filepath, clip.library)
            self.need(path, _sequence(path) if clip.source == "SEQUENCE" else None)
        for name in ("volumes", "cache_files"):
            for block in getattr(data, name, ()):
                if not block.filepath or getattr(block, "packed_file", None):
                    continue
                path = self.resolve(block.filepath, block.library)
                self.need(path, _sequence(path) if block.is_sequence else None)
        for name in ("fonts", "sounds"):
            for block in getattr(data, name):
                if block.filepath and not block.filepath.startswith("<") and not block.packed_file:
                    self.need(self.resolve(block.filepath, block.library))
        for text in data.texts:  # their words are in the .blend
            if text.filepath:
                self.seen.add(os.path.normpath(self.bpy.path.abspath(text.filepath, library=text.library)))

    def caches(self):
        """Folders of simulations, which no list of Blender's has."""
        for ob in self.bpy.data.objects:
            for modifier in ob.modifiers:
                where = []
                if modifier.type == "FLUID" and modifier.fluid_type == "DOMAIN":
                    where.append(modifier.domain_settings.cache_directory)
                elif modifier.type == "OCEAN" and modifier.is_cached:
                    where.append(modifier.filepath)
                elif modifier.type == "NODES":
                    where.append(getattr(modifier, "simulation_bake_directory", ""))
                    where.append(getattr(modifier, "bake_directory", ""))
                    where.extend(getattr(b, "directory", "") for b in getattr(modifier, "bakes", ()))
                cache = getattr(modifier, "point_cache", None)
                if cache is not None and cache.use_external:
                    where.append(cache.filepath)
                for path in where:
                    if path:
                        self.folder(self.resolve(path, ob.library))
            for system in ob.particle_systems:
                if system.point_cache.use_external and system.point_cache.filepath:
                    self.folder(self.resolve(system.point_cache.filepath, ob.library))
        blends = [self.blend]
        blends += [os.path.normpath(self.bpy.path.abspath(l.filepath)) for l in self.bpy.data.libraries]
        for blend in blends:
            folder, name = os.path.split(blend)
            self.folder(os.path.join(folder, "blendcache_" + os.path.splitext(name)[0]))

    def paths(self):
        """Everything else that Blender itself lists."""
        utils = self.bpy.utils
        raw = utils.blend_paths(absolute=False, packed=False, local=False)
        full = utils.blend_paths(absolute=True, packed=False, local=False)
        for short, path in zip(raw, full):
            if not short or short.startswith("<"):
                continue
            path = os.path.normpath(path)
            if path in self.seen:
                continue
            if not short.startswith("//"):
                self.absolute = True
            if os.path.isdir(path):
                self.folder(path)
            elif any(token in path for token in _TILE_TOKENS):
                self.need(path, _tiles(path))
            else:
                self.need(path)


def _nodes(tree):
    """The nodes of a tree that take part, those inside its groups among them."""
    for node in tree.nodes if tree is not None else ():
        if not node.mute:
            yield node
            if node.type == "GROUP":
                yield from _nodes(node.node_tree)


def _compositor(scene):
    """The nodes that make the picture of scene; None where they have no part in it."""
    if not scene.render.use_compositing or not getattr(scene, "use_nodes", True):
        return None
    tree = getattr(scene, "compositing_node_group", None) or getattr(scene, "node_tree", None)  # 5.0 and older
    return None if tree is None else list(_nodes(tree))


def _edited(scene):
    """Whether the sequencer, where it is on, makes the picture of scene: of strips other than sounds."""
    editor = scene.sequence_editor
    if editor is None:
        return False
    return any(s.type != "SOUND" for s in (editor.strips if hasattr(editor, "strips") else editor.sequences))  # since 4.4


def _denoises(bpy, scene):
    """Whether Cycles needs OpenImageDenoise for the scene's own layers."""
    cycles = getattr(scene, "cycles", None)
    if not getattr(cycles, "use_denoising", False):
        return False
    if bpy.app.version < (3, 0) and cycles.denoiser == "NLM":  # Cycles' own
        return False
    # Whichever denoiser was chosen: this is the one that every machine falls back on.
    return any(layer.use and layer.cycles.use_denoising for layer in scene.view_layers)


def _denoising(bpy, scene, sequencer, seen=()):
    """What of the rendering of scene needs OpenImageDenoise: whether its own layers
    do if Cycles renders them, and whether anything else does.

    Without it Cycles fails on the scene's own layers and leaves those of other
    scenes black, and the compositor passes over its Denoise nodes without a word.
    """
    seen += (scene,)

    def needs(other, sequencer):
        own, rest = _denoising(bpy, other, sequencer, seen)
        return rest or own and other.render.engine == "CYCLES"

    if sequencer and _edited(scene):
        editor = scene.sequence_editor
        strips = editor.strips_all if hasattr(editor, "strips_all") else editor.sequences_all
        shown = [s for s in strips if s.type == "SCENE" and not s.mute and s.scene is not None and s.scene not in seen]
        return False, any(needs(s.scene, s.scene_input == "SEQUENCER") for s in shown)
    own = _denoises(bpy, scene)
    nodes = _compositor(scene)
    if nodes is None:
        return own, False
    scenes = [n.scene or scene for n in nodes if n.type == "R_LAYERS"]
    others = any(s.render.engine == "CYCLES" and _denoises(bpy, s) for s in scenes if s != scene)
    return own and scene in scenes, others or any(n.type == "DENOISE" for n in nodes)


# What the compositor calls the passes that are no mean of samples.
_DATA = {"Depth", "Z", "Position", "IndexOB", "IndexMA", "Object Index", "Material Index"}


def _samples(scene, layers):
    """How many samples Cycles gives each pixel at most; 0 where that is no one number."""
    cycles = scene.cycles
    count = cycles.samples
    if getattr(cycles, "progressive", "PATH") != "PATH":  # up to 2.93
        count = cycles.aa_samples
    if getattr(cycles, "use_square_samples", False):
        count *= count
    found = {count}
    if getattr(cycles, "use_layer_samples", "IGNORE") != "IGNORE":
        own = [layer.samples for layer in layers]
        bounded = cycles.use_layer_samples == "BOUNDED"
        found = {min(count, n) if n and bounded else n or count for n in own}
    return found.pop() if len(found) == 1 else 0


def _picture(bpy, scene):
    """What decides how a frame of scene may be divided among machines; None where
    Cycles is not there to say."""
    cycles = getattr(scene, "cycles", None)
    if cycles is None:
        return None
    render, image = scene.render, scene.render.image_settings
    layers = [layer for layer in scene.view_layers if layer.use]
    if render.use_single_layer and bpy.context.view_layer is not None:
        layers = [bpy.context.view_layer]

    def has(owners, *passes):
        return any(getattr(owner, "use_pass_" + p, False) for owner in owners for p in passes)

    matte = has(layers, "cryptomatte_object", "cryptomatte_material", "cryptomatte_asset")
    if bpy.app.version < (2, 91):
        matte = has([layer.cycles for layer in layers], "crypto_object", "crypto_material", "crypto_asset")
    sources = [n for n in _compositor(scene) or () if n.type == "R_LAYERS"]
    read = any(out.is_linked and out.name in _DATA for n in sources for out in n.outputs)
    written = image.file_format == "OPEN_EXR" and getattr(image, "use_zbuffer", False)
    new = bpy.app.version >= (3, 0)
    # Of a light it means that it takes part in the shadows.
    catchers = any((ob if new else ob.cycles).is_shadow_catcher for ob in bpy.data.objects if ob.type != "LIGHT")
    return {
        "width": render.resolution_x,
        "height": render.resolution_y,
        "percent": render.resolution_percentage,
        "samples": _samples(scene, layers),
        "adaptive": getattr(cycles, "use_adaptive_sampling", False),
        "time_limit": getattr(cycles, "time_limit", 0.0),
        "animated_seed": cycles.use_animated_seed,
        "cryptomatte": matte,
        "data_passes": has(layers, "z", "position", "object_index", "material_index"),
        "data_used": read or written,
        "shadow_catcher": catchers,
        "border": render.use_border,
        "multiview": render.use_multiview,
        "freestyle": render.use_freestyle and any(layer.use_freestyle for layer in layers),
        "assembled": render.use_sequencer and _edited(scene) or any(n.scene not in (None, scene) for n in sources),
    }


def collect(bpy):
    """Answers the manifest and the files of the .blend that is open.

    Raises ValueError where the .blend was never saved: it has no place that
    relative paths could start from.
    """
    if not bpy.data.filepath:
        raise ValueError("the .blend was never saved: save it first")
    c = _Collector(bpy)
    c.files[c.blend] = True
    c.datablocks()
    c.caches()
    c.paths()
    scene = bpy.context.scene
    denoises, always = _denoising(bpy, scene, scene.render.use_sequencer)
    picture = _picture(bpy, scene)
    return {
        "manifest": {
            "version": 1,
            "blend": project_path(c.blend),
            "origin": origin(),
            "absolute": c.absolute,
            "missing": sorted(c.missing),
            "scene": {
                "name": scene.name,
                "frame_start": scene.frame_start,
                "frame_end": scene.frame_end,
                "frame_step": scene.frame_step,
                "frame_current": scene.frame_current,
                "engine": scene.render.engine,
                "filepath": scene.render.filepath,
                "format": scene.render.image_settings.file_format,
                "denoises": denoises,
                "denoises_always": always,
                "picture": picture,
            },
            "complete": True,
        },
        "files": [{"source": f, "path": project_path(f)} for f in c.files],
    }


def _main():
    import bpy

    out = sys.argv[sys.argv.index("--") + 1]
    with open(out, "w", encoding="utf-8") as f:
        json.dump(collect(bpy), f)


if __name__ == "__main__":
    _main()
