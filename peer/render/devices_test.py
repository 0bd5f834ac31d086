# SPDX-License-Identifier: Apache-2.0
"""Tests devices.py with a stand-in for Blender's preferences:

    python3 devices_test.py
"""

import unittest
from types import SimpleNamespace

import devices

# Two equal cards, in the order in which the CUDA driver may list them: the one
# with a display comes last.
CUDA0, CUDA1 = "CUDA_NVIDIA RTX A4000_0000:01:00", "CUDA_NVIDIA RTX A4000_0000:41:00"
OPTIX0, OPTIX1 = CUDA0 + "_OptiX", CUDA1 + "_OptiX"
MACHINE = {
    "CUDA": [(CUDA1, "NVIDIA RTX A4000"), (CUDA0, "NVIDIA RTX A4000 (Display)")],
    "OPTIX": [(OPTIX1, "NVIDIA RTX A4000"), (OPTIX0, "NVIDIA RTX A4000 (Display)")],
    "HIP": [],
}


class Preferences:
    """Those of Cycles, in a build that knows the given backends."""

    def __init__(self, machine):
        self._machine, self._kind, self.devices = machine, "NONE", []

    @property
    def compute_device_type(self):
        return self._kind

    @compute_device_type.setter
    def compute_device_type(self, kind):
        if kind != "NONE" and kind not in self._machine:
            raise TypeError("enum %r not found" % kind)
        self._kind = kind

    def refresh_devices(self):
        # As Blender: those of every kind, once each, and all but the CPU in use until
        # somebody says otherwise.
        for kind, found in list(self._machine.items()) + [("CPU", [("CPU", "AMD Ryzen")])]:
            for ident, name in found:
                if not any(d.id == ident and d.type == kind for d in self.devices):
                    self.devices.append(SimpleNamespace(id=ident, name=name, type=kind, use=kind != "CPU"))


def choose(backends=None, gpu=False, ids=None, osl=False, machine=MACHINE):
    """What would be rendered on: the name, and the IDs in use."""
    preferences = Preferences(machine)
    bpy = SimpleNamespace(context=SimpleNamespace(preferences=SimpleNamespace(
        addons={"cycles": SimpleNamespace(preferences=preferences)})))
    scene = SimpleNamespace(cycles=SimpleNamespace(device="?", shading_system=osl))
    name = devices.choose(bpy, scene, backends, gpu, ids)
    if scene.cycles.device == "CPU":
        return name, ["CPU"]
    return name, [d.id for d in preferences.devices if d.use]


class Choice(unittest.TestCase):
    def test_without_a_device_all_of_the_best_kind(self):
        self.assertEqual(choose(), ("OPTIX NVIDIA RTX A4000", [OPTIX1, OPTIX0]))
        self.assertEqual(choose(["CUDA"]), ("CUDA NVIDIA RTX A4000", [CUDA1, CUDA0]))
        self.assertEqual(choose(["HIP"]), ("CPU", ["CPU"]))
        with self.assertRaisesRegex(devices.Unavailable, "no device for HIP on this machine"):
            choose(["HIP"], gpu=True)

    def test_one_of_two_equal_cards(self):
        for optix, cuda in ((OPTIX0, CUDA0), (OPTIX1, CUDA1)):
            ids = {"OPTIX": optix, "CUDA": cuda}
            self.assertEqual(choose(ids=ids)[1], [optix])
            self.assertEqual(choose(["OPTIX", "CUDA"], gpu=True, ids=ids)[1], [optix])
            self.assertEqual(choose(["CUDA"], gpu=True, ids=ids)[1], [cuda])
            self.assertEqual(choose(ids={"CUDA": cuda})[1], [cuda], "a card that has no OptiX")

    def test_nothing_but_that_card(self):
        gone = {"OPTIX": "CUDA_NVIDIA RTX A4000_0000:99:00_OptiX"}
        for gpu in (False, True):
            with self.assertRaisesRegex(devices.Unavailable, "does not find the GPU any more .*0000:99:00"):
                choose(gpu=gpu, ids=gone)
        with self.assertRaises(devices.Unavailable):
            choose(["HIP"], ids={"CUDA": CUDA0, "OPTIX": OPTIX0})
        with self.assertRaises(devices.Unavailable):
            choose(ids={"METAL": "METAL_Apple M1"})

    def test_the_processor(self):
        self.assertEqual(choose(["CPU"]), ("CPU", ["CPU"]))
        with self.assertRaises(devices.Unavailable):
            choose(["CPU"], gpu=True)

    def test_what_only_the_processor_can(self):
        self.assertEqual(choose(osl=True, ids={"OPTIX": OPTIX0}), ("CPU", ["CPU"]))
        self.assertEqual(choose(osl=True, gpu=True, ids={"OPTIX": OPTIX0})[1], [OPTIX0])


if __name__ == "__main__":
    unittest.main()
