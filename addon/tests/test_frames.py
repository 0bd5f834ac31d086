# SPDX-License-Identifier: GPL-3.0-or-later
import unittest

import bare  # noqa: F401
from vizpeer import frames


class Frames(unittest.TestCase):
    def test_lists(self):
        for text, count in (("1", 1), ("1-40", 40), ("1-40,50,60-80x2", 52), ("-5--1", 5), ("1-10,5-12", 12),
                            (" 1-3 , 7 ", 4), ("-1048574-1048574", 2097149)):
            self.assertEqual(frames.count(text), count, text)

    def test_mistakes(self):
        for text, word in (("", "empty"), ("40-1", "inverted"), ("1-4x0", "step"), ("a", "not a frame"), ("1,,2", "not a frame"),
                           ("1-9999999", "limits"), ("1-2-3", "not a frame"), (",".join(["1"] * 10001), "more than")):
            with self.assertRaisesRegex(ValueError, word):
                frames.count(text)

    def test_of_a_scene(self):
        self.assertEqual(frames.of_scene(1, 40, 1), "1-40")
        self.assertEqual(frames.of_scene(-3, 40, 2), "-3-40x2")
        self.assertEqual(frames.of_scene(7, 7, 2), "7")


if __name__ == "__main__":
    unittest.main()
