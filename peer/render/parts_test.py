# SPDX-License-Identifier: Apache-2.0
"""Tests what of parts.py and pictures.py needs no Blender:

    python3 parts_test.py
"""

import array
import io
import struct
import unittest
from types import SimpleNamespace

import parts
import pictures


def batches(total, spans, each, lost, first=None):
    """The batches of a machine that takes so many seconds for a sample and a batch."""
    pace, out = parts.Pace(total), []
    for start, end in spans:
        at = start
        while at < end:
            n = pace.next(end - at)
            pace.took(n, n * each + (first if not out and first is not None else lost), n * each)
            out.append(n)
            at += n
    return out


class PaceTest(unittest.TestCase):
    def test_a_preview_comes_soon(self):
        self.assertEqual(batches(100, [(0, 100)], 1, 0.1)[0], 4)
        self.assertEqual(batches(32, [(0, 32)], 1, 0.1)[0], 1)
        self.assertEqual(batches(1, [(0, 1)], 1, 0.1), [1])

    def test_batches_grow_up_to_what_may_be_lost(self):
        took = batches(1000, [(0, 1000)], 0.5, 0.01)
        self.assertEqual(took[:4], [4, 4, 8, 16])
        self.assertEqual(sum(took), 1000)
        self.assertLessEqual(max(took) * 0.5, 1.25 * parts.BATCH)
        self.assertEqual(took[6], 40)

    def test_light_frames_have_few_batches(self):
        took = batches(128, [(0, 128)], 0.01, 0.2)
        self.assertEqual(took, [4, 124])

    def test_batches_are_worth_what_they_lose(self):
        for each, lost in ((0.001, 0.05), (0.1, 0.3), (1, 3), (5, 10)):
            took = batches(4096, [(0, 2048), (2048, 4096)], each, lost)
            self.assertEqual(sum(took), 4096)
            cost = len(took) * lost / (4096 * each)
            if 4096 * each > 100 * lost:
                self.assertLess(cost, 0.1, (each, lost, took))

    def test_the_next_part_begins_where_the_last_one_ended(self):
        took = batches(512, [(0, 100), (200, 300)], 0.1, 0.05)
        self.assertEqual(took[0], 4)
        self.assertEqual(took[-1], 100, took)  # ten seconds: less than what may be lost

    def test_what_the_first_batch_lost_is_not_lost_again(self):
        took = batches(1000, [(0, 1000)], 1, 0.1, first=600)
        self.assertLessEqual(max(took), 1.25 * parts.BATCH)


def piece(width, height, value, names=("A.Combined.A", "A.Combined.B", "A.Combined.G", "A.Combined.R", "A.Depth.Z")):
    """An OpenEXR file as Blender writes it; value(name, x, y from the top)."""
    def attribute(name, kind, content):
        return name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<I", len(content)) + content
    channels = b"".join(n.encode() + b"\0" + struct.pack("<4i", 2, 0, 1, 1) for n in names) + b"\0"
    head = struct.pack("<2I", 0x01312F76, 2) + attribute("channels", "chlist", channels)
    head += attribute("cycles.A.render_time", "string", b"01:02.50") + attribute("cycles.B.render_time", "string", b"00:00.50")
    head += attribute("dataWindow", "box2i", struct.pack("<4i", 0, 0, width - 1, height - 1)) + b"\0"
    lines, size = [], 4 * width * len(names)
    for y in range(height):
        values = array.array("f", [value(n, x, y) for n in names for x in range(width)])
        lines.append(struct.pack("<iI", y, size) + values.tobytes())
    at = len(head) + 8 * height
    table = b"".join(struct.pack("<Q", at + y * (8 + size)) for y in range(height))
    return io.BytesIO(head + table + b"".join(lines))


class PicturesTest(unittest.TestCase):
    def test_rows(self):
        rows = pictures.Rows(piece(3, 2, lambda n, x, y: 10 * y + x + (100 if n == "A.Depth.Z" else 0)))
        self.assertEqual((rows.width, rows.height), (3, 2))
        self.assertEqual([list(v) for v in rows.row(1, [3, 4])], [[10, 11, 12], [110, 111, 112]])
        self.assertAlmostEqual(rows.seconds(), 63)

    def test_a_margin_does_not_count(self):
        rows = pictures.Rows(piece(6, 5, lambda n, x, y: 10 * y + x + (100 if n == "A.Depth.Z" else 0)), cut=[1, 2, 3, 0])
        self.assertEqual((rows.width, rows.height), (2, 3))
        self.assertEqual([[list(v) for v in rows.row(y, [4])] for y in range(3)], [[[101, 102]], [[111, 112]], [[121, 122]]])

    def test_tiles_have_as_much_of_a_margin_as_there_is(self):
        render = SimpleNamespace(resolution_x=21, resolution_y=9, resolution_percentage=100)
        split = {"columns": 3, "rows": 2}
        cuts = [parts._border(render, split, tile, 4) for tile in range(6)]
        self.assertEqual(cuts[:3], [[0, 0, 4, 4], [4, 0, 4, 4], [4, 0, 0, 4]])
        self.assertEqual(cuts[4], [4, 4, 4, 0])
        self.assertEqual([int(render.border_min_x * 21), int(render.border_max_x * 21)], [10, 21])
        self.assertEqual([int(render.border_min_y * 9), int(render.border_max_y * 9)], [0, 9])
        self.assertEqual(parts._border(render, split, 5, 0), [0, 0, 0, 0])

    def test_film(self):
        film = pictures.Film("A", full=8, side=4)
        film.add(pictures.Rows(piece(8, 4, lambda n, x, y: x if n.endswith("R") else y)), 1)
        film.add(pictures.Rows(piece(8, 4, lambda n, x, y: 4 + x if n.endswith("R") else y)), 3)
        self.assertEqual((film.width, film.height), (4, 2))
        # R, G, B, A of the lower row, from the left: every second pixel, one in from the edge.
        self.assertEqual(list(film.sums[:8]), [4, 2, 2, 2, 6, 2, 2, 2])
        self.assertEqual(list(film.sums[16:20]), [4, 0, 0, 0])

    def test_films_of_odd_sizes(self):
        for width, height, full in ((97, 61, 97), (1, 1, 4000), (1023, 3, 1023), (5, 700, 1500)):
            film = pictures.Film("A", full)
            film.add(pictures.Rows(piece(width, height, lambda n, x, y: 1)), 1)
            self.assertEqual(set(film.sums), {1.0})
            self.assertLessEqual(max(film.width, film.height), pictures.SIDE)

    def test_changes_are_undone_in_order(self):
        class Image:
            """Depth depends on the format, as in Blender."""
            file_format, depth = "PNG", "8"

            def __setattr__(self, name, value):
                if name == "depth" and value not in {"PNG": ("8", "16"), "EXR": ("16", "32")}[self.file_format]:
                    raise TypeError(value)
                if name == "file_format" and value == "EXR":
                    object.__setattr__(self, "depth", "16")
                object.__setattr__(self, name, value)

        image = Image()
        with self.assertRaises(KeyError), pictures.Changes() as changes:
            changes.set(image, "file_format", "PNG")  # to keep both, before one changes the other
            changes.set(image, "depth", "8")
            changes.set(image, "file_format", "EXR")
            changes.set(image, "depth", "32")
            changes.set(image, "quality", 3)  # it has none
            image.depth = "16"
            raise KeyError
        self.assertEqual((image.file_format, image.depth), ("PNG", "8"))
        owner = SimpleNamespace(a=1)
        with pictures.Changes() as changes:
            changes.set(owner, "a", 2)
            changes.set(owner, "a", 3)
        self.assertEqual(owner.a, 1)


if __name__ == "__main__":
    unittest.main()
