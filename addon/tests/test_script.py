# SPDX-License-Identifier: GPL-3.0-or-later
"""submit_and_wait.py as other tests use it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import bare
from fake_peer import FakePeer, problem

BLENDER = shutil.which(os.environ.get("BLENDER", "blender"))
HERE = os.path.dirname(os.path.abspath(__file__))


@unittest.skipUnless(BLENDER, "Blender is not installed")
class Script(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        os.makedirs(os.path.join(self.folder, "scripts", "addons"))
        os.symlink(bare.ADDON, os.path.join(self.folder, "scripts", "addons", "vizpeer"))
        self.peer = FakePeer(self.folder)
        self.addCleanup(self.peer.close)

    def submit(self, **wanted):
        """The exit code and the document of a submission of the startup scene."""
        blend = os.path.join(self.folder, "shot.blend")
        done = subprocess.run(
            [BLENDER, "-b", "--factory-startup", "-noaudio", "--python-exit-code", "3"]
            + ["--python-expr", "import bpy; bpy.ops.wm.save_as_mainfile(filepath=%r)" % blend]
            + ["-P", os.path.join(HERE, "submit_and_wait.py")],
            env=dict(
                os.environ,
                # A Blender that uses the system's Python would take up the one that runs this test.
                PATH=os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not p.startswith(sys.prefix + os.sep)),
                VIZPEER_SUBMIT=json.dumps(wanted),
                VIZPEER_DATA_DIR=self.peer.folder,
                BLENDER_USER_SCRIPTS=os.path.join(self.folder, "scripts"),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=100,
        )
        text = done.stdout.decode("utf-8", "replace")
        lines = [line for line in text.splitlines() if line.startswith("VIZ ")]
        self.assertEqual(len(lines), 1, text)
        return done.returncode, json.loads(lines[0][4:])

    def test_a_job(self):
        code, said = self.submit(frames_from="CUSTOM", frames="1-8", tier="HIGH", output=self.folder)
        self.assertEqual((code, said["event"], said["job"], said["project"]), (0, "submitted", "jtest1", "bafyroot"), said)
        job = self.peer.requests[-1][2]
        self.assertEqual((job["frames"], job["priority"], job["output"]), ("1-8", "high", self.folder))

    def test_a_refusal(self):
        self.peer.answers["POST /v1/jobs"] = problem(409, "you have 1000 open jobs")
        code, said = self.submit()
        self.assertEqual((code, said), (1, {"event": "failed", "text": "you have 1000 open jobs"}))


if __name__ == "__main__":
    unittest.main()
