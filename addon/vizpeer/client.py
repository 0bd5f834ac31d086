# SPDX-License-Identifier: GPL-3.0-or-later
"""Talks to the vizpeer of this machine over its HTTP API.

It finds the running peer and the caller's token by itself, as the command line
does, and never uses bpy, so that any thread may call it. Nothing here trusts an
answer: sizes, numbers and nesting are bounded, redirects are not followed, and
proxies are never asked. Everything that can go wrong is a Problem, whose text is
a sentence for the artist.
"""

import collections
import hashlib
import http.client
import json
import os
import select
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.parse

DEFAULT_BASE = "http://127.0.0.1:8787"

CA_LIMIT = 64 << 10  # bytes of a ca.crt
ANSWER_LIMIT = 16 << 20  # bytes of one JSON answer
LINE_LIMIT = 64 << 10  # bytes of one line of the event stream
EVENT_LIMIT = 256 << 10  # bytes of one event
DIGITS_LIMIT = 20  # digits of one whole number

CONNECT_SECONDS = 5
ANSWER_SECONDS = 20
# The event stream may be silent for this long before it is opened again.
SILENCE_SECONDS = 90
# A peer that takes in an upload may flush its disks for a while.
SEND_SECONDS = 120
STORE_SECONDS = 1800

NOT_RUNNING = "No vizpeer is running on this machine: start it with `vizpeer up`"
WRONG_CA = (
    "%s shows no certificate of the farm's CA for that name, so your key was not sent to it: "
    "see the CA's file and fingerprint in the add-on's preferences"
)
NOT_JOINED = (
    "This machine is in no farm yet: run `vizpeer join TICKET` with a ticket from your "
    "farm's admin, or `vizpeer init` for a new farm, then `vizpeer up`"
)


class Problem(Exception):
    """Something went wrong; its text says what, and what to do next."""

    def __init__(self, text, status=0, code="", lacks=()):
        super().__init__(clean(text, 600))
        self.status = status  # of the HTTP answer; 0 where there was none
        self.code = code  # the peer's word for the kind of problem
        self.lacks = lacks  # paths of files that the peer lacks, for the code "lacking"


class NoPeer(Problem):
    """No peer answers on this machine."""


class Stopped(Exception):
    """The caller closed the client while it was at work."""


# ca is the path of the farm's ca.crt and pin its SHA-256, of which one is needed for https; "" for none.
Endpoint = collections.namedtuple("Endpoint", "base token folder ca pin", defaults=("", ""))


def clean(text, limit=200):
    """Text from elsewhere as one line that is fit to draw."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[: limit * 4])
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def data_folders(environ=None, system=None):
    """Where a peer of this machine may keep its data, the likeliest first."""
    environ = os.environ if environ is None else environ
    system = sys.platform if system is None else system
    if system.startswith("win"):
        return [os.path.join(environ.get("ProgramData") or "C:\\ProgramData", "vizpeer")]
    home = environ.get("HOME") or os.path.expanduser("~")
    if system == "darwin":
        return [os.path.join(home, "Library", "Application Support", "vizpeer")]
    folders = []
    if environ.get("XDG_DATA_HOME"):
        folders.append(os.path.join(environ["XDG_DATA_HOME"], "vizpeer"))
    # Packaged Blenders may have an XDG_DATA_HOME of their own: look in the usual place too.
    folders.append(os.path.join(home, ".local", "share", "vizpeer"))
    folders.append("/var/lib/vizpeer")
    return folders


def find(override="", environ=None, system=None, ca="", pin=""):
    """The local peer's endpoint.

    override is a data folder that the artist chose; otherwise VIZPEER_DATA_DIR,
    then the usual places. VIZPEER_API names another address, VIZPEER_TOKEN
    another token file. A missing token is "": the peer will say that it needs one.
    An address with https must show the farm's CA: the one in the file ca, or the one with
    the fingerprint pin, which the artist chose; otherwise VIZPEER_CA_FILE,
    VIZPEER_CA_FINGERPRINT, then the ca.crt of the data folder.
    """
    environ = os.environ if environ is None else environ
    chosen = override or environ.get("VIZPEER_DATA_DIR", "")
    folders = [os.path.expanduser(chosen)] if chosen else data_folders(environ, system)
    folder = next((f for f in folders if os.path.exists(os.path.join(f, "api"))), None)
    folder = folder or next((f for f in folders if os.path.exists(os.path.join(f, "token"))), None)
    base = environ.get("VIZPEER_API") or (_first_line(os.path.join(folder, "api")) if folder else "")
    token_file = environ.get("VIZPEER_TOKEN", "")
    if token_file:
        token = _first_line(os.path.expanduser(token_file))
        if not token:
            raise Problem("The token file %s, which VIZPEER_TOKEN names, is missing, empty or not readable" % token_file)
    else:
        token = _first_line(os.path.join(folder, "token")) if folder else ""
    if not folder and not base:
        base = DEFAULT_BASE
    base = check_base(base or DEFAULT_BASE)
    if not base.startswith("https:"):
        return Endpoint(base, token, folder or "")
    if not ca and not pin:
        ca, pin = environ.get("VIZPEER_CA_FILE", ""), environ.get("VIZPEER_CA_FINGERPRINT", "")
    if not ca and not pin and folder and os.path.exists(os.path.join(folder, "ca.crt")):
        ca = os.path.join(folder, "ca.crt")
    return Endpoint(base, token, folder or "", os.path.expanduser(ca), check_pin(pin))


def _first_line(path):
    try:
        with open(path, encoding="utf-8") as f:
            return f.readline(4096).strip()
    except (OSError, ValueError):
        return ""


def check_base(base):
    """base as it is used, or a Problem: the token must not travel in clear to another machine."""
    try:
        url = urllib.parse.urlsplit(base)
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
        url = urllib.parse.urlsplit("")
    if url.scheme not in ("http", "https") or not host or url.username or url.query or url.fragment:
        raise Problem("%r is not an address of a vizpeer: write it like %s" % (base, DEFAULT_BASE))
    if url.scheme == "http" and not _is_loopback(host):
        raise Problem("%s would carry your key in clear to another machine: use https" % base)
    return "%s://%s%s%s" % (
        url.scheme,
        "[%s]" % host if ":" in host else host,
        ":%d" % port if port else "",
        url.path.rstrip("/"),
    )


def check_pin(pin):
    """A fingerprint as it is compared, or a Problem."""
    digits = pin.replace(":", "").strip().lower()
    if digits and (len(digits) != 64 or digits.strip("0123456789abcdef")):
        raise Problem("%r is no fingerprint: it is 64 hexadecimal digits, as `vizpeer status` shows it" % clean(pin, 100))
    return digits


def _is_loopback(host):
    return host in ("localhost", "::1") or host.startswith("127.")


def parse(data):
    """The JSON object in data, with every number and the nesting bounded."""
    try:
        doc = json.loads(data.decode("utf-8"), parse_int=_whole, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Problem("vizpeer's answer cannot be read: are the add-on and `vizpeer` of the same version?")
    if not isinstance(doc, dict):
        raise Problem("vizpeer's answer is not what the add-on expects: are both of the same version?")
    return doc


def _whole(digits):
    if len(digits) > DIGITS_LIMIT:
        raise ValueError("a number is too long")
    return int(digits)


def _refuse(name):
    raise ValueError("%s is not a number" % name)


class Client:
    """Makes requests to one endpoint. close() ends whatever is under way."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self._url = urllib.parse.urlsplit(endpoint.base)
        self._lock = threading.Lock()
        self._open = set()
        self._closed = False
        self._tls = None  # what a peer must show; made with the first connection

    def get(self, path):
        return self.call("GET", path)

    def post(self, path, body=None, key=""):
        return self.call("POST", path, body, key=key)

    def call(self, method, path, body=None, seconds=ANSWER_SECONDS, key=""):
        """One request and its answer, a JSON object ({} where there is none).

        With a key the same request may be made again without being carried out again.
        """
        headers = {"Idempotency-Key": key} if key else {}
        data = None
        if body is not None:
            data = json.dumps(body).encode("utf-8")
            headers["Content-Type"] = "application/json"
        elif method == "POST":
            data = b""
        link = self._link()
        try:
            with self._problems():
                self._connect(link)
                link.sock.settimeout(seconds)
                link.request(method, self._url.path + path, body=data, headers=self._headers(headers))
                return self._answer(link, seconds)
        finally:
            self._drop(link)

    def fetch(self, path, limit, seconds=ANSWER_SECONDS):
        """The bytes that a GET of a picture answers, at most limit of them."""
        link = self._link()
        try:
            with self._problems():
                self._connect(link)
                link.sock.settimeout(seconds)
                link.request("GET", self._url.path + path, headers=self._headers({"Accept": "image/jpeg"}))
                response = link.getresponse()
                data = self._read(response, seconds)
                if response.status != 200:
                    raise self._refusal(response.status, data)
                if len(data) > limit:
                    raise Problem("vizpeer's picture is larger than the %d KiB that the add-on reads" % (limit >> 10))
                return data
        finally:
            self._drop(link)

    def upload(self, path, content_type, chunks):
        """POSTs chunks as they are made, and returns the answer.

        Where the peer answers before the end, as it does to refuse, the rest is
        not sent.
        """
        link = self._link()
        try:
            with self._problems():
                self._connect(link)
                link.sock.settimeout(SEND_SECONDS)
                link.putrequest("POST", self._url.path + path)
                fields = {"Content-Type": content_type, "Transfer-Encoding": "chunked"}
                for name, value in self._headers(fields).items():
                    link.putheader(name, value)
                link.endheaders()
                early = self._send(link, chunks)
                link.sock.settimeout(STORE_SECONDS)
                answer = self._answer(link, STORE_SECONDS)
                if early:
                    raise Problem("vizpeer stopped taking the project before its end; its log says why")
                return answer
        finally:
            self._drop(link)

    def _send(self, link, chunks):
        """Sends chunks; True where the peer hung up or answered before the end."""
        for chunk in chunks:
            if not chunk:
                continue
            if self._answered(link):
                return True
            try:
                link.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            except (BrokenPipeError, ConnectionResetError):
                return True
        try:
            link.send(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    def _answered(self, link):
        if self._url.scheme == "https":
            return False  # TLS may have records of its own to read
        try:
            return bool(select.select([link.sock], [], [], 0)[0])
        except ValueError:  # a descriptor beyond what select can watch
            return False

    def events(self):
        """Yields (type, document) of the event stream until the peer ends it."""
        link = self._link()
        try:
            with self._problems():
                self._connect(link)
                link.sock.settimeout(SILENCE_SECONDS)
                link.request(
                    "GET", self._url.path + "/v1/events", headers=self._headers({"Accept": "text/event-stream"})
                )
                response = link.getresponse()
                if response.status != 200:
                    raise self._refusal(response.status, self._read(response, ANSWER_SECONDS))
                yield "open", {}
                for event in _events(response):
                    yield event
        finally:
            self._drop(link)

    def close(self):
        """Ends every request under way with Stopped. Safe from any thread."""
        with self._lock:
            self._closed = True
            links = list(self._open)
        for link in links:
            try:
                link.sock.shutdown(socket.SHUT_RDWR)
            except (OSError, AttributeError):
                pass

    def _link(self):
        if self._url.scheme == "https":
            if self._tls is None:
                with self._problems():
                    self._tls = self._trust()
            link = http.client.HTTPSConnection(
                self._url.hostname, self._url.port, timeout=CONNECT_SECONDS, context=self._tls
            )
        else:
            link = http.client.HTTPConnection(self._url.hostname, self._url.port, timeout=CONNECT_SECONDS)
        with self._lock:
            if self._closed:
                raise Stopped()
            self._open.add(link)
        return link

    def _trust(self):
        """The TLS settings that believe the farm's CA and nobody else."""
        bundle = None
        if self.endpoint.pin:
            bundle = self._pinned()
        try:
            context = ssl.create_default_context(cafile=self.endpoint.ca or None, cadata=bundle)
        except (OSError, ValueError):
            raise Problem("%s is no ca.crt, or cannot be read: copy it from the data folder of a machine of the farm" % self.endpoint.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def _pinned(self):
        """The certificate with the pinned fingerprint, which the peer itself hands out to anybody.

        The connection is not verified, so that nothing but this is asked on it.
        """
        anybody = ssl.create_default_context()
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        link = http.client.HTTPSConnection(
            self._url.hostname, self._url.port, timeout=CONNECT_SECONDS, context=anybody
        )
        try:
            self._connect(link)
            link.request("GET", self._url.path + "/ca.crt", headers={"User-Agent": "vizpeer-addon"})
            text = link.getresponse().read(CA_LIMIT).decode("ascii", "replace")
        finally:
            link.close()
        end = "-----END CERTIFICATE-----"
        for part in text.split(end)[:-1]:
            try:
                der = ssl.PEM_cert_to_DER_cert((part + end).strip())
            except ValueError:
                continue
            if hashlib.sha256(der).hexdigest() == self.endpoint.pin:
                return der
        raise Problem(WRONG_CA % self.endpoint.base)

    def _connect(self, link):
        _hush()
        link.connect()
        if sys.platform == "darwin":
            link.sock.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
        if self._closed:  # close() came before there was a socket to shut down
            raise Stopped()

    def _drop(self, link):
        with self._lock:
            self._open.discard(link)
        link.close()

    def _headers(self, more):
        headers = {"Accept": "application/json", "User-Agent": "vizpeer-addon"}
        token = self.endpoint.token
        if token:
            if not (token.isascii() and token.isprintable()):
                raise Problem("The token file holds something that is not a key: use the one that `vizpeer join` left")
            headers["Authorization"] = "Bearer " + token
        headers.update(more)
        return headers

    def _answer(self, link, seconds):
        response = link.getresponse()
        data = self._read(response, seconds)
        if 200 <= response.status < 300:
            return parse(data) if data.strip() else {}
        raise self._refusal(response.status, data)

    def _read(self, response, seconds):
        deadline = time.monotonic() + seconds
        parts, size = [], 0
        while True:
            part = response.read1(1 << 16)
            if not part:
                return b"".join(parts)
            size += len(part)
            parts.append(part)
            if size > ANSWER_LIMIT:
                raise Problem("vizpeer's answer is larger than the %d MiB that the add-on reads" % (ANSWER_LIMIT >> 20))
            if time.monotonic() > deadline:
                raise Problem("vizpeer's answer took longer than %d s" % seconds)

    def _refusal(self, status, data):
        """A Problem from a problem document (RFC 9457), or from whatever else came."""
        try:
            doc = parse(data)
        except Problem:
            doc = {}
        text = doc.get("detail") or doc.get("title") or http.client.responses.get(status, "")
        text = clean(text, 400) or "vizpeer answered with status %d" % status
        errors = doc.get("errors")
        for error in errors[:3] if isinstance(errors, list) else ():
            if isinstance(error, dict) and error.get("message"):
                where = clean(error.get("location", ""), 60)
                text += "; " + (where + ": " if where else "") + clean(error["message"], 200)
        if status == 401 and not self.endpoint.token:
            text += " (no token file was found: set VIZPEER_TOKEN, or the data folder in the add-on's preferences)"
        lacks = doc.get("lacks")
        lacks = frozenset(path for path in lacks if isinstance(path, str)) if isinstance(lacks, list) else ()
        return Problem(text, status, clean(doc.get("code", ""), 40), lacks)

    def _problems(self):
        return _Problems(self)


_SO_NOSIGPIPE = 0x1022  # of macOS; Python has no name for it


def _hush():
    """Keeps a peer that hangs up from killing Blender.

    The Python of Blender 4 leaves SIGPIPE as the system has it: writing to a
    closed connection would end the whole process. Blocked, it is an error of
    this thread's write and no more.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})


class _Problems:
    """Turns what the network raises into Problems."""

    def __init__(self, client):
        self.client = client

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None or isinstance(error, GeneratorExit):
            return False
        # A socket that close() shut down fails in many ways; they all mean this.
        if self.client._closed and not isinstance(error, Stopped):
            raise Stopped() from None
        if isinstance(error, (Problem, Stopped)):
            return False
        if isinstance(error, ConnectionRefusedError):
            raise NoPeer(NOT_RUNNING if self.client.endpoint.folder else NOT_JOINED) from None
        if isinstance(error, ssl.SSLCertVerificationError):
            raise Problem(WRONG_CA % self.client.endpoint.base) from None
        if isinstance(error, socket.timeout):
            raise Problem("vizpeer does not answer: look at it with `vizpeer status`") from None
        if isinstance(error, (OSError, http.client.HTTPException)):
            name = clean(error, 200) or type(error).__name__
            raise Problem("The connection to %s broke (%s): see `vizpeer status`" % (self.client.endpoint.base, name)) from None
        return False


def _events(response):
    """Yields (type, document) of a stream of server-sent events."""
    kind, data, size = "message", [], 0
    while True:
        line = response.readline(LINE_LIMIT + 1)
        if not line:
            return
        if len(line) > LINE_LIMIT:
            raise Problem("An event of vizpeer is longer than the add-on reads")
        line = line.rstrip(b"\r\n")
        if not line:
            if data:
                yield kind, parse(b"\n".join(data))
            kind, data, size = "message", [], 0
            continue
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"event":
            kind = clean(value.decode("utf-8", "replace"), 60)
        elif field == b"data":
            size += len(value)
            if size > EVENT_LIMIT:
                raise Problem("An event of vizpeer is longer than the add-on reads")
            data.append(value)
