# SPDX-License-Identifier: GPL-3.0-or-later
import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import unittest

import bare  # noqa: F401
from fake_peer import TOKEN, FakePeer, problem
from vizpeer import client


class Finding(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.mkdtemp()

    def folder(self, *path, **files):
        folder = os.path.join(self.home, *path)
        os.makedirs(folder, exist_ok=True)
        for name, text in files.items():
            with open(os.path.join(folder, name), "w") as f:
                f.write(text)
        return folder

    def find(self, override="", **environ):
        return client.find(override, dict(environ, HOME=self.home), "linux")

    def test_the_folders_of_each_system(self):
        self.assertEqual(
            client.data_folders({"HOME": "/home/ann", "XDG_DATA_HOME": "/data"}, "linux"),
            ["/data/vizpeer", "/home/ann/.local/share/vizpeer", "/var/lib/vizpeer"],
        )
        self.assertEqual(
            client.data_folders({"HOME": "/Users/ann"}, "darwin"), ["/Users/ann/Library/Application Support/vizpeer"]
        )
        self.assertEqual(
            client.data_folders({"ProgramData": "D:\\PD"}, "win32"), [os.path.join("D:\\PD", "vizpeer")]
        )

    def test_the_running_peer_in_its_usual_place(self):
        folder = self.folder(".local", "share", "vizpeer", api="http://127.0.0.1:4242\n", token="secret\n")
        self.assertEqual(self.find(), client.Endpoint("http://127.0.0.1:4242", "secret", folder))

    def test_a_folder_with_a_running_peer_goes_before_one_without(self):
        self.folder("xdg", "vizpeer", token="idle\n")
        running = self.folder(".local", "share", "vizpeer", api="http://127.0.0.1:4242\n", token="live\n")
        found = self.find(XDG_DATA_HOME=os.path.join(self.home, "xdg"))
        self.assertEqual((found.folder, found.token), (running, "live"))

    def test_the_environment_and_the_preferences_choose(self):
        self.folder(".local", "share", "vizpeer", api="http://127.0.0.1:1\n", token="usual\n")
        one = self.folder("one", api="http://127.0.0.1:2\n", token="one\n")
        two = self.folder("two", api="http://127.0.0.1:3\n", token="two\n")
        self.assertEqual(self.find(VIZPEER_DATA_DIR=one).token, "one")
        self.assertEqual(self.find(two, VIZPEER_DATA_DIR=one).token, "two")
        key = os.path.join(self.folder("keys", mine="mine\n"), "mine")
        found = self.find(VIZPEER_API="http://localhost:9", VIZPEER_TOKEN=key)
        self.assertEqual((found.base, found.token), ("http://localhost:9", "mine"))
        with self.assertRaisesRegex(client.Problem, "VIZPEER_TOKEN"):
            self.find(VIZPEER_TOKEN=os.path.join(self.home, "none"))

    def test_nothing_there(self):
        found = self.find("/nonexistent")
        self.assertEqual((found.base, found.token, found.folder), (client.DEFAULT_BASE, "", ""))

    def test_addresses_that_would_give_the_key_away(self):
        for base in ("http://10.0.0.1:8787", "http://farm.example", "ftp://127.0.0.1", "http://", "x", "http://a@localhost",
                     "http://127.0.0.1:99999", "http://[::1", "http://127.0.0.1/?x=1"):
            with self.assertRaises(client.Problem, msg=base):
                client.check_base(base)
        self.assertEqual(client.check_base("https://farm.example/"), "https://farm.example")
        self.assertEqual(client.check_base("http://[::1]:8787"), "http://[::1]:8787")


class Calling(unittest.TestCase):
    def setUp(self):
        self.peer = FakePeer()
        self.addCleanup(self.peer.close)
        self.client = client.Client(client.find(self.peer.folder, {}))
        self.addCleanup(self.client.close)

    def refuse(self, pattern, path="/v1/status"):
        with self.assertRaisesRegex(client.Problem, pattern) as caught:
            self.client.get(path)
        self.assertNotIn(TOKEN, str(caught.exception))
        return caught.exception

    def test_an_answer(self):
        self.assertEqual(self.client.get("/v1/status")["farm_name"], "attic")

    def test_a_proxy_is_never_asked(self):
        os.environ["http_proxy"] = "http://127.0.0.1:1"
        self.addCleanup(os.environ.pop, "http_proxy")
        self.assertEqual(self.client.get("/v1/status")["name"], "desk")

    def test_a_problem_document(self):
        self.peer.answers["GET /v1/status"] = problem(
            422, "the frame range 9-1 is inverted", errors=[{"message": "too long", "location": "body.name"}, 7]
        )
        error = self.refuse("^the frame range 9-1 is inverted; body.name: too long$")
        self.assertEqual(error.status, 422)

    def test_a_wrong_token(self):
        with open(os.path.join(self.peer.folder, "token"), "w") as f:
            f.write("other")
        with self.assertRaisesRegex(client.Problem, "^the token is not known$"):
            client.Client(client.find(self.peer.folder, {})).get("/v1/status")
        with self.assertRaisesRegex(client.Problem, "no token file was found"):
            client.Client(client.Endpoint(self.peer.base, "", "")).get("/v1/status")

    def test_hostile_answers(self):
        deep = b'{"a":' * 100000
        for answer, pattern in (
            (b"<html>", "cannot be read"),
            (b"[]", "not what the add-on expects"),
            (b"\xff\xfe", "cannot be read"),
            (deep, "cannot be read"),
            (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read"),
            (b'{"a": NaN}', "cannot be read"),
            (b'"' + b"x" * (client.ANSWER_LIMIT + 1) + b'"', "larger than"),
        ):
            self.peer.answers["GET /v1/status"] = (200, answer)
            self.refuse(pattern)
        self.peer.answers["GET /v1/status"] = problem(500, "a\x1b[31m\nb" + "c" * 5000)
        self.assertLess(len(str(self.refuse("^a"))), 700)
        self.peer.answers["GET /v1/status"] = (302, b"")
        self.refuse("Found")

    def test_garbage_instead_of_http(self):
        server = socket.socket()
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        self.addCleanup(server.close)

        def serve():
            link, _ = server.accept()
            link.recv(1000)
            link.sendall(b"\x00" * 100)
            link.close()

        threading.Thread(target=serve, daemon=True).start()
        base = "http://127.0.0.1:%d" % server.getsockname()[1]
        with self.assertRaisesRegex(client.Problem, "broke"):
            client.Client(client.Endpoint(base, "t", "x")).get("/v1/status")

    def test_no_peer(self):
        with socket.socket() as server:  # bound, but nobody listens
            server.bind(("127.0.0.1", 0))
            base = "http://127.0.0.1:%d" % server.getsockname()[1]
        with self.assertRaisesRegex(client.NoPeer, "start it with `vizpeer up`"):
            client.Client(client.Endpoint(base, "t", "/data")).get("/v1/status")
        with self.assertRaisesRegex(client.NoPeer, "vizpeer join TICKET"):
            client.Client(client.Endpoint(base, "", "")).get("/v1/status")

    def test_a_token_that_would_split_the_header(self):
        with self.assertRaisesRegex(client.Problem, "not a key"):
            client.Client(client.Endpoint(self.peer.base, "a\tb", "x")).get("/v1/status")

    def test_a_silent_peer(self):
        self.peer.hold["GET /v1/status"] = threading.Event()
        with self.assertRaisesRegex(client.Problem, "does not answer"):
            self.client.call("GET", "/v1/status", seconds=0.2)

    def test_close_ends_what_is_under_way(self):
        self.peer.hold["GET /v1/status"] = threading.Event()
        result = []

        def call():
            try:
                self.client.get("/v1/status")
            except client.Stopped:
                result.append("stopped")

        thread = threading.Thread(target=call)
        thread.start()
        self.peer.arrived.get(timeout=10)
        self.client.close()
        thread.join(10)
        self.assertEqual(result, ["stopped"])
        with self.assertRaises(client.Stopped):
            self.client.get("/v1/status")

    def test_a_refused_upload_is_not_sent_to_its_end(self):
        self.peer.answers["POST /v1/projects"] = problem(413, "the project is larger than 256 GiB")
        made = []

        def chunks():
            for number in range(100000):
                made.append(number)
                yield b"x" * 65536

        with self.assertRaisesRegex(client.Problem, "larger than 256 GiB"):
            self.client.upload("/v1/projects", "application/x-tar", chunks())
        self.assertLess(len(made), 100000)

    @unittest.skipUnless(hasattr(signal, "SIGPIPE"), "this system has no SIGPIPE")
    def test_a_peer_that_hangs_up_does_not_kill_blender(self):
        before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as Blender 4 has it
        self.addCleanup(signal.signal, signal.SIGPIPE, before)
        server = socket.socket()
        self.addCleanup(server.close)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        gone = threading.Event()

        def serve():
            server.accept()[0].close()
            gone.set()

        def chunks():
            yield b"x"
            gone.wait(10)
            for _ in range(100):
                yield b"x" * 65536

        base = "http://127.0.0.1:%d" % server.getsockname()[1]
        outcome = []

        def upload():
            api = client.Client(client.Endpoint(base, "t", "x"))
            api._answered = lambda link: False  # as where it hangs up between the look and the write
            try:
                api.upload("/v1/projects", "application/x-tar", chunks())
            except client.Problem as problem:
                outcome.append(str(problem))

        threads = [threading.Thread(target=serve), threading.Thread(target=upload)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        self.assertRegex(outcome[0], "connection to http://127.* broke")

    def test_events(self):
        events = self.client.events()
        self.assertEqual(next(events), ("open", {}))
        self.peer.event("job.started", job="j1")
        self.assertEqual(next(events), ("job.started", {"job": "j1", "type": "job.started"}))
        self.peer.streams[0].put(b"retry: 5\nevent: a\ndata: {\"x\":\ndata: 1}\n\n")
        self.assertEqual(next(events), ("a", {"x": 1}))
        self.peer.streams[0].put(b"data: " + b"x" * (client.LINE_LIMIT + 10) + b"\n\n")
        with self.assertRaisesRegex(client.Problem, "longer"):
            next(events)


class Cleaning(unittest.TestCase):
    def test_one_printable_line(self):
        self.assertEqual(client.clean("a\nb\x00\x1b c\u202e"), "a b c")
        self.assertEqual(client.clean("x" * 300, 10), "x" * 9 + "…")


@unittest.skipUnless(shutil.which("openssl"), "openssl, which makes the certificates, is not installed")
class OverHTTPS(unittest.TestCase):
    """A peer of another machine must show the farm's CA before it is told anything."""

    @classmethod
    def setUpClass(cls):
        cls.files = tempfile.mkdtemp()
        for name in ("ours", "theirs"):
            cls.certify(name)

    @classmethod
    def certify(cls, name):
        """A CA in name.crt, and a listener's key and chain in name.pem."""
        at = lambda ending: os.path.join(cls.files, name + ending)  # noqa: E731
        run = lambda *args: subprocess.run(("openssl",) + args, check=True, capture_output=True)  # noqa: E731
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        run("req", "-x509", *key, "-days", "2", "-subj", "/CN=" + name, "-keyout", at(".key"), "-out", at(".crt"))
        run("req", "-new", *key, "-subj", "/CN=peer", "-keyout", at(".leaf.key"), "-out", at(".csr"))
        with open(at(".ext"), "w") as f:
            f.write("subjectAltName=IP:127.0.0.1\n")
        run("x509", "-req", "-in", at(".csr"), "-CA", at(".crt"), "-CAkey", at(".key"), "-CAcreateserial",
            "-days", "1", "-extfile", at(".ext"), "-out", at(".leaf.crt"))
        with open(at(".pem"), "w") as out:
            for part in (".leaf.key", ".leaf.crt", ".crt"):
                with open(at(part)) as f:
                    out.write(f.read())

    def file(self, name):
        return os.path.join(self.files, name)

    def pin(self, name):
        with open(self.file(name + ".crt")) as f:
            return hashlib.sha256(ssl.PEM_cert_to_DER_cert(f.read())).hexdigest()

    def setUp(self):
        self.peer = FakePeer()
        self.addCleanup(self.peer.close)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file("ours.pem"))
        self.peer.server.socket = context.wrap_socket(self.peer.server.socket, server_side=True)
        self.base = self.peer.base.replace("http:", "https:")
        with open(self.file("ours.crt"), "rb") as f:
            self.peer.answers["GET /ca.crt"] = (200, f.read())

    def ask(self, ca="", pin="", base=""):
        return client.Client(client.Endpoint(base or self.base, TOKEN, "", ca, pin)).get("/v1/status")

    def test_the_file_or_the_fingerprint_is_believed(self):
        self.assertIn("peer", self.ask(ca=self.file("ours.crt")))
        self.assertIn("peer", self.ask(pin=self.pin("ours")))

    def test_nothing_else_is_and_no_key_is_sent(self):
        for wrong in ({}, {"ca": self.file("theirs.crt")}, {"pin": self.pin("theirs")}):
            with self.assertRaisesRegex(client.Problem, "shows no certificate of the farm's CA"):
                self.ask(**wrong)
        elsewhere = self.base.replace("127.0.0.1", "localhost")
        with self.assertRaisesRegex(client.Problem, "for that name"):
            self.ask(pin=self.pin("ours"), base=elsewhere)
        self.assertEqual([r[1] for r in self.peer.requests if r[1] != "/ca.crt"], [])

    def test_who_hands_out_a_foreign_ca_is_not_believed(self):
        with open(self.file("theirs.crt"), "rb") as f:
            self.peer.answers["GET /ca.crt"] = (200, f.read())
        for pin in (self.pin("ours"), self.pin("theirs")):
            with self.assertRaisesRegex(client.Problem, "shows no certificate of the farm's CA"):
                self.ask(pin=pin)
        self.peer.answers["GET /ca.crt"] = (200, b"-----END CERTIFICATE-----" * 10)
        with self.assertRaisesRegex(client.Problem, "shows no certificate of the farm's CA"):
            self.ask(pin=self.pin("ours"))

    def test_where_the_ca_is_found(self):
        folder = tempfile.mkdtemp()
        for name, text in (("api", self.base), ("token", "t"), ("ca.crt", "x")):
            with open(os.path.join(folder, name), "w") as f:
                f.write(text)
        find = lambda **more: client.find(folder, more.pop("environ", {"HOME": folder}), "linux", **more)  # noqa: E731
        self.assertEqual(find().ca, os.path.join(folder, "ca.crt"))
        self.assertEqual(find(environ={"HOME": folder, "VIZPEER_CA_FILE": "/x"}).ca, "/x")
        self.assertEqual(find(environ={"HOME": folder, "VIZPEER_CA_FILE": "/x"}, ca="/y").ca, "/y")
        chosen = find(pin="AB:" * 31 + "AB")
        self.assertEqual((chosen.ca, chosen.pin), ("", "ab" * 32))
        with self.assertRaisesRegex(client.Problem, "64 hexadecimal digits"):
            find(pin="1234")
        with self.assertRaisesRegex(client.Problem, "is no ca.crt"):
            self.ask(ca=os.path.join(folder, "missing"))


if __name__ == "__main__":
    unittest.main()
