# SPDX-License-Identifier: GPL-3.0-or-later
"""A peer for tests: it answers as the HTTP API does, and keeps what it was sent."""

import hashlib
import http.server
import io
import json
import os
import queue
import signal
import tarfile
import tempfile
import threading

TOKEN = "vzk_test_0123456789"


class FakePeer:
    """An API on a free loopback port with a data folder that leads to it."""

    def __init__(self, folder=None):
        self.folder = folder or tempfile.mkdtemp(prefix="fake-peer-")
        self.requests = []  # (method, path, document) in the order they came
        self.projects = []  # [{name: bytes}] as the tars held them
        self.content = {}  # by the receipts that were given for it
        self.sent = []  # the files of the latest tar that came with their bytes
        self.cut_off = 0  # uploads that ended before their end
        self.arrived = queue.Queue()  # (method, path) of every request
        self.answers = {}  # "METHOD path" → (status, document or bytes), instead of the usual
        self.keys = []  # of requests that may be made again
        self.hold = {}  # "METHOD path" → Event to wait for before answering
        self.jobs = []
        self.streams = []
        self._lock = threading.Lock()
        peer = self

        class Handler(_Handler):
            farm = peer

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base = "http://127.0.0.1:%d" % self.server.server_address[1]
        self._write("api", self.base + "\n")
        self._write("token", TOKEN + "\n")
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def _write(self, name, text):
        with open(os.path.join(self.folder, name), "w", encoding="utf-8") as f:
            f.write(text)

    def close(self):
        for event in self.hold.values():
            event.set()
        for stream in list(self.streams):
            stream.put(None)
        self.server.shutdown()
        self.server.server_close()

    def event(self, kind, **document):
        """Sends an event to everyone who listens."""
        for stream in list(self.streams):
            stream.put((kind, dict(document, type=kind)))

    def give(self, data):
        """A receipt for data."""
        receipt = "receipt-" + hashlib.sha256(data).hexdigest()
        self.content[receipt] = data
        return receipt

    def add_job(self, **fields):
        job = {
            "id": "jtest%d" % (len(self.jobs) + 1),
            "name": "shot",
            "state": "queued",
            "reason": "",
            "tier": "normal",
            "owner": "ann",
            "tasks": {"total": 8, "queued": 8, "leased": 0, "rendered": 0, "done": 0, "failed": 0, "cancelled": 0},
            "frames_total": 40,
            "frames_done": 0,
            "created_at": "2024-05-01T10:00:%02dZ" % (len(self.jobs) % 60),
        }
        job.update(fields)
        self.jobs.append(job)
        return job

    def answer(self, method, path, document):
        """The status and the document that a peer would answer with."""
        if (method, path) == ("GET", "/v1/status"):
            return 200, {
                "peer": "12D3KooWSelf",
                "name": "desk",
                "farm": "f1",
                "farm_name": "attic",
                "version": "0.1.0",
                "roles": ["worker"],
                "leader": "12D3KooWLeader",
                "connected": 2,
                "unkept": 0,
            }
        if (method, path) == ("GET", "/v1/farm"):
            return 200, {
                "farm": "f1",
                "name": "attic",
                "peers": {"idle": 2, "busy": 1, "offline": 1},
                "jobs": {},
                "coord": {"leader": "12D3KooWLeader"},
            }
        if (method, path) == ("GET", "/v1/auth/whoami"):
            return 200, {"user": "ann", "role": "admin", "peer": "12D3KooWSelf", "farm": "f1"}
        if (method, path) == ("GET", "/v1/peers"):
            return 200, {
                "peers": [
                    {"id": "12D3KooWSelf", "name": "desk", "state": "idle", "capability": {"gpus": [{"vendor": "NVIDIA"}]}},
                    {"id": "12D3KooWLeader", "name": "cellar", "state": "busy", "capability": {}},
                    {"id": "12D3KooWGone", "name": "old", "state": "offline", "capability": {"gpus": [{"vendor": "AMD"}]}},
                ]
            }
        if (method, path) == ("GET", "/v1/jobs"):
            return 200, {"jobs": self.jobs}
        if (method, path) == ("POST", "/v1/jobs"):
            job = self.add_job(name=document.get("name", ""))
            self.event("job.submitted", job=job["id"])
            return 201, {"job": job["id"], "project": document["project"], "tasks": 8, "missing": []}
        for job in self.jobs:
            if (method, path) == ("POST", "/v1/jobs/%s/cancel" % job["id"]):
                job["state"] = "cancelled"
                self.event("job.ended", job=job["id"], state="cancelled")
                return 200, {}
            if (method, path) == ("GET", "/v1/jobs/%s" % job["id"]):
                return 200, dict(job, output=job.get("output", ""), submitter="12D3KooWSelf", frames=job.get("frames", []))
        return problem(404, "nothing is called %s" % path)


def problem(status, detail, **more):
    return status, dict({"title": "Refused", "status": status, "detail": detail}, **more)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    farm = None

    def setup(self):
        super().setup()
        if hasattr(signal, "pthread_sigmask"):  # Blender's Python does not ignore it, as a server must
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.serve("GET", lambda: None)

    def do_POST(self):
        self.serve("POST", self.take)

    def serve(self, method, take):
        farm, path = self.farm, self.path.partition("?")[0]
        farm.arrived.put((method, path))
        if self.headers.get("Idempotency-Key"):
            farm.keys.append(self.headers["Idempotency-Key"])
        key = "%s %s" % (method, path)
        try:
            if self.headers.get("Host") != farm.base[len("http://"):] or self.headers.get("Origin"):
                return self.send(*problem(403, "wrong Host or Origin"))
            if path == "/ca.crt" and key in farm.answers and not self.headers.get("Authorization"):
                return self.send(*farm.answers[key])
            if self.headers.get("Authorization") != "Bearer " + TOKEN:
                return self.send(*problem(401, "the token is not known"))
            if key in farm.answers:
                if method == "POST":
                    self.close_connection = True  # the body may be unread
                answers = farm.answers[key]
                if isinstance(answers, list):  # one after the other
                    if len(answers) == 1:
                        del farm.answers[key]
                    answers = answers.pop(0)
                return self.send(*answers)
            if path == "/v1/events":
                return self.stream()
            document = take()
            if key in farm.hold:
                farm.hold[key].wait(30)
            with farm._lock:
                farm.requests.append((method, path, document))
            if key == "POST /v1/projects":
                lacks = [name for name, data in document.items() if data is None]
                if lacks:
                    return self.send(*problem(409, "some files are not held any more", code="lacking", lacks=lacks))
                size = sum(len(data) for data in document.values())
                farm.projects.append(document)
                answer = {"project": "bafyroot", "files": len(document), "size": size, "missing": []}
                if self.path.endswith("?receipts=true"):
                    answer["receipts"] = [farm.give(data) for data in document.values()]
                return self.send(200, answer)
            self.send(*farm.answer(method, path, document))
        except EOFError:
            with farm._lock:
                farm.cut_off += 1
            farm.arrived.put(("CUT", path))
            self.close_connection = True
        except OSError:
            self.close_connection = True

    def send(self, status, document):
        data = document if isinstance(document, bytes) else json.dumps(document).encode("utf-8")
        self.send_response(status)
        kind = "application/json" if status < 300 else "application/problem+json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def take(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            assert self.headers.get("Content-Type") == "application/x-tar"
            return self.untar()
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return json.loads(data.decode("utf-8")) if data else None

    def untar(self):
        """The files of a tar that comes in chunks; EOFError where it is cut off."""
        body = io.BytesIO()
        while True:
            line = self.rfile.readline(100)
            if not line.endswith(b"\r\n"):
                raise EOFError
            left = int(line, 16)
            data = self.rfile.read(left + 2)
            if len(data) < left + 2:
                raise EOFError
            if not left:
                break
            body.write(data[:-2])
        body.seek(0)
        with tarfile.open(fileobj=body, mode="r|") as tar:
            files, self.farm.sent = {}, []
            for item in tar:
                receipt = item.pax_headers.get("VIZPEER.receipt")
                if receipt is None:
                    self.farm.sent.append(item.name)
                files[item.name] = self.farm.content.get(receipt) if receipt else tar.extractfile(item).read()
            return files

    def stream(self):
        mailbox = queue.Queue()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.farm.streams.append(mailbox)  # before the reader can know that it misses nothing
        try:
            self.end_headers()
            self.chunk(b": hello\n\n")
            while True:
                item = mailbox.get()
                if item is None:
                    self.close_connection = True
                    return self.chunk(b"")
                if isinstance(item, bytes):
                    self.chunk(item)
                else:
                    self.chunk(b"event: %s\ndata: %s\n\n" % (item[0].encode(), json.dumps(item[1]).encode()))
        finally:
            self.farm.streams.remove(mailbox)

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()
