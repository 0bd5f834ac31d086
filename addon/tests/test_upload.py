# SPDX-License-Identifier: GPL-3.0-or-later
import io
import json
import os
import tarfile
import tempfile
import unittest

import bare  # noqa: F401
from vizpeer import client, upload


class Tar(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.blend = self.write("shot.blend", b"BLENDER-v304 as it was")
        self.files = [self.blend]

    def write(self, name, data):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)
        return path

    def plan(self, snapshot=None):
        manifest = {"version": 1, "blend": "files" + self.blend, "missing": ["/gone/ü.png"]}
        files = [{"source": path, "path": "files" + path} for path in self.files]
        return upload.plan({"manifest": manifest, "files": files}, snapshot)

    def untar(self, data):
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return [(item.name, tar.extractfile(item).read()) for item in tar]

    def test_the_whole_project(self):
        long = self.write("ein/" + "sehr-" * 40 + "/langer/Ümläut-名前/" + "t" * 120 + ".png", b"long")
        block = self.write("block", b"b" * 512)
        empty = self.write("empty", b"")
        big = self.write("big", os.urandom(2 * upload.CHUNK + 7))
        self.files = [long, block, empty, self.blend, big, block]
        snapshot = self.write("tmp/shot.blend", b"BLENDER-v304 as it is now")
        plan = self.plan(snapshot)
        told = []
        found = self.untar(b"".join(upload.tar(plan, told.append)))
        self.assertEqual(found[0][0], "vizpeer.json")
        self.assertEqual(json.loads(found[0][1].decode())["missing"], ["/gone/ü.png"])
        self.assertEqual(found[1], ("files" + self.blend, b"BLENDER-v304 as it is now"))
        rest = dict(found[2:])
        self.assertEqual(len(rest), len(found) - 2)
        for path in (long, block, empty, big):
            with open(path, "rb") as f:
                self.assertEqual(rest["files" + path], f.read())
        self.assertEqual(told[-1], plan.total)
        self.assertEqual(told, sorted(told))

    def test_a_file_that_changed(self):
        for change in (lambda p: self.write("tex", b"longer than it was"), lambda p: os.utime(p, ns=(1, 1)), os.remove):
            texture = self.write("tex", b"texture")
            self.files = [self.blend, texture]
            plan = self.plan()
            change(texture)
            with self.assertRaisesRegex(client.Problem, "tex (changed|cannot be read)"):
                list(upload.tar(plan))

    def test_a_file_that_changed_after_it_was_sent(self):
        first, second = self.write("a", b"1"), self.write("b", b"2")
        self.files = [self.blend, first, second]
        done = []

        def sent(size):
            done.append(size)
            if len(done) == 3:
                self.write("a", b"one")

        with self.assertRaisesRegex(upload.Changed, "a changed"):
            list(upload.tar(self.plan(), sent))

    def test_what_cannot_be_sent(self):
        os.mkfifo(os.path.join(self.folder, "pipe"))
        for name, pattern in (("gone", "cannot be read"), ("", "is not a file"), ("pipe", "is not a file")):
            self.files = [self.blend, os.path.join(self.folder, name)]
            with self.assertRaisesRegex(client.Problem, pattern):
                self.plan()

    def test_nothing_is_held_in_memory(self):
        path = os.path.join(self.folder, "sparse")
        with open(path, "wb") as f:
            f.truncate(9 << 30)  # more than an old tar header can say
        self.files = [self.blend, path]
        stream = upload.tar(self.plan())
        pieces = [next(stream) for _ in range(8)]
        self.assertLess(max(map(len, pieces)), upload.CHUNK + 1)
        header = tarfile.TarInfo.frombuf(pieces[5][-512:], "utf-8", "surrogateescape")
        self.assertEqual(header.type, tarfile.REGTYPE)
        self.assertIn(b"size=%d\n" % (9 << 30), pieces[5])
        stream.close()


if __name__ == "__main__":
    unittest.main()
