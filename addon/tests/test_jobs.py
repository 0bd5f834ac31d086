# SPDX-License-Identifier: GPL-3.0-or-later
import os
import tempfile
import threading
import time
import unittest

import bare  # noqa: F401
from fake_peer import FakePeer, problem
from vizpeer import client, jobs, pictures


class WithPeer(unittest.TestCase):
    def setUp(self):
        self.peer = FakePeer()
        self.addCleanup(self.peer.close)
        self.model = jobs.Model()

    def find(self):
        return client.find(self.peer.folder, {})

    def until(self, condition, seconds=15):
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            self.assertGreater(left, 0, "it did not come to pass; notice: %s" % (self.model.notice,))
            self.model.drain(min(left, 0.1))


class Submitting(WithPeer):
    def submit(self, size=100):
        folder = tempfile.mkdtemp()
        snapshot = os.path.join(folder, "shot.blend")
        with open(snapshot, "wb") as f:
            f.write(b"B" * size)
        manifest = {"version": 1, "blend": "files/home/ann/shot.blend", "missing": ["/gone.png"]}
        collected = {"manifest": manifest, "files": [{"source": "/home/ann/shot.blend", "path": manifest["blend"]}]}
        job = {"name": "shot", "frames": "1-8", "strict": False}
        submission = jobs.Submission(self.find(), collected, snapshot, job, self.model.post)
        self.model.submission = submission
        submission.start()
        self.addCleanup(lambda: self.assertFalse(os.path.exists(folder)))
        self.addCleanup(submission.join, 10)
        return submission

    def test_to_the_end(self):
        self.submit(3 << 20)
        phases = []

        def over():
            if self.model.progress and self.model.progress.phase not in phases:
                phases.append(self.model.progress.phase)
            return self.model.submission is None

        self.until(over)
        self.assertEqual(self.model.notice, ("CHECKMARK", "shot was submitted: 8 tasks, without 1 missing file"))
        self.assertEqual(self.model.last_job, "jtest1")
        self.assertEqual(self.peer.projects[0]["files/home/ann/shot.blend"], b"B" * (3 << 20))
        self.assertEqual(
            self.peer.requests[-1],
            ("POST", "/v1/jobs", {"name": "shot", "frames": "1-8", "strict": False, "project": "bafyroot"}),
        )

    def test_a_leader_that_goes_away(self):
        gone = problem(503, "no coordinator can be reached", code="no_leader")
        self.peer.answers["POST /v1/jobs"] = [gone, gone]
        pause, jobs.QUEUE_SECONDS = jobs.QUEUE_SECONDS, 0.01
        self.addCleanup(setattr, jobs, "QUEUE_SECONDS", pause)
        self.submit()
        self.until(lambda: self.model.submission is None)
        self.assertEqual(self.model.notice[0], "CHECKMARK")
        self.assertEqual(len(self.peer.keys), 3)
        self.assertEqual(len(set(self.peer.keys)), 1, "it is one job")

    def test_a_job_that_waits(self):
        self.peer.answers["POST /v1/jobs"] = (202, {"job": "j7", "tasks": 2, "missing": [], "waiting": True, "reason": "it waits"})
        self.submit()
        self.until(lambda: self.model.submission is None)
        self.assertEqual(self.model.notice[0], "CHECKMARK")
        self.assertRegex(self.model.notice[1], "^shot waits on this machine, which submits it when a coordinator can be reached. Leave it on: 2 tasks")

    def test_a_refusal_is_shown(self):
        self.peer.answers["POST /v1/jobs"] = problem(422, "the job would have 200000 tasks, more than the 100000 allowed")
        self.submit()
        self.until(lambda: self.model.submission is None)
        self.assertEqual(self.model.notice, ("ERROR", "the job would have 200000 tasks, more than the 100000 allowed"))

    def test_warnings_are_shown(self):
        answer = {"job": "j7", "tasks": 1, "missing": [], "warnings": ["its adaptive sampling is\nswitched off", 7, "and more"]}
        self.peer.answers["POST /v1/jobs"] = (201, answer)
        self.submit()
        self.until(lambda: self.model.submission is None)
        self.assertEqual(self.model.notice[0], "CHECKMARK")
        self.assertRegex(self.model.notice[1], r"^shot was submitted: 1 task.*; its adaptive sampling is switched off; and more$")

    def test_answers_that_name_nothing(self):
        self.peer.answers["POST /v1/projects"] = (200, {"project": 7})
        self.submit(64 << 20)
        self.until(lambda: self.model.submission is None)
        self.assertEqual(self.model.notice[0], "ERROR")

    def test_cancel_while_sending(self):
        self.peer.hold["POST /v1/projects"] = threading.Event()
        submission = self.submit()
        while self.peer.arrived.get(timeout=10) != ("POST", "/v1/projects"):
            pass
        self.assertTrue(submission.cancel())
        self.until(lambda: self.model.submission is None)
        self.assertEqual(self.model.notice[0], "INFO")
        submission.join(10)
        self.assertNotIn("POST /v1/jobs", ["%s %s" % r[:2] for r in self.peer.requests])

    def test_too_late_to_cancel(self):
        self.peer.hold["POST /v1/jobs"] = threading.Event()
        submission = self.submit()
        while self.peer.arrived.get(timeout=10) != ("POST", "/v1/jobs"):
            pass
        self.assertFalse(submission.cancel())
        self.peer.hold["POST /v1/jobs"].set()
        self.until(lambda: self.model.submission is None)
        self.assertEqual(self.model.notice[0], "CHECKMARK")


class Following(WithPeer):
    def follow(self):
        link = jobs.Link(self.find, self.model.post)
        link.start()
        self.addCleanup(lambda: self.assertTrue(link.join(10)))
        self.addCleanup(link.stop)
        return link

    def test_the_farm_and_its_jobs_as_they_change(self):
        first = self.peer.add_job()
        self.follow()
        self.until(lambda: self.model.jobs_known and self.model.farm)
        self.assertEqual(self.model.farm.line, "Local farm attic: 3 peers, 1 busy (1 GPU), leader cellar")
        self.assertEqual((self.model.farm.user, self.model.farm.role), ("ann", "admin"))
        first["state"], first["frames_done"] = "running", 3
        self.peer.event("task.ended", job=first["id"])
        self.until(lambda: self.model.jobs["jtest1"].done == 3)
        self.peer.add_job(name="other")
        self.peer.event("job.submitted")
        self.until(lambda: list(self.model.jobs) == ["jtest2", "jtest1"])

    def test_progress_alone_asks_nothing(self):
        self.follow()
        self.until(lambda: self.model.jobs_known)
        before = len(self.peer.requests)
        for _ in range(50):
            self.peer.event("task.progress")
        self.peer.event("task.granted")
        while len(self.peer.requests) == before:
            self.peer.arrived.get(timeout=10)
        self.assertLessEqual(len(self.peer.requests), before + 2)

    def test_a_peer_that_comes_later_and_goes(self):
        base, live = self.peer.base, []
        self.find = lambda: client.Endpoint(base if live else "http://127.0.0.1:1", "vzk_test_0123456789", "/data")
        link = self.follow()
        self.until(lambda: self.model.offline)
        self.assertEqual(self.model.offline, client.NOT_RUNNING)
        live.append(True)
        link.refresh()
        self.until(lambda: self.model.farm)
        self.peer.close()
        self.until(lambda: self.model.offline)
        self.assertIsNone(self.model.farm)

    def test_commands(self):
        folder = tempfile.mkdtemp()
        job = self.peer.add_job(output=folder)
        link = self.follow()
        self.until(lambda: self.model.jobs_known)
        link.open_output(job["id"])
        self.until(lambda: self.model.outputs == [folder])
        job["output"] = os.path.join(folder, "none")
        link.open_output(job["id"])
        self.until(lambda: "first frame" in self.model.notice[1])
        link.cancel(job["id"])
        self.until(lambda: self.model.jobs[job["id"]].state == "cancelled")
        link.cancel("../../x?y")
        self.until(lambda: "..%2F..%2Fx%3Fy" in self.model.notice[1])

    def test_the_picture_of_the_job_that_is_looked_at(self):
        job = self.peer.add_job(frames=[{"frame": 1, "cid": "x"}, {"frame": 2, "cid": "y"}, {"frame": 3}])
        path = "GET /v1/jobs/%s/frames/" % job["id"]
        self.peer.answers[path + "2"] = (200, jpeg(64, 48) + b"two")
        self.peer.answers[path + "3"] = (200, jpeg(64, 48) + b"three")
        link = self.follow()
        self.until(lambda: self.model.jobs_known)
        self.assertIsNone(self.model.picture, "nobody asked for one")
        link.show(job["id"])
        self.until(lambda: self.model.picture)
        self.assertEqual(self.model.picture, (job["id"], 2, jpeg(64, 48) + b"two"))
        # What is rendered meanwhile is shown as it grows; other jobs' news are not.
        self.peer.event("task.progress", job="other", frame=1, preview={"cid": "p"})
        self.peer.event("task.progress", job=job["id"], frame=3)
        self.peer.event("task.progress", job=job["id"], frame=3, preview={"cid": "p"})
        self.until(lambda: self.model.picture.frame == 3)
        # What is no picture, or too large a one, changes nothing.
        for frame, answer in ((1, (200, jpeg(64, 4800))), (4, (404, b"{}")), (5, (200, jpeg(8, 8)))):
            self.peer.answers["%s%d" % (path, frame)] = answer
            self.peer.event("frame.rendered", job=job["id"], frame=frame)
            while self.peer.arrived.get(timeout=15) != tuple(("%s%d" % (path, frame)).split()):
                pass
        self.until(lambda: self.model.picture.frame == 5)

    def test_without_a_leader_the_farm_is_still_shown(self):
        for path in ("/v1/farm", "/v1/jobs", "/v1/peers", "/v1/events"):
            self.peer.answers["GET " + path] = problem(503, "no coordinator can be reached")
        link = self.follow()
        self.until(lambda: self.model.farm and self.model.jobs_problem)
        self.assertEqual(self.model.farm.line, "Local farm attic")
        self.assertIn("no coordinator can be reached", self.model.jobs_problem)
        self.peer.answers.clear()
        link.refresh()
        self.until(lambda: self.model.jobs_known and not self.model.jobs_problem)

    def test_a_hostile_peer(self):
        self.peer.answers["GET /v1/status"] = (200, {"peer": 5, "farm_name": ["x"], "unkept": -1e300, "leader": None})
        self.peer.answers["GET /v1/farm"] = (200, {"peers": {"idle": "many", "busy": 1e300}, "name": {}})
        self.peer.answers["GET /v1/peers"] = (200, {"peers": [3, {"id": {}}, {"capability": {"gpus": 7}}]})
        self.peer.jobs = [7, None, {"id": 3}, {"id": "j1", "tasks": [], "name": "a\nb" * 999, "state": 8},
                          {"id": "j2", "tasks": {"failed": -3}, "frames_done": 10**19, "frames_total": "x", "created_at": 9}]
        self.peer.jobs += [{"id": "k%d" % n} for n in range(3 * jobs.MAX_JOBS)]
        self.follow()
        self.until(lambda: self.model.jobs_known and self.model.farm)
        self.assertEqual(len(self.model.jobs), jobs.MAX_JOBS)
        self.assertLessEqual(len(self.model.jobs["j1"].name), 200)
        self.assertEqual(self.model.jobs["j2"][6:9], (2**31 - 1, 0, 0))


def jpeg(width, height):
    """What a JPEG of this size begins with."""
    return (
        b"\xff\xd8\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0\xff\xc2\x00\x11\x08"
        + height.to_bytes(2, "big")
        + width.to_bytes(2, "big")
        + b"\x03\1\x22\0\2\x11\1\3\x11\1"
    )


class Pictures(unittest.TestCase):
    def test_sizes(self):
        self.assertEqual(pictures.size(jpeg(320, 180)), (320, 180))
        for data in (b"", b"\xff\xd8", b"\x89PNG", jpeg(320, 180)[:24], b"\xff\xd8\xff\xe0\0\0" * 9, b"\xff\xd8\xff\xc4" * 9):
            self.assertEqual(pictures.size(data), (0, 0), data)

    def test_which_frame_to_see(self):
        frame = lambda n, **more: dict(more, frame=n)
        for want, frames in (
            (None, []),
            (None, "many"),
            (None, [frame("x", cid="c"), 7, frame(True)]),
            (7, [frame(7)]),
            (None, [frame(7), frame(8)]),
            (8, [frame(7, cid="c"), frame(8, cid="c"), frame(9)]),
            (9, [frame(7, cid="c", state="done", units_done=4), frame(9, state="queued", units_done=2), frame(10)]),
        ):
            self.assertEqual(pictures.latest({"frames": frames}), want, frames)


class Words(unittest.TestCase):
    def test_amounts(self):
        still = {"id": "j", "frames_total": 1, "units_done": 312, "units_total": 512, "split": {"by": "samples"}}
        for want, job in (
            ("312 of 512 samples", still),
            ("312 of 512 tiles", dict(still, split={"by": "tiles"})),
            ("1 of 1 frame", dict(still, frames_done=1)),
            ("3 of 24 frames", dict(still, frames_total=24, frames_done=3)),
            ("0 of 2 frames", {"id": "j", "frames_total": 2, "units_total": "x", "split": 3}),
        ):
            self.assertEqual(jobs.amount(jobs.jobs_of({"jobs": [job]})[0]), want)

    def test_roles(self):
        model = jobs.Model()
        job = jobs.jobs_of({"jobs": [{"id": "j", "owner": "bob"}]})[0]
        for role, submit, control in (("admin", True, True), ("operator", True, False), ("viewer", False, False)):
            model.farm = jobs.Farm("", "", "ann", role, "")
            self.assertEqual((model.may_submit(), model.may_control(job)), (submit, control), role)

    def test_sizes_and_durations(self):
        self.assertEqual([jobs.size(n) for n in (0, 1536, 5 << 30, 3 << 40)], ["0 B", "1.5 KiB", "5.0 GiB", "3.0 TiB"])
        self.assertEqual([jobs.duration(n) for n in (8.7, 179, 3900)], ["8 s", "3 min", "1 h 5 min"])


if __name__ == "__main__":
    unittest.main()
