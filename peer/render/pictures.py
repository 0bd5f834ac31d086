# SPDX-License-Identifier: Apache-2.0
"""Makes the small pictures that people look at while and after a frame renders.

They are JPEGs through the scene's own view transform, as Blender's image editor would
show the picture: nothing else in the farm knows what a scene's colours mean. Nothing
here may fail a render.
"""

import array
import os
import struct

SIDE = 512  # pixels, the longer side of a small picture at most
QUALITY = 85

# The formats that package render makes small pictures of by itself: their pixels are
# what is shown.
SHOWN = {"PNG", "JPEG", "TIFF"}


class Changes:
    """Settings that are put back to what they were at the end of a with block.

    They are put back in the order in which they were set: what a format allows is known
    only when the format is back.
    """

    def __init__(self):
        self.kept = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for owner, name, value in self.kept:
            try:
                setattr(owner, name, value)
            except (TypeError, AttributeError, ReferenceError):
                pass  # the format that is back has no such setting
        return False

    def set(self, owner, name, value):
        """Sets an attribute that this Blender may not have."""
        if owner is None or not hasattr(owner, name):
            return
        before = getattr(owner, name)
        if not any(o == owner and n == name for o, n, _ in self.kept):
            self.kept.append((owner, name, before))
        if before != value:
            setattr(owner, name, value)


def keep(changes, image):
    """Makes changes put the image settings back, whatever becomes of them."""
    for name in ("media_type", "file_format", "color_mode", "color_depth", "exr_codec", "quality", "use_preview"):
        if hasattr(image, name):
            changes.set(image, name, getattr(image, name))


def choose_format(image, wanted):
    media = {"OPEN_EXR_MULTILAYER": "MULTI_LAYER_IMAGE"}.get(wanted, "IMAGE")
    if getattr(image, "media_type", media) != media:  # Blender 5 asks for it first
        image.media_type = media
    image.file_format = wanted


def as_jpeg(image):
    choose_format(image, "JPEG")
    image.color_mode = "RGB"
    image.quality = QUALITY


def thumb(bpy, scene, path, out, view=""):
    """Makes a JPEG of the frame that was just rendered, where package render cannot.

    path is the frame's file, view the suffix of the view that it shows; the picture comes
    from Blender's memory, in full size.
    Answers the name of a file below out, or "".
    """
    if scene.render.image_settings.file_format in SHOWN:
        return ""
    stem = os.path.splitext(os.path.basename(path))[0] + "_thumb"
    name = stem + ".jpg"
    try:
        with Changes() as changes:
            keep(changes, scene.render.image_settings)
            as_jpeg(scene.render.image_settings)
            try:
                bpy.data.images["Render Result"].save_render(os.path.join(out, name), scene=scene)
            except RuntimeError:
                name = stem + view + ".jpg"
                # Each view has a file of its own, and Blender says that none was written.
                if not view or not os.path.exists(os.path.join(out, name)):
                    raise
        return name if os.path.getsize(os.path.join(out, name)) > 0 else ""
    except Exception as e:  # whatever it is, the frame is there
        print("vizpeer: no small picture: %s" % e)
        return ""


class Rows:
    """The pixels of a piece: an uncompressed OpenEXR file of scan lines and floats.

    cut is how wide its margin is, which does not count: see parts.py.
    """

    def __init__(self, f, cut=(0, 0, 0, 0)):
        self.f = f
        self.words = {}
        f.read(8)
        self.channels = []
        while True:
            name = self._text()
            if not name:
                break
            self._text()
            size, = struct.unpack("<I", f.read(4))
            value = f.read(size)
            if name == "channels":
                self.channels = [c.split(b"\0")[0].decode("utf-8", "replace") for c in _channels(value)]
            elif name == "dataWindow":
                x0, y0, x1, y1 = struct.unpack("<4i", value)
                self.width, self.height = x1 - x0 + 1, y1 - y0 + 1
            elif name.startswith("cycles."):
                self.words[name] = value.decode("utf-8", "replace")
        self.offsets = array.array("Q", f.read(8 * self.height))
        self.left, bottom, right, top = cut
        self.line = 4 * self.width  # bytes of a channel
        self.offsets = self.offsets[top:self.height - bottom]
        self.width, self.height = self.width - self.left - right, self.height - bottom - top

    def _text(self):
        b = bytearray()
        while True:
            c = self.f.read(1)
            if c in (b"", b"\0"):
                return b.decode("utf-8", "replace")
            b += c

    def row(self, y, numbers):
        """The values of some channels in line y, counted from the top."""
        for n in numbers:
            self.f.seek(self.offsets[y] + 8 + n * self.line + 4 * self.left)
            yield array.array("f", self.f.read(4 * self.width))

    def seconds(self):
        """How long Cycles says that it was tracing paths, or None."""
        total = None
        for name, text in self.words.items():
            if name.endswith(".render_time"):
                part = 0.0
                for number in text.split(":"):
                    part = part * 60 + float(number)
                total = (total or 0.0) + part
        return total


def _channels(value):
    at = 0
    while at < len(value) and value[at]:
        end = value.index(b"\0", at)
        yield value[at:end]
        at = end + 17


class Film:
    """The small picture of what is rendered so far of a span of samples, or of a tile.

    side is the longest side that the whole frame's picture may have, full its longest
    side in pixels.
    """

    def __init__(self, layer, full, side=SIDE):
        self.layer = layer
        self.step = max(1, -(-full // side))
        self.samples = 0
        self.sums = None

    def add(self, rows, samples):
        """Adds what a file has. Of each square of pixels a few stand for all."""
        numbers = [rows.channels.index("%s.Combined.%s" % (self.layer, c)) for c in "RGBA"]
        step = self.step
        self.width, self.height = max(1, rows.width // step), max(1, rows.height // step)
        new = array.array("f", bytes(16 * self.width * self.height))
        for y in range(self.height):
            from_top = rows.height - 1 - min(rows.height - 1, y * step + step // 2)
            at = 4 * self.width * y
            for c, values in enumerate(rows.row(from_top, numbers)):
                new[at + c:at + 4 * self.width:4] = values[min(step // 2, rows.width - 1)::step][:self.width]
        if self.sums is None:
            self.sums = new
        else:
            a, b = self.samples / (self.samples + samples), samples / (self.samples + samples)
            self.sums = array.array("f", [a * x + b * y for x, y in zip(self.sums, new)])
        self.samples += samples

    def jpeg(self, bpy, scene, path):
        """Writes the picture. Leaves the image settings at JPEG: the caller keeps them."""
        image = bpy.data.images.new("vizpeer preview", self.width, self.height, alpha=True, float_buffer=True)
        try:
            image.alpha_mode = "PREMUL"
            image.pixels.foreach_set(self.sums)
            as_jpeg(scene.render.image_settings)
            image.save_render(path, scene=scene)
        finally:
            bpy.data.images.remove(image)
