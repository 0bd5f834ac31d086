# SPDX-License-Identifier: Apache-2.0
"""Makes the movie of a job's finished frames.

The frames come as files 000000.png, 000001.png, … of one folder, in the movie's order.
Numbers that are not there leave no gap: the frames follow each other.

The program ffmpeg does it where this machine has it, for frames whose pixels are what is
shown. Otherwise Blender's own encoder does, through the sequencer of a copy of the
scene: for frames of scene-linear light, which need the scene's view transform, and for a
scene with sound, which Blender mixes. Nothing of the scene itself is changed.
"""

import contextlib
import os
import re
import shutil
import struct
import subprocess

import pictures
from parts import Refused, compositor

# Files that hold light, and not what a screen shows of it.
LINEAR = {".exr", ".hdr", ".cin", ".dpx"}
# Files that ffmpeg reads as Blender does.
READ = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".tga"}

# Of each kind: Blender's names of the container, the codec and the sound's codec;
# ffmpeg's of the container and the encoder, and how it is to encode.
X264 = ["libx264", "-preset", "medium", "-crf", "17"]
VP9 = ["libvpx-vp9", "-crf", "22", "-b:v", "0", "-deadline", "good", "-cpu-used", "2", "-row-mt", "1"]
KINDS = {
    "mp4": ("MPEG4", "H264", "AAC", "mp4", X264),
    "mov": ("QUICKTIME", "H264", "AAC", "mov", X264),
    "mkv": ("MKV", "H264", "AAC", "matroska", X264),
    "webm": ("WEBM", "WEBM", "OPUS", "webm", VP9),
}


def name(scene, numbers, kind):
    """The file name that Blender gives the scene's output when it is a movie."""
    stem = scene.render.filepath.replace("\\", "/").rsplit("/", 1)[-1]
    ending = scene.render.file_extension
    if ending and stem.lower().endswith(ending.lower()):
        stem = stem[:-len(ending)]
    stem = re.sub(r"[\x00-\x1f]", "_", stem)

    def between(digits):
        return "%.*d-%.*d" % (digits, min(numbers), digits, max(numbers))

    signs = list(re.finditer("#+", stem))
    if signs:
        at = signs[-1]
        stem = stem[:at.start()] + between(at.end() - at.start()) + stem[at.end():]
    else:
        stem += between(4)
    return "%s.%s" % (stem, kind)


def make(bpy, scene, numbers, kind, ending, folder, out, say):
    """Makes the movie of the frames with these numbers in a file below out.

    ending is that of the frames' names. Answers the names of the movie and of a picture
    of its middle, which is "" where package render makes that itself.
    """
    files = ["%06d%s" % (i, ending) for i in range(len(numbers))]
    linear = ending.lower() in LINEAR
    film = Film(bpy, scene, numbers, kind, folder, files, os.path.join(out, "movie." + kind), say)
    if film.width % 2 or film.height % 2:
        # The compositor puts a picture into the middle of a larger one.
        say("note", text="the frames have %d × %d pixels, and a movie has even numbers of them: %s" % (
            film.width, film.height, "its pixels lie between theirs" if film.layered else "it has a black line more " + " and ".join(
                where for side, where in ((film.width, "on the right"), (film.height, "at the bottom")) if side % 2)))
    sounds = film.sounds()
    ffmpeg = "" if linear or ending.lower() not in READ else program(kind)
    able = bpy.app.ffmpeg.supported
    if ffmpeg and (not sounds or not able):
        if sounds:
            say("note", text="the movie has no sound: this machine's Blender cannot mix it")
        film.by_ffmpeg(ffmpeg)
    elif able:
        film.by_blender(linear, sounds)
    else:
        raise Refused("this machine's Blender writes no movies, and there is no ffmpeg for %s of %s files" % (kind, ending), "machine")
    if not os.path.isfile(film.path):
        raise Refused("the movie was made but is not there", "image")
    return os.path.basename(film.path), film.thumb(out) if linear and not film.layered else ""


def program(kind):
    """Where this machine's ffmpeg is, if it has the encoder for this kind, or ""."""
    path = shutil.which("ffmpeg")
    if not path:
        return ""
    try:
        said = subprocess.run([path, "-hide_banner", "-encoders"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as e:
        print("vizpeer: ffmpeg cannot be used: %s" % e)
        return ""
    encoders = {words[1] for words in (line.split() for line in said.decode("utf-8", "replace").splitlines()) if len(words) > 1}
    return path if KINDS[kind][4][0] in encoders else ""


def rate(render):
    """The frames of a second as a fraction: 24 by 1.001 is 24000 by 1001."""
    return int(render.fps) * 100000, round(render.fps_base * 100000)


def _strips(editor, every=False):
    for which in ("strips", "sequences"):  # up to Blender 4.3 they were sequences
        found = getattr(editor, which + "_all" if every else which, None)
        if found is not None:
            return found
    return ()


class Film:
    """What a movie is made of."""

    def __init__(self, bpy, scene, numbers, kind, folder, files, path, say):
        self.bpy, self.scene, self.numbers, self.kind = bpy, scene, numbers, kind
        self.folder, self.files, self.path, self.say = folder, files, path, say
        self.layered = False  # whether the files have layers and passes of their own
        self.width, self.height = self.size(0)

    def size(self, i):
        """The width and height of a frame; it is read as a whole."""
        image, path = None, os.path.join(self.folder, self.files[i])
        try:
            image = self.bpy.data.images.load(path, check_existing=False)
            width, height = image.size
            if image.type == "MULTILAYER":  # which has no size before it is used
                self.layered = True
                with open(path, "rb") as f:
                    rows = pictures.Rows(f)
                width, height = rows.width, rows.height
        except (RuntimeError, OSError, ValueError, struct.error, AttributeError):
            width = height = 0
        finally:
            if image is not None:
                self.bpy.data.images.remove(image)
        if not width or not height:
            raise Refused("frame %d cannot be read, and the movie is not made without it" % self.numbers[i], "image")
        return width, height

    def whole(self):
        """Whether there is a frame for each number from the first to the last."""
        return self.numbers == list(range(self.numbers[0], self.numbers[0] + len(self.numbers)))

    def sounds(self):
        """Whether the scene has sound that fits the frames."""
        editor = self.scene.sequence_editor
        if editor is None or not any(s.type == "SOUND" and not s.mute for s in _strips(editor, every=True)):
            return False
        if not self.whole():
            self.say("note", text="the movie has no sound: there is not a frame for each number from its first to its last")
            return False
        if len(editor.meta_stack):
            self.say("note", text="the movie has no sound: the file was saved within a meta strip")
            return False
        return True

    def by_ffmpeg(self, program):
        self.say("note", text="the program ffmpeg makes the movie")
        container, encode = KINDS[self.kind][3:]
        render = self.scene.render
        fps = "%d/%d" % rate(render)
        filters = [
            # Clear pixels are black, as where Blender writes the movie.
            "format=gbrap", "premultiply=inplace=1",
            "pad=ceil(iw/2)*2:ceil(ih/2)*2",
            "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+full_chroma_inp", "format=yuv420p",
            "setsar=%d/%d" % (round(render.pixel_aspect_x * 1000), round(render.pixel_aspect_y * 1000)),
        ]
        command = [program, "-nostdin", "-hide_banner", "-nostats", "-loglevel", "error", "-xerror", "-y", "-progress", "pipe:1",
                   "-protocol_whitelist", "file", "-f", "image2", "-framerate", fps, "-start_number", "0",
                   "-i", "%06d" + os.path.splitext(self.files[0])[1], "-vf", ",".join(filters), "-an", "-c:v"] + encode
        command += ["-g", str(max(1, round(render.fps / render.fps_base))), "-colorspace", "bt709", "-color_primaries", "bt709",
                    "-color_trc", "bt709", "-color_range", "tv"]
        if container in ("mp4", "mov"):
            command += ["-movflags", "+faststart"]
        command += ["-f", container, self.path]
        made, last = 0, "it said nothing"
        # In the folder, whose path may have signs that mean something in a pattern.
        with subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as p:
            for line in p.stdout:
                text = line.decode("utf-8", "replace").strip()
                key, _, value = text.partition("=")
                if key == "frame" and value.isdigit():
                    made = int(value)
                    self.shown(made)
                elif text and not re.match(r"[a-z0-9_]+=", text):
                    last = text
                    print("ffmpeg: " + text)
        if p.returncode != 0:
            raise Refused("ffmpeg could not make the movie: %s" % last, "machine" if p.returncode < 0 else "error")
        self.count(made)

    def by_blender(self, linear, sounds):
        for i in range(len(self.files)):  # the sequencer shows nothing where one cannot be read
            size = self.size(i)
            if size != (self.width, self.height):
                raise Refused("frame %d has %d × %d pixels, and the first frame %d × %d" % (
                    (self.numbers[i],) + size + (self.width, self.height)), "image")
        self.say("note", text="Blender's own encoder makes the movie")
        bpy, made = self.bpy, []

        def wrote(*_):
            made.append(True)
            self.shown(len(made))

        with self.copy(sounds) as aside:
            start = self.arrange(aside, linear, sounds)
            aside.frame_start, aside.frame_end, aside.frame_step = start, start + len(self.files) - 1, 1
            bpy.app.handlers.render_write.append(wrote)
            try:
                try:
                    bpy.ops.render.render(animation=True, scene=aside.name)
                except RuntimeError as e:
                    if not sounds:
                        raise
                    self.say("note", text="the movie has no sound: %s" % str(e).strip())
                    aside.render.ffmpeg.audio_codec = "NONE"
                    del made[:]
                    bpy.ops.render.render(animation=True, scene=aside.name)
            except RuntimeError as e:
                # The frames can be read: what fails is the encoder or what it writes to.
                raise Refused("this machine's Blender could not make the movie: %s" % str(e).strip(), "machine")
            finally:
                bpy.app.handlers.render_write.remove(wrote)
        self.count(len(made))

    @contextlib.contextmanager
    def copy(self, sounds):
        """A copy of the scene with nothing in its sequencer but sounds, until the end."""
        bpy = self.bpy
        images, actions = set(bpy.data.images), set(bpy.data.actions)
        aside = self.scene.copy()
        try:
            if not sounds:
                aside.sequence_editor_clear()
            for strip in _strips(aside.sequence_editor, every=True) if sounds else ():
                if strip.type not in ("SOUND", "META"):
                    strip.mute = True
            yield aside
        finally:
            bpy.data.scenes.remove(aside)
            for action in set(bpy.data.actions) - actions:
                bpy.data.actions.remove(action)
            for image in set(bpy.data.images) - images:
                if image.type not in ("RENDER_RESULT", "COMPOSITING"):
                    bpy.data.images.remove(image)

    def arrange(self, aside, linear, sounds):
        """Sets the copy up to write the movie; answers the first of its frames."""
        start = self.numbers[0] if self.whole() else 1
        kept = ["sequence_editor"] if sounds else []
        if linear and self.whole():
            kept.append("view_settings")  # an exposure may be animated
        _keep_animation(aside, kept)
        render = aside.render
        for setting, value in (
                ("resolution_x", self.width + self.width % 2), ("resolution_y", self.height + self.height % 2),
                ("resolution_percentage", 100), ("use_border", False), ("use_multiview", False), ("use_stamp", False),
                ("use_compositing", self.layered), ("use_sequencer", not self.layered), ("use_freestyle", False), ("use_overwrite", True),
                ("use_placeholder", False), ("dither_intensity", 0), ("frame_map_old", 100), ("frame_map_new", 100),
                ("use_file_extension", False), ("filepath", self.path)):
            if hasattr(render, setting):
                setattr(render, setting, value)
        self.encoder(render, sounds)
        if self.layered:
            self.node(aside, start)
            return start
        strip = self.strip(aside, start)
        if not linear:
            _as_shown(aside, strip)
        return start

    def encoder(self, render, sounds):
        image, ffmpeg = render.image_settings, render.ffmpeg
        container, codec, sound = KINDS[self.kind][:3]
        try:
            if getattr(image, "media_type", "VIDEO") != "VIDEO":  # Blender 5 asks for it first
                image.media_type = "VIDEO"
            image.file_format = "FFMPEG"
            image.color_mode = "RGB"
            ffmpeg.format, ffmpeg.codec = container, codec
            ffmpeg.audio_codec = sound if sounds else "NONE"
        except TypeError:
            raise Refused("this machine's Blender writes no %s movies" % self.kind, "machine")
        for setting, value in (
                ("color_management", "FOLLOW_SCENE"), ("constant_rate_factor", "HIGH"), ("ffmpeg_preset", "GOOD"),
                ("use_lossless_output", False), ("use_autosplit", False), ("use_max_b_frames", False),
                ("gopsize", max(1, round(render.fps / render.fps_base))),
                ("audio_mixrate", 48000), ("audio_bitrate", 192), ("audio_channels", "STEREO")):
            owner = image if setting == "color_management" else ffmpeg
            if hasattr(owner, setting):
                setattr(owner, setting, value)

    def strip(self, aside, start):
        """Puts the frames above all that the sequencer has."""
        editor = aside.sequence_editor or aside.sequence_editor_create()
        strips = _strips(editor)
        channel = max([s.channel for s in strips] or [0]) + 1
        strip = strips.new_image("vizpeer movie", os.path.join(self.folder, self.files[0]), channel, start)
        for file in self.files[1:]:
            strip.elements.append(file)
        strip.frame_final_duration = len(self.files)
        strip.blend_type, strip.mute = "REPLACE", False
        if hasattr(editor, "channels"):
            editor.channels[channel].mute = False
        if hasattr(strip, "transform"):  # the black line: on the right and at the bottom
            strip.transform.offset_x, strip.transform.offset_y = -0.5 * (self.width % 2), 0.5 * (self.height % 2)
            if hasattr(strip.transform, "filter"):
                strip.transform.filter = "NEAREST"  # another would mix the edges with it
        return strip

    def node(self, aside, start):
        """Makes the compositor show the frames: the sequencer reads no layers."""
        tree, output = compositor(self.bpy, aside)
        source = tree.nodes.new("CompositorNodeImage")
        source.image = self.bpy.data.images.load(os.path.join(self.folder, self.files[0]), check_existing=False)
        source.image.source = "SEQUENCE"
        # The first file has the number 0.
        source.frame_start, source.frame_duration, source.frame_offset = start, len(self.files), -1
        try:
            source.layer = "Composite"  # the picture itself, where the file has it
        except TypeError:
            pass
        shown = source.outputs.get("Combined") or source.outputs["Image"]
        tree.links.new(shown, output.inputs[0])

    def thumb(self, out):
        """Makes a picture of the middle frame through the scene's view transform."""
        bpy, scene, image = self.bpy, self.scene, None
        try:
            image = bpy.data.images.load(os.path.join(self.folder, self.files[len(self.files) // 2]), check_existing=False)
            with pictures.Changes() as changes:
                pictures.keep(changes, scene.render.image_settings)
                pictures.as_jpeg(scene.render.image_settings)
                image.save_render(os.path.join(out, "movie_thumb.jpg"), scene=scene)
            return "movie_thumb.jpg"
        except Exception as e:  # whatever it is, the movie is there
            print("vizpeer: no small picture: %s" % e)
            return ""
        finally:
            if image is not None:
                bpy.data.images.remove(image)

    def shown(self, made):
        print("Rendering %d / %d frames of the movie" % (made, len(self.files)), flush=True)

    def count(self, made):
        if made != len(self.files):
            raise Refused("the movie has %d frames of %d" % (made, len(self.files)), "image")


def _keep_animation(scene, kept):
    """Leaves the scene, which is a copy, only what animates such settings."""
    data = scene.animation_data
    if data is None:
        return
    if not kept or not hasattr(data.action, "fcurves") or len(data.nla_tracks):
        scene.animation_data_clear()
        return
    data.action = data.action.copy()
    for curves in (data.action.fcurves, data.drivers):
        for curve in list(curves):
            if not curve.data_path.startswith(tuple(kept)):
                curves.remove(curve)


def _as_shown(scene, strip):
    """Makes the pixels of the frames those of the movie, as they are."""
    view = scene.view_settings
    for display, transform, space in (("sRGB", "Standard", "sRGB"), (None, "Raw", "Raw"), (None, "Raw", "Non-Color")):
        try:
            if display:
                scene.display_settings.display_device = display
            view.view_transform = transform
            scene.sequencer_colorspace_settings.name = strip.colorspace_settings.name = space
            break
        except TypeError:  # a configuration of another studio's
            continue
    else:
        raise Refused("this machine's Blender has no view that leaves colours as they are", "machine")
    view.exposure, view.gamma, view.use_curve_mapping = 0, 1, False
    try:
        view.look = "None"
    except TypeError:
        pass
