# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens in the background, and what the panel knows of it.

Two kinds of threads work here: a Submission sends one project and submits its
job; a Link follows the farm while somebody looks. Neither touches bpy. They post
to a queue; Blender's main thread drains it into the Model, which is all that the
panel reads.
"""

import collections
import os
import queue
import random
import shutil
import threading
import time
import urllib.parse
import uuid

from . import client, pictures, sent, upload

MAX_JOBS = 1000  # that the panel lists, the newest first
ENDED = ("done", "failed", "cancelled")

# An event is followed by others: wait this long before asking what has changed.
SETTLE_SECONDS = 0.3
BACKOFF_SECONDS = (1, 2, 4, 8, 15, 30)
PROGRESS_SECONDS = 0.2
# Where nobody leads the queue, somebody does within seconds.
QUEUE_TRIES = 15
QUEUE_SECONDS = 2

Job = collections.namedtuple("Job", "id name state reason tier owner done total failed created units units_total by")
Progress = collections.namedtuple("Progress", "phase sent total eta")
Farm = collections.namedtuple("Farm", "line warning user role peer")


class Model:
    """What the panel draws. Only Blender's main thread may touch it."""

    def __init__(self):
        self.posted = queue.Queue()  # of (kind, value), put there by any thread
        self.farm = None  # None until the peer has answered
        self.offline = ""  # why there is no farm, in words
        self.jobs = collections.OrderedDict()  # by ID
        self.jobs_known = False
        self.jobs_problem = ""
        self.submission = None  # the Submission under way
        self.progress = None
        self.notice = ("", "")  # icon and text of what happened last
        self.missing = []
        self.unsaved = []
        self.checked = ""  # what the last look at the files found, in words
        self.picture = None  # the pictures.Picture that came last
        self.outputs = []  # folders to open, asked for by the artist
        self.last_job = ""

    def post(self, kind, value=None):
        """Takes news from any thread."""
        self.posted.put((kind, value))

    def drain(self, wait=0.0):
        """Takes in everything posted; tells whether there was anything.

        Where there is nothing yet, it waits up to so many seconds for it.
        """
        news = False
        while True:
            try:
                kind, value = self.posted.get(block=wait > 0 and not news, timeout=wait)
            except queue.Empty:
                return news
            news = True
            getattr(self, "_on_" + kind)(value)

    def may_submit(self):
        """Unknown roles may try: the peer decides, not the panel."""
        return self.farm is None or self.farm.role not in ("viewer", "node")

    def may_control(self, job):
        if self.farm is None or self.farm.role in ("viewer", "node"):
            return False
        return self.farm.role != "operator" or job.owner == self.farm.user

    def _on_farm(self, farm):
        self.farm, self.offline = farm, ""

    def _on_offline(self, text):
        self.farm, self.offline = None, text

    def _on_jobs(self, jobs):
        self.jobs = collections.OrderedDict((job.id, job) for job in jobs)
        self.jobs_known, self.jobs_problem = True, ""

    def _on_jobless(self, text):
        self.jobs_problem = text

    def _on_progress(self, progress):
        if self.submission is not None:
            self.progress = progress

    def _on_submitted(self, answer):
        self._submission_over()
        self.last_job = answer["job"]
        self.notice = ("CHECKMARK", answer["text"])

    def _on_failed(self, text):
        self._submission_over()
        self.notice = ("ERROR", text)

    def _on_cancelled(self, text):
        self._submission_over()
        self.notice = ("INFO", text)

    def _on_notice(self, notice):
        self.notice = notice

    def _on_picture(self, picture):
        self.picture = picture

    def _on_output(self, folder):
        self.outputs.append(folder)

    def _submission_over(self):
        self.submission, self.progress = None, None


class Submission(threading.Thread):
    """Sends one project to the peer and submits its job.

    It ends with exactly one of "submitted", "failed" and "cancelled", and removes
    the folder that holds the snapshot.
    """

    def __init__(self, endpoint, collected, snapshot, job, post):
        super().__init__(name="vizpeer-submission", daemon=True)
        self._client = client.Client(endpoint)
        self._collected = collected
        self._snapshot = snapshot
        self._job = job  # the body of POST /v1/jobs, less the project
        self._post = post
        self._lock = threading.Lock()
        self._cancelled = False
        self._committed = False  # the job is on its way to the queue: too late to cancel here

    def cancel(self):
        """Stops the sending; False where the job is already being queued."""
        with self._lock:
            if self._committed:
                return False
            self._cancelled = True
        self._client.close()
        return True

    def run(self):
        kind, news = self._outcome()
        shutil.rmtree(os.path.dirname(self._snapshot), ignore_errors=True)
        self._post(kind, news)

    def _outcome(self):
        try:
            return "submitted", self._submit()
        except client.Stopped:
            return "cancelled", "The submission was cancelled; nothing was queued"
        except client.Problem as problem:
            return "failed", str(problem)
        except Exception as error:  # a thread that died in silence would leave the bar standing for ever
            return "failed", "The add-on failed (%s: %s)" % (type(error).__name__, client.clean(error))

    def _submit(self):
        self._post("progress", Progress("Checking files", 0, 0, None))
        known = sent.Sent(client.clean(self._client.get("/v1/status").get("peer", ""), 100))
        plan = upload.plan(self._collected, self._snapshot, known)
        plan, project = self._upload(plan)
        upload.remember(plan, project.get("receipts"), known)
        root = project.get("project")
        if not isinstance(root, str) or not root:
            raise client.Problem("vizpeer took the project but did not name it: are both of the same version?")
        with self._lock:
            if self._cancelled:
                raise client.Stopped()
            self._committed = True
        self._post("progress", Progress("Queueing", plan.total, plan.total, None))
        answer = self._queue(root)
        job = client.clean(answer.get("job", ""), 64)
        if not job:
            raise client.Problem("vizpeer took the job but did not name it: look for it in the list below")
        tasks = _number(answer.get("tasks"))
        text = "%s was submitted" if answer.get("waiting") is not True else (
            "%s waits on this machine, which submits it when a coordinator can be reached. Leave it on"
        )
        text = "%s: %d task%s" % (text % client.clean(self._job["name"], 60), tasks, "" if tasks == 1 else "s")
        missing = len(plan.manifest.get("missing") or ())
        if missing:
            text += ", without %d missing file%s" % (missing, "" if missing == 1 else "s")
        warnings = answer.get("warnings")
        warnings = map(_text, warnings if isinstance(warnings, list) else ())
        text = "; ".join([text] + [warning for warning in warnings if warning])
        return {"job": job, "tasks": tasks, "text": text, "project": root}


    def _queue(self, root):
        """Submits the job, again where the leader went away; the key makes it one job."""
        key = uuid.uuid4().hex
        for left in reversed(range(QUEUE_TRIES)):
            try:
                return self._client.post("/v1/jobs", dict(self._job, project=root), key)
            except client.Problem as problem:
                if problem.status != 503 or not left:
                    raise
            time.sleep(QUEUE_SECONDS)

    def _upload(self, plan):
        """Sends the project; answers the plan as it was sent, and the peer's answer."""
        path = "/v1/projects"
        if len(plan.entries) <= upload.MAX_RECEIPTS:
            path += "?receipts=true"
        for left in reversed(range(upload.TRIES)):
            meter = _Meter(plan.total, self._post)
            try:
                return plan, self._client.upload(path, upload.CONTENT_TYPE, meter.watch(upload.tar(plan, meter.sent)))
            except client.Problem as problem:
                if problem.code != "lacking" or not left:
                    raise
                plan = upload.without(plan, problem.lacks if left > 1 else None)


class _Meter:
    """Turns bytes sent into progress with a guess of the time left."""

    def __init__(self, total, post):
        self._total, self._post = total, post
        self._began = time.monotonic()
        self._told = 0.0
        self._sent = 0

    def sent(self, size):
        self._sent = size
        now = time.monotonic()
        if now - self._told < PROGRESS_SECONDS:
            return
        self._told = now
        passed = now - self._began
        eta = (self._total - size) * passed / size if size and passed > 1 else None
        self._post("progress", Progress("Sending", size, self._total, eta))

    def watch(self, pieces):
        """Passes pieces on, and says when all are gone and the peer works alone."""
        self._post("progress", Progress("Sending", 0, self._total, None))
        for piece in pieces:
            yield piece
        self._post("progress", Progress("Storing", self._total, self._total, None))


class Link:
    """Follows the farm: what it is, and the jobs, as the peer's events tell.

    Nothing is asked on a timer: an event, or the artist, makes it ask again. A
    lost peer is tried again at growing intervals.
    """

    def __init__(self, find, post):
        self._find = find  # answers an Endpoint or raises a Problem
        self._post = post
        self._inbox = queue.Queue()  # of (kind, value): events, requests, the end
        self._lock = threading.Lock()
        self._client = None
        self._stopping = False
        self._shown = ""  # the job whose picture is wanted
        self._thread = threading.Thread(target=self._run, name="vizpeer-link", daemon=True)

    def start(self):
        self._thread.start()

    def stop(self):
        """Ends the link; its threads are gone soon after."""
        with self._lock:
            self._stopping = True
            if self._client is not None:
                self._client.close()
        self._inbox.put(("stop", None))

    def join(self, seconds):
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def refresh(self):
        self._inbox.put(("refresh", None))

    def show(self, job):
        """From now on, the picture of this job is wanted; "" for none."""
        if job != self._shown:
            self._shown = job
            self._inbox.put(("picture", (job, None)))

    def cancel(self, job):
        self._inbox.put(("cancel", job))

    def open_output(self, job):
        self._inbox.put(("output", job))

    def _run(self):
        failures = 0
        while not self._stopping:
            try:
                began = time.monotonic()
                self._follow()
            except client.Stopped:
                return
            except client.Problem as problem:
                self._post("offline", str(problem))
            except Exception as error:  # whatever an answer held, the panel lives on
                self._post("offline", "vizpeer's answer cannot be used (%s)" % client.clean(error))
            failures = 0 if time.monotonic() - began > BACKOFF_SECONDS[-1] else failures + 1
            if not self._pause(failures):
                return

    def _pause(self, failures):
        """Waits before the next try, shorter if the artist asks; False at the end."""
        wait = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1] if failures else 0.1
        deadline = time.monotonic() + wait * random.uniform(0.8, 1.2)
        while True:
            try:
                kind, _ = self._inbox.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                return True
            if kind == "stop":
                return False
            if kind in ("refresh", "cancel", "output"):
                return True

    def _follow(self):
        """Stays with one peer until it is lost."""
        endpoint = self._find()
        with self._lock:
            if self._stopping:
                raise client.Stopped()
            self._client = api = client.Client(endpoint)
        opened = queue.Queue()
        reader = threading.Thread(
            target=self._read, args=(api, opened), name="vizpeer-events", daemon=True
        )
        reader.start()
        show = pictures.Show(api, self._post)
        show.start()
        try:
            # The stream is open before the first look, so that nothing falls between the two.
            error = opened.get()
            if isinstance(error, client.Problem) and error.status not in (0, 401):
                # The peer is there but the queue is not, as while a leader is elected.
                self._post("farm", _farm(api, api.get("/v1/status")))
                self._post("jobless", "The jobs cannot be listed: %s" % error)
                return
            if error is not None:
                raise error
            self._look(api, everything=True)
            if self._shown:
                show.want(self._shown)
            while True:
                kind, value = self._inbox.get()
                if kind == "event":
                    self._look(api, everything=self._settle([value]))
                elif kind == "refresh":
                    self._look(api, everything=True)
                elif kind == "picture":
                    if value[0] and value[0] == self._shown:
                        show.want(*value)
                elif kind in ("cancel", "output"):
                    self._do(api, kind, value)
                elif kind == "closed" and value[0] is api:
                    if value[1] is not None:
                        raise value[1]
                    return
                elif kind == "stop":
                    raise client.Stopped()
        finally:
            show.stop()
            api.close()

    def _read(self, api, opened):
        """The events' own thread: hands them to the link, and says when they end."""
        error = None
        try:
            for kind, event in api.events():
                if kind == "open":
                    opened.put(None)
                    continue
                if event.get("job") == self._shown and (kind == "frame.rendered" or event.get("preview")):
                    frame = event.get("frame")  # the movie, which has a number too, has a picture as well
                    self._inbox.put(("picture", (self._shown, frame if isinstance(frame, int) else None)))
                if kind != "task.progress":
                    self._inbox.put(("event", kind))
        except (client.Problem, client.Stopped) as lost:
            error = lost
        except Exception as lost:
            error = client.Problem("vizpeer's events cannot be read (%s)" % client.clean(lost))
        opened.put(error)
        self._inbox.put(("closed", (api, error)))

    def _settle(self, kinds):
        """Gathers the events that follow; tells whether they concern the machines too."""
        deadline = time.monotonic() + SETTLE_SECONDS
        later = []
        while True:
            try:
                kind, value = self._inbox.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if kind == "event":
                kinds.append(value)
            else:
                later.append((kind, value))
                if kind == "stop":
                    break
        for item in later:
            self._inbox.put(item)
        return any(kind.startswith("peer.") for kind in kinds)

    def _look(self, api, everything):
        if everything:
            self._post("farm", _farm(api, api.get("/v1/status")))
        try:
            self._post("jobs", jobs_of(api.get("/v1/jobs")))
        except client.NoPeer:
            raise
        except client.Problem as problem:
            self._post("jobless", "The jobs cannot be listed: %s" % problem)

    def _do(self, api, what, job):
        path = "/v1/jobs/" + urllib.parse.quote(job, safe="")
        try:
            if what == "cancel":
                api.post(path + "/cancel")
                self._post("notice", ("INFO", "The job was cancelled"))
                self._look(api, everything=False)
            else:
                self._post("output", _output(api.get(path), api.get("/v1/status").get("peer")))
        except client.NoPeer:
            raise
        except client.Problem as problem:
            self._post("notice", ("ERROR", str(problem)))


def _output(job, peer):
    folder = job.get("output")
    if not isinstance(folder, str) or not folder:
        raise client.Problem("The job has no output folder: get its frames with `vizpeer job frames`")
    if job.get("submitter") not in (None, "", peer):
        raise client.Problem("The frames are written to another machine, the one that submitted the job")
    if not os.path.isabs(folder) or not os.path.isdir(folder):
        raise client.Problem("%s is not there yet: it is made when the first frame arrives" % client.clean(folder))
    return folder


def _farm(api, status):
    """The farm in one line, from what the peer says of itself and of the farm."""
    peer = _text(status.get("peer"))
    name = _text(status.get("farm_name")) or "without a name"
    user = role = ""
    try:
        who = api.get("/v1/auth/whoami")
        user, role = _text(who.get("user")), _text(who.get("role"))
    except client.NoPeer:
        raise
    except client.Problem as problem:
        if problem.status == 401:
            raise
    warning = ""
    unkept = _number(status.get("unkept"))
    if unkept:
        warning = "Leave this machine on: %d finished frame%s only here" % (unkept, " is" if unkept == 1 else "s are")
    waiting = _number(status.get("waiting"))
    if waiting:
        warning = "Leave this machine on: it has %d job%s to submit" % (waiting, "" if waiting == 1 else "s")
    leader = _text(status.get("leader"))
    if not leader and not waiting:
        warning = "No coordinator can be reached: jobs wait until one is back"
    try:
        farm = api.get("/v1/farm")
    except client.NoPeer:
        raise
    except client.Problem:
        return Farm("Local farm %s" % name, warning, user, role, peer)
    counts = farm.get("peers")
    counts = counts if isinstance(counts, dict) else {}
    live = sum(_number(n) for state, n in counts.items() if state != "offline")
    busy = _number(counts.get("busy"))
    line = "Local farm %s: %d peer%s" % (_text(farm.get("name")) or name, live, "" if live == 1 else "s")
    line += ", %d busy" % busy if busy else ""
    machines = _machines(api, role)
    gpus = sum(len(m["capability"]["gpus"]) for m in machines.values() if m["state"] != "offline")
    line += " (%d GPU%s)" % (gpus, "" if gpus == 1 else "s") if gpus else ""
    if leader == peer:
        line += ", led by this machine"
    elif leader:
        line += ", leader %s" % (machines[leader]["name"] if leader in machines else leader[-8:])
    return Farm(line, warning, user, role, peer)


def _machines(api, role):
    """The machines by ID, where the role may see them."""
    if role not in ("", "admin"):
        return {}
    try:
        listed = api.get("/v1/peers").get("peers")
    except client.NoPeer:
        raise
    except client.Problem:
        return {}
    machines = {}
    for item in listed if isinstance(listed, list) else ():
        if not isinstance(item, dict):
            continue
        capability = item.get("capability")
        gpus = capability.get("gpus") if isinstance(capability, dict) else None
        machines[_text(item.get("id"))] = {
            "name": _text(item.get("name")),
            "state": _text(item.get("state")),
            "capability": {"gpus": gpus if isinstance(gpus, list) else []},
        }
    return machines


def jobs_of(doc):
    """The jobs of an answer of GET /v1/jobs, the newest first."""
    listed = doc.get("jobs")
    jobs = []
    for item in listed if isinstance(listed, list) else ():
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            continue
        tasks = item.get("tasks")
        tasks = tasks if isinstance(tasks, dict) else {}
        jobs.append(
            Job(
                id=_text(item["id"]),
                name=_text(item.get("name")) or _text(item["id"]),
                state=_text(item.get("state")),
                reason=_text(item.get("reason"), 500),
                tier=_text(item.get("tier")),
                owner=_text(item.get("owner")),
                done=_number(item.get("frames_done")),
                total=_number(item.get("frames_total")),
                failed=_number(tasks.get("failed")),
                created=_text(item.get("created_at")),
                units=_number(item.get("units_done")),
                units_total=_number(item.get("units_total")),
                by=_text(item["split"].get("by")) if isinstance(item.get("split"), dict) else "",
            )
        )
    jobs.sort(key=lambda job: job.created, reverse=True)
    return jobs[:MAX_JOBS]


def counts(job):
    """How much of a job is there, of how much, and of what: of one frame in parts, those."""
    if job.units_total and job.total == 1 and not job.done:
        return job.units, job.units_total, "tiles" if job.by == "tiles" else "samples"
    return job.done, job.total, "frame" if job.total == 1 else "frames"


def amount(job):
    """How much of a job is there, in words: "3 of 24 frames", "312 of 512 samples"."""
    return "%d of %d %s" % counts(job)


def _text(value, limit=200):
    return client.clean(value, limit) if isinstance(value, str) else ""


def _number(value):
    """A count from elsewhere: whole, not negative, and small enough for any property."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0
    try:
        return max(0, min(int(value), 2**31 - 1))
    except (ValueError, OverflowError):  # not a number, or endless
        return 0


def duration(seconds):
    """Seconds as people say them: "8 s", "3 min", "1 h 5 min"."""
    seconds = int(max(0, seconds))
    if seconds < 60:
        return "%d s" % seconds
    minutes = (seconds + 30) // 60
    if minutes < 60:
        return "%d min" % minutes
    return "%d h %d min" % divmod(minutes, 60)


def size(count):
    """Bytes as people say them, in the units of file managers."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return "%d %s" % (count, unit) if unit == "B" else "%.1f %s" % (count, unit)
        count /= 1024
    return "%.1f TiB" % count
