# SPDX-License-Identifier: Apache-2.0
"""Renders frames inside Blender, for one attempt after another.

    blender -b --factory-startup -Y --python-exit-code 3 FILE -P driver.py -- ARGS.json

It changes of the .blend only what the arguments and the machine's safety ask
for, so that the images have the pixels of a plain "blender -b FILE -a". Then it
answers requests, which are lines of JSON on stdin:

    {"do": "frames", "id": ID, "frames": [1, 2, …]}               renders them
    {"do": "part", "id": ID, "frames": [1], "part": {…}}          renders parts of one: see parts.py
    {"do": "merge", "id": ID, "frames": [1], "merge": {…}}        makes one of its parts
    {"do": "movie", "id": ID, "frames": [N], "movie": {…}}        makes N, a movie of finished frames: see movie.py
    {"do": "stop", "id": ID}            ends that request with its current frame, samples or tile

It says what it does in lines of the form "VIZ {json}" on stdout, each with the ID
of its request; everything else there is Blender's own. "end" ends an answer. What
goes wrong ends Blender. It runs on the Python of Blender 2.80 and later.
"""

import json
import os
import queue
import re
import shutil
import sys
import threading
import time
import traceback

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import bpy  # noqa: E402

import devices  # noqa: E402
import guard  # noqa: E402
import history  # noqa: E402
import movie  # noqa: E402
import parts  # noqa: E402
import pictures  # noqa: E402
import remap  # noqa: E402

MOVIES = {"FFMPEG", "AVI_JPEG", "AVI_RAW", "AVI_CODEC", "FRAMESERVER", "XVID", "H264", "THEORA"}
MOVIE_SUFFIX = re.compile(r"\.(avi|mp4|m4v|mpe?g|mkv|mov|ogv|ogg|webm|flv|dv|vob)$", re.IGNORECASE)

OUTPUTS = "outputs"  # below the folder of the frames: what File Output nodes write

# Eevee's two names: 4.2 to 4.5 call it NEXT, older and newer ones do not.
TWINS = {"BLENDER_EEVEE": "BLENDER_EEVEE_NEXT", "BLENDER_EEVEE_NEXT": "BLENDER_EEVEE"}


class Fail(Exception):
    """Why the attempt cannot go on: a kind of package render and a sentence."""

    def __init__(self, kind, reason):
        Exception.__init__(self, reason)
        self.kind = kind


class Requests:
    """What is asked for, read beside Blender's own thread."""

    def __init__(self):
        self.waiting = queue.Queue()
        self.id = None  # of the request that is answered now
        self.stop = None  # of the one that is to end
        # A file may name /dev/stdin as a picture: there is nothing for it there.
        self.input = os.dup(0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        rest = b""
        try:
            while True:
                # Not by sys.stdin, whose lock would be held when Blender quits.
                piece = os.read(self.input, 1 << 16)
                if not piece:
                    return  # whoever asks is gone
                lines = (rest + piece).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    request = json.loads(line.decode("utf-8"))
                    if request["do"] == "stop":
                        self.stop = request["id"]
                    else:
                        self.waiting.put(request)
        finally:
            os._exit(0)  # for nobody, or nothing that is understood, Blender renders not

    def next(self):
        request = self.waiting.get()
        self.id = request["id"]
        return request


requests = Requests()


def stopped():
    """Whether the request that is answered now is to end early."""
    return requests.stop is not None and requests.stop == requests.id


def say(ev, **rest):
    """Prints one event on a line of its own, whatever Blender was printing."""
    sys.stdout.write("\nVIZ " + json.dumps(dict(rest, ev=ev, id=requests.id)) + "\n")
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


def movie_to_frames(render, note):
    """A movie cannot be rendered in parts: its frames can."""
    if render.image_settings.file_format not in MOVIES and not getattr(render, "is_movie_format", False):
        return
    note("the scene's output is a movie (%s): frames are written as PNG" % render.image_settings.file_format)
    set_format(render, "PNG")
    render.filepath = MOVIE_SUFFIX.sub("_", render.filepath)


def with_extensions(render, note):
    """A file in a folder of pictures has a picture's extension: the farm writes no others."""
    if not render.use_file_extension:
        render.use_file_extension = True
        note("the scene's files are named without an extension: here they get one")


def frame_name(scene, frame):
    """The file name that Blender gives the frame in the scene's own folder."""
    path = scene.render.frame_path(frame=frame).replace("\\", "/")
    name = re.sub(r"[\x00-\x1f]", "_", path.rsplit("/", 1)[-1])
    return name if name not in ("", ".", "..") else "%04d%s" % (frame, scene.render.file_extension)


def suffixes(render):
    """What the views append to the names of their files, in the order of the views."""
    if not render.use_multiview:
        return [""]
    found = [view.file_suffix for view in render.views if view.use] + [""]
    return sorted(set(found), key=found.index)


def render_frame(scene, frame, folder):
    """Renders one frame below folder and answers what Blender wrote there for it.

    These are names of files, the main one first, each with the suffix of its view, where
    each view has a file of its own, and its extension.
    """
    render = scene.render
    stem = "frame_%d_" % frame  # such that no other frame's begins with it
    # Setting the number alone leaves the evaluation to the render itself, as in
    # an animation: frame_set would evaluate everything twice.
    bpy.context.scene.frame_current = frame
    scene.frame_current = frame
    scene.frame_subframe = bpy.context.scene.frame_subframe = 0.0
    render.filepath = os.path.join(folder, stem)
    outputs = os.path.join(folder, OUTPUTS)
    shutil.rmtree(outputs, ignore_errors=True)  # of a frame that came to no end
    try:
        bpy.ops.render.render(write_still=True, scene=scene.name)
    except RuntimeError as e:
        raise Fail("error", "frame %d: %s" % (frame, str(e).strip()))
    views = suffixes(render)
    found = []
    for name in sorted(os.listdir(folder)):
        rest = name[len(stem):]
        for order, view in enumerate(views):
            if name.startswith(stem) and rest.startswith(view) and rest[len(view):][:1] in ("", "."):
                # A JPEG that is written beside an OpenEXR file is not the frame.
                found.append((rest[len(view):] != render.file_extension, order, name, view, rest[len(view):]))
                break
    if not found:
        raise Fail("image", "frame %d: Blender finished but wrote no image" % frame)
    return [entry[2:] for entry in sorted(found)]


def written(folder, frame):
    """What the File Output nodes wrote for the frame: files right below folder, to where
    they are moved, with their places below the output folder."""
    top = os.path.join(folder, OUTPUTS)
    number = 0
    for place, _, names in sorted(os.walk(top)):
        for name in sorted(names):
            path = os.path.join(place, name)
            to = "output_%d_%d%s" % (frame, number, os.path.splitext(name)[1])
            number += 1
            os.rename(path, os.path.join(folder, to))
            yield to, os.path.relpath(path, top).replace(os.sep, "/")


def memory():
    """How many bytes of memory this Blender takes; 0 where it cannot tell."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0


class Session:
    """The open file, ready to render."""

    def __init__(self, args):
        self.args = args
        self.notes = []  # what every attempt is told
        self.device = None
        self.paced, self.pace = None, None  # the frame whose parts were rendered last
        guard.release()
        if args.get("remap"):
            for text in remap.remap(bpy, args["remap"]["root"], args["remap"]["origin"]):
                self.note(text)
        self.scene = scene = choose_scene(args.get("scene"))
        for text in guard.guard(bpy, args["scratch"], args.get("root"), scene, os.path.join(args["out"], OUTPUTS)):
            self.note(text)

        render = scene.render
        if args.get("engine"):
            set_engine(render, args["engine"])
        if args.get("samples"):
            set_samples(scene, args["samples"])
        if args.get("resolution_percent"):
            render.resolution_percentage = args["resolution_percent"]
        if args.get("format"):
            set_format(render, args["format"])
        movie_to_frames(render, self.note)
        with_extensions(render, self.note)
        if render.engine == "CYCLES":
            try:
                self.device = devices.choose(bpy, scene, args.get("backends"), args.get("gpu", False), args.get("ids"))
            except devices.Unavailable as e:
                raise Fail("machine", str(e))
            say("device", name=self.device)
        self.filepath = render.filepath
        self.again = self._repeats(args.get("persist"))

    def _repeats(self, persist):
        """Whether a frame comes out the same whatever was rendered before it.

        What does not gets a Blender of its own for each attempt, so that the frames of
        another do not show in it.
        """
        try:
            simulated = next(history.simulations(bpy), None)
            if simulated:
                self.note("%s is simulated while Blender renders: what was not baked depends on where it begins" % simulated)
                return False
            if persist and history.persists(bpy, self.scene):
                self.scene.render.use_persistent_data = True
                self.note("Cycles keeps its data from one frame to the next")
            return True
        except (AttributeError, TypeError):  # a release that names things in another way
            return False

    def note(self, text):
        note(text)
        self.notes.append(text)

    def remind(self):
        """Tells a later attempt what the first one was told."""
        for text in self.notes:
            note(text)
        if self.device:
            say("device", name=self.device)

    def frames(self, request):
        # The results are named by the scene's own path.
        self.scene.render.filepath = self.filepath
        names = {frame: frame_name(self.scene, frame) for frame in request["frames"]}
        for frame in request["frames"]:
            if stopped():
                return
            say("start", frame=frame)
            self.frame(frame, names[frame])

    def frame(self, frame, name, check=lambda: None):
        began, out = time.time(), self.args["out"]
        files = render_frame(self.scene, frame, out)
        check()
        seconds = round(time.time() - began, 3)
        stem, own = os.path.splitext(name)  # it may be another than is usual: .jpeg
        names = [stem + view + (own if end == self.scene.render.file_extension else end) for _, view, end in files]
        for (other, _, _), full in list(zip(files, names))[1:]:
            say("extra", frame=frame, file=other, name=full)
        for other, place in written(out, frame):
            say("extra", frame=frame, file=other, name=place)
        say("frame", frame=frame, file=files[0][0], name=names[0], seconds=seconds,
            thumb=pictures.thumb(bpy, self.scene, files[0][0], out, files[0][1]))

    def part(self, request):
        frame, part = request["frames"][0], request["part"]
        say("start", frame=frame)
        if (frame, part["split"]) != self.paced:
            self.paced, self.pace = (frame, part["split"]), parts.Pace(part["split"]["units"])
        parts.render(bpy, self.scene, frame, part["split"], part["spans"], self.pace, self.args["out"], say, stopped)

    def merge(self, request):
        frame, merge = request["frames"][0], request["merge"]
        self.scene.render.filepath = self.filepath
        name = frame_name(self.scene, frame)
        say("start", frame=frame)
        with parts.merged(bpy, self.scene, merge["split"], merge["file"], self.args["out"], say) as check:
            self.frame(frame, name, check)

    def movie(self, request):
        began, frame, wanted = time.time(), request["frames"][0], request["movie"]
        self.scene.render.filepath = self.filepath
        name = movie.name(self.scene, wanted["numbers"], wanted["kind"])
        say("start", frame=frame)
        file, thumb = movie.make(bpy, self.scene, wanted["numbers"], wanted["kind"], wanted["ending"], wanted["folder"], self.args["out"], say)
        say("frame", frame=frame, file=file, name=name, seconds=round(time.time() - began, 3), thumb=thumb)


def serve(session, request):
    """Answers requests, of which this is the first, for ever."""
    while True:
        do = {"frames": session.frames, "part": session.part, "merge": session.merge, "movie": session.movie}.get(request["do"])
        if do is None:
            raise Fail("error", "vizpeer's driver does not know the request %r" % request["do"])
        do(request)
        say("end", again=session.again, memory=memory())
        request = requests.next()
        session.remind()


def main():
    request = requests.next()  # first: whatever is said belongs to it
    with open(sys.argv[sys.argv.index("--") + 1], encoding="utf-8") as f:
        args = json.load(f)
    say("loaded", version=bpy.app.version_string)
    serve(Session(args), request)


try:
    main()
except (Fail, parts.Refused) as e:
    say("fail", kind=e.kind, reason=str(e))
    sys.exit(3)
except Exception as e:
    traceback.print_exc()
    say("fail", kind="memory" if isinstance(e, MemoryError) else "error", reason="%s: %s" % (type(e).__name__, e))
    sys.exit(3)
