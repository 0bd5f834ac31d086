# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold of the add-on's files themselves."""

import ast
import filecmp
import os
import re
import sys
import unittest

from bare import ADDON

SOURCES = sorted(name for name in os.listdir(ADDON) if name.endswith(".py"))
STANDARD = set(
    "collections functools hashlib http json os queue random re select shutil signal socket ssl stat sys tarfile tempfile textwrap threading time unicodedata urllib uuid".split()
)
WITHOUT_BPY = ("client.py", "frames.py", "jobs.py", "sent.py", "upload.py")


def read(name):
    with open(os.path.join(ADDON, name), encoding="utf-8") as f:
        return f.read()


class Package(unittest.TestCase):
    def test_the_collector_is_the_peers_own(self):
        other = os.path.join(ADDON, "..", "..", "peer", "render", "collect.py")
        if not os.path.exists(other):
            self.skipTest("the add-on is not in vizpeer's own tree")
        self.assertTrue(
            filecmp.cmp(os.path.join(ADDON, "collect.py"), other, shallow=False),
            "addon/vizpeer/collect.py and peer/render/collect.py must be the same file: copy the newer over the older",
        )

    def test_only_the_standard_library_and_bpy(self):
        for name in SOURCES:
            for node in ast.walk(ast.parse(read(name))):
                modules = []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    modules = [node.module]
                for module in modules:
                    top = module.split(".")[0]
                    self.assertTrue(top in STANDARD or top == "bpy" and name not in WITHOUT_BPY, "%s: %s" % (name, module))

    @unittest.skipIf(sys.version_info < (3, 8), "this Python reads no other syntax anyway")
    def test_the_syntax_of_old_blenders(self):
        for name in SOURCES:
            ast.parse(read(name), name, feature_version=(3, 7))

    def test_licences(self):
        for name in SOURCES:
            licence = "Apache-2.0" if name == "collect.py" else "GPL-3.0-or-later"
            self.assertTrue(read(name).startswith("# SPDX-License-Identifier: %s\n" % licence), name)
        self.assertIn("GNU GENERAL PUBLIC LICENSE", read("LICENSE"))

    def test_both_manifests_tell_the_same_version(self):
        version = re.search(r'^version = "(\d+)\.(\d+)\.(\d+)"$', read("blender_manifest.toml"), re.M).groups()
        self.assertIn('"version": (%s, %s, %s)' % version, read("__init__.py"))


if __name__ == "__main__":
    unittest.main()
