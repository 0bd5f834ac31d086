# SPDX-License-Identifier: GPL-3.0-or-later
import os
import stat
import tempfile
import time
import unittest
from unittest import mock

import bare  # noqa: F401
from fake_peer import FakePeer
from vizpeer import client, jobs, sent, upload

LATER = 3 * 10**9


class Sent(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.cache = tempfile.mkdtemp()
        self.peer = FakePeer()
        self.addCleanup(self.peer.close)
        for patch in (
            mock.patch.object(sent, "cache_folder", lambda: self.cache),
            # As if the files had been written some seconds ago.
            mock.patch.object(upload.time, "time_ns", lambda: int(time.time() * 1e9) + self.ahead),
        ):
            patch.start()
            self.addCleanup(patch.stop)
        self.ahead = LATER
        self.blend = self.write("shot.blend", b"BLENDER-v304")
        self.wood = self.write("wood.png", b"w" * 100)
        self.stone = self.write("stone.png", b"s" * 200)

    def write(self, name, data):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as f:
            f.write(data)
        return path

    def submit(self):
        """Submits, and answers which files were sent with their bytes."""
        copy = os.path.join(tempfile.mkdtemp(), "shot.blend")
        with open(copy, "wb") as f:
            f.write(b"BLENDER-v304 as it is now")
        files = [{"source": p, "path": "files" + p} for p in (self.blend, self.wood, self.stone)]
        collected = {"manifest": {"version": 1, "blend": "files" + self.blend, "origin": "linux"}, "files": files}
        news = []
        job = jobs.Submission(client.find(self.peer.folder, {}), collected, copy, {"name": "shot"}, lambda *a: news.append(a))
        job.start()
        job.join(20)
        self.assertEqual(news[-1][0], "submitted", news)
        project = self.peer.projects[-1]
        self.assertEqual(project["files" + self.blend], b"BLENDER-v304 as it is now")
        for path in (self.wood, self.stone):
            with open(path, "rb") as f:
                self.assertEqual(project["files" + path], f.read())
        return [os.path.basename(name) for name in self.peer.sent]

    def test_unchanged_files_are_not_sent_again(self):
        self.assertEqual(self.submit(), ["vizpeer.json", "shot.blend", "wood.png", "stone.png"])
        self.assertEqual(self.submit(), ["vizpeer.json", "shot.blend"])
        self.write("wood.png", b"W" * 100)
        self.assertEqual(self.submit(), ["vizpeer.json", "shot.blend", "wood.png"])
        index = os.path.join(self.cache, "vizpeer", "addon-sent.json")
        self.assertEqual(stat.S_IMODE(os.stat(index).st_mode), 0o600)
        with open(index, encoding="utf-8") as f:
            self.assertNotIn("shot.blend", f.read())  # its copy is another file each time

        self.peer.content = {r: d for r, d in self.peer.content.items() if not d.startswith(b"s")}
        self.assertEqual(self.submit(), ["vizpeer.json", "shot.blend", "stone.png"])

        with open(index, "r+", encoding="utf-8") as f:
            f.truncate(40)
        self.assertEqual(len(self.submit()), 4)
        self.assertEqual(len(self.submit()), 2)

    def test_what_was_just_written_is_read_again(self):
        self.ahead = 0
        self.submit()
        self.assertEqual(len(self.submit()), 4)

    def test_a_peer_that_never_has_enough(self):
        self.submit()
        self.peer.content = mock.MagicMock(get=lambda receipt: None, __len__=lambda self: 0)
        self.assertEqual(len(self.submit()), 4)

    def test_it_is_bounded(self):
        known = sent.Sent("peer", self.cache)
        now = sent.Stamp(1, 2, 3, 4, 5)
        with mock.patch.object(sent, "MAX_FILES", 10):
            for i in range(12):
                known._fresh["peer /%d" % i] = [list(now), "r", i]
            known.save()
        known = sent.Sent("peer", self.cache)
        self.assertEqual(known.receipt("/1", now), "")
        self.assertEqual(known.receipt("/2", now), "r")
        self.assertEqual(known.receipt("/2", now._replace(inode=6)), "")
        self.assertEqual(sent.Sent("other", self.cache).receipt("/2", now), "")

    def test_nonsense_is_ignored(self):
        path = os.path.join(self.cache, "vizpeer", "addon-sent.json")
        os.makedirs(os.path.dirname(path))
        now = sent.Stamp(1, 2, 3, 4, 5)
        for text in ("", "[]", "{}", '{"version": 1, "files": []}', '{"version": 1, "files": {"peer /a": 1}}', "[" * 100000,
                     '{"version": 1, "files": {"peer /a": [[1, 2, 3, 4, 5], 7, "x"]}}', '{"version": 2, "files": {}}'):
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
            self.assertEqual(sent.Sent("peer", self.cache).receipt("/a", now), "", text[:60])

    def test_names_that_clash(self):
        def paths(system, *names):
            return [f["path"] for f in upload._distinct([{"source": n, "path": "files/" + n} for n in names], system)]

        with self.assertRaisesRegex(client.Problem, "a/X and A/y differ only in capital letters"):
            paths("linux", "a/X", "A/y")
        with self.assertRaisesRegex(client.Problem, "accents"):
            paths("linux", "B\u00e4r", "Ba\u0308r")
        self.assertEqual(paths("windows", "C/Art/Wood.png", "C/art/wood.png", "C/ART/moss.png"),
                         ["files/C/Art/Wood.png", "files/C/Art/Wood.png", "files/C/Art/moss.png"])


class Folders(unittest.TestCase):
    def test_where_the_cache_is(self):
        self.assertEqual(sent.cache_folder({"HOME": "/h"}, "linux"), "/h/.cache")
        self.assertEqual(sent.cache_folder({"HOME": "/h", "XDG_CACHE_HOME": "/c"}, "linux"), "/c")
        self.assertEqual(sent.cache_folder({"HOME": "/h"}, "darwin"), "/h/Library/Caches")
        self.assertEqual(sent.cache_folder({"LOCALAPPDATA": "C:\\l"}, "win32"), "C:\\l")
        self.assertEqual(sent.cache_folder({}, "linux"), "")
        sent.Sent("peer", "").save()


if __name__ == "__main__":
    unittest.main()
