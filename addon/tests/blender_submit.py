# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on in real Blender without a window, against a fake peer.

    BLENDER_USER_SCRIPTS=SCRIPTS blender -b --factory-startup --python-exit-code 3 -P blender_submit.py

SCRIPTS/addons/vizpeer is the add-on.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
import unittest

import addon_utils
import bpy

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from fake_peer import FakePeer, problem  # noqa: E402
from sample import Sample  # noqa: E402


class AddOn(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.root = os.path.realpath(tempfile.mkdtemp(prefix="vizpeer-test-"))
        cls.sample = Sample(os.path.join(cls.root, "project"))

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.root)

    def setUp(self):
        self.peer = FakePeer(tempfile.mkdtemp(dir=self.root))
        os.environ["VIZPEER_DATA_DIR"] = self.peer.folder
        module = addon_utils.enable("vizpeer", default_set=True)
        self.assertIsNotNone(module)
        bpy.ops.wm.open_mainfile(filepath=self.sample.blend)
        from vizpeer import pump

        self.pump = pump
        pump.model.__init__()
        self.settings = bpy.context.scene.vizpeer
        self.settings.render_on = "NETWORK"

    def tearDown(self):
        addon_utils.disable("vizpeer", default_set=True)
        self.peer.close()

    def until(self, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), deadline, "it did not come to pass: %s" % (self.pump.model.notice,))
            self.pump.tick(wait=0.1)

    def submit(self):
        self.assertEqual(bpy.ops.vizpeer.submit(), {"FINISHED"}, self.pump.model.notice)
        self.until(lambda: self.pump.model.submission is None)
        return self.pump.model.notice

    def refused(self, pattern):
        self.assertEqual(bpy.ops.vizpeer.submit(), {"CANCELLED"})
        self.assertRegex(self.pump.model.notice[1], pattern)
        self.assertEqual(self.peer.requests, [])

    def test_enable_and_disable(self):
        self.assertTrue(hasattr(bpy.types, "RENDER_PT_vizpeer"))
        addon_utils.disable("vizpeer", default_set=True)
        for name in ("RENDER_PT_vizpeer", "RENDER_PT_vizpeer_jobs", "VIZPEER_UL_jobs", "VIZPEER_OT_submit"):
            self.assertFalse(hasattr(bpy.types, name), name)
        self.assertFalse(hasattr(bpy.types.Scene, "vizpeer"))
        self.assertFalse([h for h in bpy.app.handlers.load_post if h.__module__.startswith("vizpeer")])
        self.assertFalse([t for t in threading.enumerate() if t.name.startswith("vizpeer") and (t.join(10) or t.is_alive())])
        self.assertIsNotNone(addon_utils.enable("vizpeer", default_set=True))

    def test_the_project_that_is_sent(self):
        self.settings.on_missing = "CONTINUE"
        bpy.context.scene.frame_end = 12  # not saved: the snapshot must hold it
        before = {path: os.stat(path).st_mtime_ns for path in self.sample.files()}
        icon, text = self.submit()
        self.assertEqual((icon, text), ("CHECKMARK", "Übung shot was submitted: 8 tasks, without 1 missing file"))

        project = self.peer.projects[0]
        manifest = json.loads(project.pop("vizpeer.json").decode("utf-8"))
        self.assertEqual(sorted(project), sorted("files" + path for path in self.sample.files()))
        for path in self.sample.files():
            self.assertEqual(os.stat(path).st_mtime_ns, before[path], path)
            if path != self.sample.blend:
                with open(path, "rb") as f:
                    self.assertEqual(project["files" + path], f.read(), path)
        scene = manifest.pop("scene")
        self.assertEqual(scene["picture"]["samples"], bpy.context.scene.cycles.samples)
        self.assertEqual(
            manifest,
            {
                "version": 1,
                "blend": "files" + self.sample.blend,
                "origin": "linux" if sys.platform.startswith("linux") else manifest["origin"],
                "absolute": True,
                "missing": [self.sample.missing],
                "complete": True,
            },
        )
        self.assertEqual(
            (scene["frame_start"], scene["frame_end"], scene["frame_step"], scene["frame_current"]), (1, 12, 1, 3)
        )

        data = project["files" + self.sample.blend]
        self.assertEqual(data[:7], b"BLENDER", "the copy is compressed")
        self.assertEqual([name for name in os.listdir(bpy.app.tempdir) if name.startswith("vizpeer-")], [])
        self.assertEqual(bpy.data.filepath, self.sample.blend)

        method, path, job = self.peer.requests[-1]
        self.assertEqual((method, path), ("POST", "/v1/jobs"))
        self.assertEqual(
            job,
            {
                "name": "Übung shot",
                "project": "bafyroot",
                "frames": "1-12",
                "priority": "normal",
                "split": "auto",
                "needs": {},
                "output": os.path.join(os.path.dirname(self.sample.blend), "frames"),
                "strict": False,
            },
        )
        self.opens_elsewhere(project)

    def opens_elsewhere(self, project):
        """The sent files, unpacked somewhere else, are a .blend whose relative references hold."""
        away = os.path.join(self.root, "away")
        for name, data in project.items():
            path = os.path.join(away, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as f:
                f.write(data)
        hidden = os.path.join(self.root, "hidden")
        os.rename(os.path.join(self.root, "project"), hidden)
        try:
            bpy.ops.wm.open_mainfile(filepath=os.path.join(away, "files" + self.sample.blend))
            self.assertEqual(bpy.context.scene.frame_end, 12)
            self.assertEqual(bpy.context.scene.objects["Kit"].library.filepath, "//../lib/kit.blend")
            self.assertEqual(bpy.data.images["kit.png"].size[:], (4, 4))
            self.assertEqual(bpy.data.images["wood.png"].size[:], (4, 4))
            self.assertEqual(bpy.data.images["wood.png"].filepath, "//tex/wood.png")
        finally:
            os.rename(hidden, os.path.join(self.root, "project"))

    def test_everything_that_can_be_asked_for(self):
        s = self.settings
        s.on_missing = "CONTINUE"
        s.frames_from, s.frames = "CUSTOM", " 1-40,50,60-80x2 "
        s.tier, s.output = "URGENT", os.path.join(self.root, "out")
        s.split = "TILES"
        s.backend, s.require_gpu, s.gpu_vendor = "CUDA", True, "NVIDIA"
        s.min_vram, s.min_ram = 8, 1.5
        s.system, s.labels, s.blender = "darwin", "fast, attic ,,fast", " Any "
        self.submit()
        job = self.peer.requests[-1][2]
        self.assertEqual((job["frames"], job["priority"], job["output"]), ("1-40,50,60-80x2", "urgent", s.output))
        self.assertEqual(job["split"], "tiles")
        self.assertEqual(
            job["needs"],
            {
                "backend": "CUDA",
                "require_gpu": True,
                "gpu_vendor": "NVIDIA",
                "min_vram": 8 << 30,
                "min_ram": 3 << 29,
                "os": "darwin",
                "labels": ["fast", "attic"],
                "blender": "any",
            },
        )

    def test_the_current_frame(self):
        self.settings.on_missing, self.settings.frames_from = "CONTINUE", "CURRENT"
        self.submit()
        self.assertEqual(self.peer.requests[-1][2]["frames"], "3")

    def test_missing_files(self):
        self.refused("1 file is missing")
        self.assertEqual(self.pump.model.missing, [self.sample.missing])
        self.assertEqual(bpy.ops.vizpeer.check_files(), {"FINISHED"})
        self.assertEqual(self.pump.model.checked, "%d files found" % len(self.sample.files()))
        bpy.data.images.remove(bpy.data.images["gone.png"])
        bpy.ops.vizpeer.check_files()
        self.assertEqual(self.pump.model.missing, [])
        self.assertEqual(self.submit()[0], "CHECKMARK")
        self.assertTrue(self.peer.requests[-1][2]["strict"])

    def test_a_painted_image_that_was_not_saved(self):
        bpy.data.images.remove(bpy.data.images["gone.png"])
        image = bpy.data.images["wood.png"]
        image.pixels[0] = 0.25
        image.update()
        self.refused("1 file is missing or not saved")
        self.assertEqual(self.pump.model.unsaved, ["wood.png"])

    def test_what_is_refused_at_once(self):
        self.settings.on_missing, self.settings.frames_from = "CONTINUE", "CUSTOM"
        self.settings.frames = "9-1"
        self.refused("inverted")
        self.settings.frames, self.settings.output = "1", " "
        self.refused("output folder")
        bpy.ops.wm.read_homefile(use_factory_startup=True)
        self.refused("Save the .blend first")

    def test_no_peer(self):
        self.settings.on_missing = "CONTINUE"
        with open(os.path.join(self.peer.folder, "api"), "w") as f:
            f.write("http://127.0.0.1:1\n")
        self.assertEqual(
            self.submit(), ("ERROR", "No vizpeer is running on this machine: start it with `vizpeer up`")
        )
        self.pump.link()
        self.until(lambda: self.pump.model.offline)

    def test_the_peer_refuses(self):
        self.settings.on_missing = "CONTINUE"
        self.peer.answers["POST /v1/jobs"] = problem(403, "this is for admins and operators, and you are viewer")
        self.assertEqual(self.submit(), ("ERROR", "this is for admins and operators, and you are viewer"))

    def test_cancel(self):
        self.settings.on_missing = "CONTINUE"
        self.peer.hold["POST /v1/projects"] = threading.Event()
        bpy.ops.vizpeer.submit()
        while self.peer.arrived.get(timeout=20) != ("POST", "/v1/projects"):
            pass
        with self.assertRaises(RuntimeError):  # one at a time
            bpy.ops.vizpeer.submit()
        bpy.ops.vizpeer.cancel_submission()
        self.until(lambda: self.pump.model.submission is None)
        self.assertEqual(self.pump.model.notice[0], "INFO")

    def test_the_list_follows_the_farm(self):
        state = bpy.context.window_manager.vizpeer
        self.peer.add_job(name="first")
        self.pump.link()
        self.until(lambda: len(state.jobs) == 1)
        self.settings.on_missing = "CONTINUE"
        self.submit()
        self.until(lambda: len(state.jobs) == 2)
        self.assertEqual(state.jobs[state.job].name, "jtest2")
        bpy.ops.vizpeer.cancel_job()
        self.until(lambda: self.pump.model.jobs["jtest2"].state == "cancelled")
        with self.assertRaises(RuntimeError):  # it has ended
            bpy.ops.vizpeer.cancel_job()
        self.peer.jobs[0]["frames_done"] = 5
        self.assertEqual(bpy.ops.vizpeer.refresh(), {"FINISHED"})
        self.until(lambda: self.pump.model.jobs["jtest1"].done == 5)
        bpy.ops.wm.open_mainfile(filepath=self.sample.blend)
        self.assertEqual([row.name for row in bpy.context.window_manager.vizpeer.jobs], ["jtest2", "jtest1"])

    def test_the_picture_of_the_selected_job(self):
        image = bpy.data.images.new("small", 32, 16)
        image.file_format, image.filepath_raw = "JPEG", os.path.join(self.root, "small.jpg")
        image.save()
        with open(image.filepath_raw, "rb") as f:
            data = f.read()
        job = self.peer.add_job(name="still", frames_total=1, frames=[{"frame": 7}], split={"by": "samples"}, units_total=512)
        self.peer.answers["GET /v1/jobs/%s/frames/7" % job["id"]] = (200, data)
        self.pump.seen()
        self.addCleanup(setattr, self.pump, "_seen", 0.0)
        self.until(lambda: self.pump.model.picture)
        self.assertEqual(self.pump.model.picture, (job["id"], 7, data))
        self.assertEqual(self.pump.picture(job["id"])[1], "Frame 7")
        self.assertEqual(self.pump.picture("jother"), (0, ""))
        shown = self.pump._previews["picture"]
        self.assertEqual(shown.image_size[0], 2 * shown.image_size[1])
        self.assertEqual([name for name in os.listdir(bpy.app.tempdir) if name.endswith(".jpg")], [])
        from vizpeer import pictures

        self.pump.model.picture = pictures.Picture(job["id"], 7, b"no picture")
        self.pump._load()
        self.assertEqual(self.pump.picture(job["id"])[1], "Frame 7")

    def test_the_data_folder_of_the_preferences(self):
        del os.environ["VIZPEER_DATA_DIR"]
        bpy.context.preferences.addons["vizpeer"].preferences.data_folder = self.peer.folder
        self.pump.link()
        self.until(lambda: self.pump.model.farm)
        self.assertIn("attic", self.pump.model.farm.line)

    def test_the_ca_of_the_preferences(self):
        chosen = bpy.context.preferences.addons["vizpeer"].preferences
        os.environ["VIZPEER_API"] = "https://127.0.0.1:1"
        try:
            chosen.ca_file = "/somewhere/ca.crt"
            self.pump._read_preferences()
            self.assertEqual(self.pump.find()[3:], ("/somewhere/ca.crt", ""))
            chosen.ca_file, chosen.ca_fingerprint = "", "AB:" * 31 + "AB"
            self.pump._read_preferences()
            self.assertEqual(self.pump.find()[3:], ("", "ab" * 32))
        finally:
            chosen.ca_file = chosen.ca_fingerprint = ""
            del os.environ["VIZPEER_API"]


if __name__ == "__main__":
    result = unittest.main(argv=[__file__] + sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else [__file__], exit=False)
    sys.exit(0 if result.result.wasSuccessful() else 1)
