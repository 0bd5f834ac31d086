# SPDX-License-Identifier: Apache-2.0
"""Renders a part of a frame, and makes the frame of a picture put together of parts.

A part is some of the frame's samples or some of its tiles. It is written as OpenEXR
with all passes of all view layers in full floats and nothing done to it: no
compositing, no denoising. Package exr puts the parts together. The result goes
through Blender once more as if Cycles had just rendered it, so that whatever comes
after rendering (compositing, Freestyle, colour management, the file's format) is done
by the same code, at the same place, as without a split.

With adaptive sampling a tile is rendered with a margin. Its "piece" says how wide that
is, as "cut": the columns on the left, the rows at the bottom, the columns on the right
and the rows at the top. Package render cuts it away, so that a piece has the pixels of
its tile and no others wherever it goes.
"""

import contextlib
import os
import time

import pictures

BATCH = 20.0  # seconds of rendering that a lost machine may cost
# A batch of samples lasts so many times as long as what is lost between two batches:
# Blender's preparation, the file, the preview.
WORTH = 25
FIRST = 4  # samples at most in the first batch, of which nothing is known

# Cycles goes on with a pixel as long as one beside it is noisy: so many pixels around a
# tile are rendered with it where sampling is adaptive. Each sees its neighbours again
# at each of Cycles' checks, but in so many pixels nothing is left of what is missing.
MARGIN = 4

# The names of object types whose strokes are drawn over the picture by its depth.
STROKES = {"GPENCIL", "GREASEPENCIL"}


class Refused(Exception):
    """Why a frame cannot be rendered in parts: a sentence and a kind of package render."""

    def __init__(self, reason, kind="error"):
        Exception.__init__(self, reason)
        self.kind = kind


def _layers(scene):
    return [layer for layer in scene.view_layers if layer.use]


def _sequencer(scene):
    editor = scene.sequence_editor
    if not scene.render.use_sequencer or editor is None:
        return False
    strips = getattr(editor, "strips_all", None) or getattr(editor, "sequences_all", ())
    return any(not s.mute and s.type != "SOUND" for s in strips)


def _samples_of_its_own(scene, layer, samples):
    own = getattr(layer, "samples", 0)
    return own and own != samples and getattr(scene.cycles, "use_layer_samples", "USE") != "IGNORE"


def refuse(scene, split):
    """Raises Refused if parts put together would not be the frame."""
    render = scene.render
    if render.engine != "CYCLES":
        raise Refused("only Cycles renders a frame in parts, and the scene's engine is %s: its effects reach across "
                      "the picture" % render.engine)
    if not _layers(scene):
        raise Refused("no view layer of the scene is rendered")
    if _sequencer(scene):
        raise Refused("the sequencer makes this scene's frames: they cannot be rendered in parts")
    if render.use_multiview and sum(v.use for v in render.views) > 1:
        raise Refused("the scene has several views: its frames cannot be rendered in parts")
    if any(ob.type in STROKES and not ob.hide_render for ob in scene.objects):
        raise Refused("the scene has grease pencil objects: its frames cannot be rendered in parts")
    if split["by"] == "tiles":
        if render.use_border:
            raise Refused("the scene renders a region of its own: split its frames by samples")
        width, height = size(render)
        if split["columns"] > width or split["rows"] > height:
            raise Refused("a frame of %d × %d pixels cannot be split into %d × %d tiles" % (
                width, height, split["columns"], split["rows"]))
        return
    for layer in _layers(scene):
        if any(getattr(layer, "use_pass_cryptomatte_" + kind, False) for kind in ("object", "material", "asset")):
            raise Refused("the view layer %r has Cryptomatte, which samples of several machines do not add up to: "
                          "split the frame by tiles" % layer.name)
        if _samples_of_its_own(scene, layer, split["units"]):
            raise Refused("the view layer %r has a number of samples of its own: split the frame by tiles" % layer.name)
    for ob in scene.objects:
        if ob.type == "LIGHT" or ob.hide_render:  # to lights the word means something else
            continue
        if getattr(ob, "is_shadow_catcher", False) or getattr(getattr(ob, "cycles", None), "is_shadow_catcher", False):
            raise Refused("%r catches shadows, which samples of several machines do not add up to: "
                          "split the frame by tiles" % ob.name)


def size(render):
    """The frame's width and height in pixels, rounded as Blender does."""
    return (int(render.resolution_x * render.resolution_percentage / 100),
            int(render.resolution_y * render.resolution_percentage / 100))


def _as_piece(image):
    """Sets the format of a piece. A change of format silently leaves half floats."""
    pictures.choose_format(image, "OPEN_EXR_MULTILAYER")
    image.color_mode = "RGBA"
    image.color_depth = "32"
    image.exr_codec = "NONE"  # noise hardly packs, and would cost more than it saves
    if hasattr(image, "use_exr_interleave"):  # Blender 5: all passes in one part
        image.use_exr_interleave = True


def _prepare(changes, scene, split):
    """Makes the scene render parts, until changes ends."""
    render, cycles = scene.render, scene.cycles
    pictures.keep(changes, render.image_settings)
    for name in ("use_exr_interleave", "color_management"):
        changes.set(render.image_settings, name, {"color_management": "FOLLOW_SCENE"}.get(name, True))
    changes.set(render, "filepath", render.filepath)
    changes.set(render, "use_file_extension", True)
    for name in ("use_compositing", "use_sequencer", "use_freestyle", "use_stamp", "use_overwrite", "use_placeholder"):
        changes.set(render, name, name == "use_overwrite")
    changes.set(render, "use_persistent_data", True)
    if render.use_border:
        changes.set(render, "use_crop_to_border", True)
    changes.set(cycles, "time_limit", 0.0)  # would end batches early, and not say so
    for layer in _layers(scene):
        if cycles.use_denoising and getattr(layer.cycles, "use_denoising", True):
            changes.set(layer.cycles, "denoising_store_passes", True)
    changes.set(cycles, "use_denoising", False)
    if split["by"] == "samples":
        _prepare_samples(changes, scene, split["units"])


def _prepare_samples(changes, scene, total):
    cycles = scene.cycles
    changes.set(cycles, "use_adaptive_sampling", False)
    for name in ("samples", "sample_offset", "use_sample_subset", "sample_subset_length"):
        if hasattr(cycles, name):
            changes.set(cycles, name, getattr(cycles, name))
    subset = hasattr(cycles, "sample_subset_length")
    if subset:
        cycles.use_sample_subset = True
        cycles.samples = total
    elif hasattr(cycles, "sampling_pattern"):
        # What a sample is must not depend on the number of samples in its batch.
        if (4, 0) <= _version():
            changes.set(cycles, "sampling_pattern", "TABULATED_SOBOL")
        elif total > 256:
            changes.set(cycles, "sampling_pattern", "SOBOL")
    if getattr(cycles, "auto_scrambling_distance", False) and not subset:
        # It is worked out from the number of samples, and so would differ.
        changes.set(cycles, "auto_scrambling_distance", False)
        changes.set(cycles, "scrambling_distance", cycles.scrambling_distance * min(1.0, 4.0 / total ** 0.5))
    for layer in _layers(scene):
        changes.set(layer, "samples", 0)
        for kind in ("diffuse", "glossy", "transmission", "subsurface"):
            parts = ("use_pass_%s_%s" % (kind, part) for part in ("direct", "indirect"))
            if any(getattr(layer, part, False) for part in parts):
                # Light is stored as divided by its colour: to add it up both are needed.
                changes.set(layer, "use_pass_%s_color" % kind, True)


def _version():
    import bpy
    return bpy.app.version


def _set_samples(cycles, start, count):
    cycles.sample_offset = start
    if hasattr(cycles, "sample_subset_length"):
        cycles.sample_subset_length = count
    else:
        cycles.samples = count


def _write(bpy, scene, path):
    """Renders the scene as it is set up into a piece at path; answers the seconds."""
    _as_piece(scene.render.image_settings)
    scene.render.filepath = path
    began = time.time()
    bpy.ops.render.render(write_still=True, scene=scene.name)
    if not os.path.isfile(path):
        raise Refused("Blender finished but wrote no image", "image")
    return time.time() - began


class Pace:
    """Says how many samples the next batch has.

    It is of a frame, and goes on from one part of it to the next: what was learnt from
    the first one's small batches is known, and there is a picture to look at.
    """

    def __init__(self, total):
        self.total = total  # of the whole frame
        self.elapsed = 0.0
        self.each = None  # seconds for a sample
        self.lost = 0.0  # seconds for a batch, whatever its length
        self.batches = 0

    def took(self, samples, seconds, tracing):
        """Notes a batch that took so many seconds, of which Cycles traced paths."""
        self.elapsed += seconds
        self.batches += 1
        tracing = min(seconds, tracing if tracing is not None else 0.9 * seconds)
        self.each = max(1e-6, tracing / samples)
        self.lost = seconds - tracing

    def next(self, left):
        """The length of the next batch, when so many samples are left."""
        if self.each is None:
            # A first preview after a twentieth of the frame, or sooner.
            return max(1, min(left, FIRST, self.total // 25))
        # Each batch as long as all before, until that is too much to lose.
        worth = WORTH * self.lost
        seconds = max(worth, min(self.elapsed, BATCH))
        # What the first batch lost may be lost once: much of it is kept for the next.
        seconds = min(seconds, BATCH if self.batches == 1 else max(BATCH, worth / 2))
        count = max(1, int(seconds / self.each))
        if left <= count * 1.25:  # a small rest is not worth a batch
            return left
        return count


def render(bpy, scene, frame, split, spans, pace, out, say, stopped):
    """Renders spans of a frame's units into pieces below out, until stopped() is true.

    Each span of samples is rendered in batches that follow each other, as long as pace
    says. Says "piece" for each batch and each tile, and "preview" for what is there of
    the span.
    """
    refuse(scene, split)
    if split["by"] == "samples" and scene.cycles.use_adaptive_sampling:
        say("note", text="adaptive sampling is off in a frame that is split by samples")
    bpy.context.scene.frame_current = frame
    scene.frame_current = frame
    scene.frame_subframe = bpy.context.scene.frame_subframe = 0.0
    with pictures.Changes() as changes:
        _prepare(changes, scene, split)
        try:
            if split["by"] == "samples":
                _samples(bpy, scene, frame, spans, pace, out, say, stopped)
            else:
                _tiles(bpy, scene, frame, split, spans, out, say, stopped, changes)
        except RuntimeError as e:
            raise Refused("frame %d: %s" % (frame, str(e).strip()))


def _samples(bpy, scene, frame, spans, pace, out, say, stopped):
    for first, end in spans:
        film = pictures.Film(_layers(scene)[0].name, max(size(scene.render)))
        at, seconds = first, 0.0
        while at < end and not stopped():
            began = time.time()
            count = pace.next(end - at)
            _set_samples(scene.cycles, at, count)
            name = "piece_%d_%d-%d.exr" % (frame, at, at + count)
            took = _write(bpy, scene, os.path.join(out, name))
            tracing = None
            try:
                with open(os.path.join(out, name), "rb") as f:
                    rows = pictures.Rows(f)
                    tracing = rows.seconds()
                    film.add(rows, count)
            except Exception as e:
                print("vizpeer: no preview: %s" % e)
                film = None
            at += count
            seconds += took
            say("piece", frame=frame, file=name, seconds=round(seconds, 3), **{"from": at - count, "to": at})
            _preview(bpy, scene, film, frame, first, at, out, say)
            pace.took(count, time.time() - began, tracing)


def _tiles(bpy, scene, frame, split, spans, out, say, stopped, changes):
    render = scene.render
    for name in ("border_min_x", "border_max_x", "border_min_y", "border_max_y"):
        changes.set(render, name, getattr(render, name))
    changes.set(render, "use_border", True)
    changes.set(render, "use_crop_to_border", True)
    margin = MARGIN if scene.cycles.use_adaptive_sampling else 0
    for first, end in spans:
        for tile in range(first, end):
            if stopped():
                return
            cut = _border(render, split, tile, margin)
            name = "piece_%d_%d.exr" % (frame, tile)
            took = _write(bpy, scene, os.path.join(out, name))
            film = pictures.Film(_layers(scene)[0].name, max(size(render)))
            try:
                with open(os.path.join(out, name), "rb") as f:
                    film.add(pictures.Rows(f, cut), 1)
            except Exception as e:
                print("vizpeer: no preview: %s" % e)
                film = None
            say("piece", frame=frame, file=name, seconds=round(took, 3), cut=cut, **{"from": tile, "to": tile + 1})
            _preview(bpy, scene, film, frame, tile, tile + 1, out, say)


def _border(render, split, tile, margin):
    """Makes Blender render a tile, with as much of a margin as the frame has there.

    Answers how wide that is on the left, at the bottom, on the right and at the top.
    """
    cut = []
    for axis, full, number, count in (("x", size(render)[0], tile % split["columns"], split["columns"]),
                                      ("y", size(render)[1], tile // split["columns"], split["rows"])):
        low, high = number * full // count, (number + 1) * full // count
        before, after = min(margin, low), min(margin, full - high)
        # A quarter of a pixel more: Blender rounds the border down.
        setattr(render, "border_min_" + axis, (low - before + 0.25) / full)
        setattr(render, "border_max_" + axis, min(1.0, (high + after + 0.25) / full))
        cut.append((before, after))
    (left, right), (bottom, top) = cut
    return [left, bottom, right, top]


def _preview(bpy, scene, film, frame, first, end, out, say):
    """Says what there is to see; that there is nothing must not end a render."""
    if film is None:
        return
    name = "preview_%d_%d-%d.jpg" % (frame, first, end)
    try:
        film.jpeg(bpy, scene, os.path.join(out, name))
    except Exception as e:
        print("vizpeer: no preview: %s" % e)
        return
    say("preview", frame=frame, file=name, **{"from": first, "to": end})


@contextlib.contextmanager
def merged(bpy, scene, split, path, out, say):
    """Within it, Cycles renders the scene by reading the picture at path.

    All that surrounds Cycles in Blender goes on as ever: a render of the scene in there
    is the frame, if the function that is given does not raise Refused after it. Other
    scenes that the compositor asks for are rendered.
    """
    import cycles

    refuse(scene, split)
    _fits(scene, path)
    engine = cycles.CyclesRender
    update, trace = engine.update, engine.render
    denoised = _denoise(bpy, scene, path, out, say)

    failed = []

    def check():
        if failed:
            raise Refused("the merged picture could not be read: %s" % failed[0], "image")

    def ours(depsgraph):
        return depsgraph.scene.original == scene

    def update_merged(self, data, depsgraph):
        if not ours(depsgraph):
            update(self, data, depsgraph)

    def render_merged(self, depsgraph):
        if not ours(depsgraph):
            trace(self, depsgraph)
            return
        name = depsgraph.view_layer.name
        result = self.begin_result(0, 0, self.resolution_x, self.resolution_y, layer=name)
        try:
            result.load_from_file(path)
            if name in denoised:
                result.layers[0].load_from_file(denoised[name])
        except Exception as e:  # Blender goes on, with a black picture
            failed.append(str(e).strip())
        self.end_result(result)

    with pictures.Changes() as changes:
        changes.set(scene.render, "use_persistent_data", False)
        changes.set(scene.cycles, "use_denoising", False)  # it is done
        # Blender looks these up in the class at each call.
        engine.update, engine.render = update_merged, render_merged
        try:
            yield check
        finally:
            engine.update, engine.render = update, trace


def _fits(scene, path):
    """Raises Refused if the picture at path is not of this scene: Blender would go on."""
    with open(path, "rb") as f:
        picture = pictures.Rows(f)
    if not scene.render.use_border and (picture.width, picture.height) != size(scene.render):
        raise Refused("the frame's parts have %d × %d pixels together, and the frame has %d × %d" % (
            (picture.width, picture.height) + size(scene.render)), "image")
    for layer in _layers(scene):
        if "%s.Combined.R" % layer.name not in picture.channels:
            raise Refused("the frame's parts lack the view layer %r" % layer.name, "image")


def _denoise(bpy, scene, path, out, say):
    """Denoises the view layers that ask for it; answers their new pictures by name."""
    wanted = [layer for layer in _layers(scene) if getattr(layer.cycles, "use_denoising", True)]
    if not scene.cycles.use_denoising or not wanted:
        return {}
    try:
        import _cycles
        able = _cycles.with_openimagedenoise
    except (ImportError, AttributeError):
        able = False
    if not able:
        say("note", text="this machine's Blender has no OpenImageDenoise: the frame is not denoised")
        return {}
    denoised = {}
    for number, layer in enumerate(wanted):
        to = os.path.join(out, "denoised_%d.exr" % number)
        try:
            denoise_layer(bpy, scene, layer.name, path, to)
            denoised[layer.name] = to
        except Exception as e:
            say("note", text="the view layer %r is not denoised: %s" % (layer.name, e))
    return denoised


def compositor(bpy, scene):
    """Gives a scene of ours an empty compositor; answers it and the node of its result."""
    if hasattr(scene, "compositing_node_group"):  # Blender 5
        tree = bpy.data.node_groups.new("vizpeer", "CompositorNodeTree")
        scene.compositing_node_group = tree
        tree.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
        return tree, tree.nodes.new("NodeGroupOutput")
    scene.use_nodes = True
    scene.node_tree.nodes.clear()
    return scene.node_tree, scene.node_tree.nodes.new("CompositorNodeComposite")


def denoise_layer(bpy, scene, layer, path, to):
    """Runs the compositor's Denoise node over one layer of the picture at path."""
    image = bpy.data.images.load(path, check_existing=False)
    aside = bpy.data.scenes.new("vizpeer denoise")
    try:
        render = aside.render
        render.resolution_x, render.resolution_y = size(scene.render)
        render.resolution_percentage = 100
        render.use_compositing, render.use_sequencer = True, False
        pictures.choose_format(render.image_settings, "OPEN_EXR")
        render.image_settings.color_mode, render.image_settings.color_depth = "RGBA", "32"
        render.filepath = to
        tree, output = compositor(bpy, aside)
        source, denoise = tree.nodes.new("CompositorNodeImage"), tree.nodes.new("CompositorNodeDenoise")
        source.image = image
        if len(scene.view_layers) > 1:
            source.layer = layer
        tree.links.new(source.outputs.get("Combined") or source.outputs["Image"], denoise.inputs["Image"])
        for name in ("Normal", "Albedo"):
            tree.links.new(source.outputs["Denoising " + name], denoise.inputs[name])
        tree.links.new(denoise.outputs[0], output.inputs[0])
        bpy.ops.render.render(write_still=True, scene=aside.name)
        if not os.path.isfile(to):
            raise RuntimeError("Blender wrote no image")
    finally:
        bpy.data.scenes.remove(aside)
        bpy.data.images.remove(image)
