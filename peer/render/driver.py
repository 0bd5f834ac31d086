# SPDX-License-Identifier: Apache-2.0
"""Renders the frames of one attempt inside Blender.

    blender -b --factory-startup -Y --python-exit-code 3 FILE -P driver.py -- ARGS.json

It changes of the .blend only what the arguments and the machine's safety ask
for, so that the images have the pixels of a plain "blender -b FILE -a". It says
what it does in lines of the form "VIZ {json}" on stdout; everything else there
is Blender's own. It runs on the Python of Blender 2.80 and later.
"""

import json
import os
import re
import sys
import time
import traceback

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import bpy  # noqa: E402

import devices  # noqa: E402
import guard  # noqa: E402
import remap  # noqa: E402

MOVIES = {"FFMPEG", "AVI_JPEG", "AVI_RAW", "AVI_CODEC", "FRAMESERVER", "XVID", "H264", "THEORA"}
MOVIE_SUFFIX = re.compile(r"\.(avi|mp4|m4v|mpe?g|mkv|mov|ogv|ogg|webm|flv|dv|vob)$", re.IGNORECASE)

# Eevee's two names: 4.2 to 4.5 call it NEXT, older and newer ones do not.
TWINS = {"BLENDER_EEVEE": "BLENDER_EEVEE_NEXT", "BLENDER_EEVEE_NEXT": "BLENDER_EEVEE"}


class Fail(Exception):
    """Why the attempt cannot go on: a kind of package render and a sentence."""

    def __init__(self, kind, reason):
        Exception.__init__(self, reason)
        self.kind = kind


def say(ev, **rest):
    """Prints one event on a line of its own, whatever Blender was printing."""
    sys.stdout.write("\nVIZ " + json.dumps(dict(rest, ev=ev)) + "\n")
    sys.stdout.flush()


def note(text):
    say("note", text=text)


def choose_scene(name):
    """The scene to render, made the active one."""
    if not name:
        return bpy.context.scene
    scene = bpy.data.scenes.get(name)
    if scene is None:
        known = ", ".join(s.name for s in bpy.data.scenes)
        raise Fail("error", "the file has no scene %r, only: %s" % (name, known))
    if bpy.context.window is not None:
        bpy.context.window.scene = scene
    return scene


def set_engine(render, engine):
    for name in (engine, TWINS.get(engine)):
        if name:
            try:
                render.engine = name
                return
            except TypeError:
                continue
    raise Fail("machine", "this Blender has no engine %s" % engine)


def set_samples(scene, samples):
    """Makes samples the number of samples, for the engines that count them."""
    cycles = getattr(scene, "cycles", None)
    if cycles is not None:
        if getattr(cycles, "progressive", "PATH") != "PATH":  # up to 2.93
            cycles.progressive = "PATH"
        if getattr(cycles, "use_square_samples", False):
            cycles.use_square_samples = False
        cycles.samples = samples
        for layer in scene.view_layers:
            layer.samples = 0  # no layer asks for a number of its own
    eevee = getattr(scene, "eevee", None)
    if eevee is not None:
        eevee.taa_render_samples = samples


def set_format(render, wanted):
    image = render.image_settings
    if image.file_format == wanted:
        return
    media = {"OPEN_EXR_MULTILAYER": "MULTI_LAYER_IMAGE"}.get(wanted, "IMAGE")
    if getattr(image, "media_type", media) != media:  # Blender 5 asks for it first
        image.media_type = media
    try:
        image.file_format = wanted
    except TypeError:
        raise Fail("error", "this Blender does not write the format %s" % wanted)
    if wanted.startswith("OPEN_EXR"):
        image.color_depth = "32"  # a change of format silently leaves half floats
    render.use_file_extension = True


def movie_to_frames(render):
    """A movie cannot be rendered in parts: its frames can."""
    if render.image_settings.file_format not in MOVIES and not getattr(render, "is_movie_format", False):
        return
    note("the scene's output is a movie (%s): frames are written as PNG" % render.image_settings.file_format)
    set_format(render, "PNG")
    render.filepath = MOVIE_SUFFIX.sub("_", render.filepath)


def refuse_views(render):
    if not render.use_multiview or sum(v.use for v in render.views) < 2:
        return
    one = render.image_settings.views_format == "STEREO_3D"
    one = one or render.image_settings.file_format.startswith("OPEN_EXR") and (
        render.image_settings.views_format == "MULTIVIEW")
    if not one:
        raise Fail("error", "the scene writes each view to a file of its own, and a frame is one file here: "
                            "set the views format to Stereo 3D, or to Multi-View with OpenEXR")


def frame_name(scene, frame):
    """The file name that Blender gives the frame in the scene's own folder."""
    path = scene.render.frame_path(frame=frame).replace("\\", "/")
    name = re.sub(r"[\x00-\x1f]", "_", path.rsplit("/", 1)[-1])
    return name if name not in ("", ".", "..") else "%04d%s" % (frame, scene.render.file_extension)


def render_frame(scene, frame, folder):
    """Renders one frame below folder and answers the file's name there."""
    stem = "frame_%d" % frame
    # Setting the number alone leaves the evaluation to the render itself, as in
    # an animation: frame_set would evaluate everything twice.
    bpy.context.scene.frame_current = frame
    scene.frame_current = frame
    scene.frame_subframe = bpy.context.scene.frame_subframe = 0.0
    scene.render.filepath = os.path.join(folder, stem)
    try:
        bpy.ops.render.render(write_still=True, scene=scene.name)
    except RuntimeError as e:
        raise Fail("error", "frame %d: %s" % (frame, str(e).strip()))
    for name in sorted(os.listdir(folder)):
        if name == stem or name.startswith(stem + "."):
            return name
    raise Fail("image", "frame %d: Blender finished but wrote no image" % frame)


def main():
    with open(sys.argv[sys.argv.index("--") + 1], encoding="utf-8") as f:
        args = json.load(f)
    say("loaded", version=bpy.app.version_string)
    guard.release()
    if args.get("remap"):
        for text in remap.remap(bpy, args["remap"]["root"], args["remap"]["origin"]):
            note(text)
    scene = choose_scene(args.get("scene"))
    for text in guard.guard(bpy, args["scratch"], args.get("root")):
        note(text)

    render = scene.render
    if args.get("engine"):
        set_engine(render, args["engine"])
    if args.get("samples"):
        set_samples(scene, args["samples"])
    if args.get("resolution_percent"):
        render.resolution_percentage = args["resolution_percent"]
    if args.get("format"):
        set_format(render, args["format"])
    movie_to_frames(render)
    refuse_views(render)
    if render.engine == "CYCLES":
        try:
            say("device", name=devices.choose(bpy, scene, args.get("backends"), args.get("gpu", False), args.get("ids")))
        except devices.Unavailable as e:
            raise Fail("machine", str(e))
    # The results are named before the scene's own path is lost.
    names = {frame: frame_name(scene, frame) for frame in args["frames"]}

    for frame in args["frames"]:
        say("start", frame=frame)
        began = time.time()
        file = render_frame(scene, frame, args["out"])
        say("frame", frame=frame, file=file, name=names[frame], seconds=round(time.time() - began, 3))


try:
    main()
except Fail as e:
    say("fail", kind=e.kind, reason=str(e))
    sys.exit(3)
except Exception as e:
    traceback.print_exc()
    say("fail", kind="memory" if isinstance(e, MemoryError) else "error", reason="%s: %s" % (type(e).__name__, e))
    sys.exit(3)
