# SPDX-License-Identifier: Apache-2.0
"""Makes the hostile .blend files of TestHostileFiles, one for each way out.

    blender -b --factory-startup -P hostile.py -- HERE PLACES.json

HERE is the folder they go to. PLACES names what they aim at: "outside", a folder
where anything may be written that gets out; "etc", a file name in /etc; "secret",
a red picture outside of the project; "port", where the test listens; "pid", the
test's own process. Whatever gets out does no harm: bombs end by themselves.
"""

import gzip
import json
import os
import struct
import sys
import wave

import bpy

here, places = sys.argv[sys.argv.index("--") + 1:]
with open(places, encoding="utf-8") as f:
    to = json.load(f)
WRITE = "print('\\nPAYLOAD', flush=True)\nfor p in (%r, %r):\n    try: open(p, 'w').write('x')\n    except OSError: pass\n"


def touch(name):
    """Python that writes where it should not."""
    return WRITE % (os.path.join(to["outside"], name), to["etc"])


def scene():
    """An empty file that renders in no time: a lit plane, 16 pixels square."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    s = bpy.context.scene
    s.render.engine = "CYCLES"
    s.cycles.samples, s.cycles.use_denoising, s.cycles.use_adaptive_sampling = 1, False, False
    s.render.resolution_x = s.render.resolution_y = 16
    s.render.resolution_percentage = 100
    s.view_settings.view_transform = "Standard"
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.data.type, camera.data.ortho_scale, camera.location = "ORTHO", 2.0, (0, 0, 3)
    s.collection.objects.link(camera)
    s.camera = camera
    mesh = bpy.data.meshes.new("plane")
    mesh.from_pydata([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)], [], [(0, 1, 2, 3)])
    mesh.uv_layers.new()
    plane = bpy.data.objects.new("plane", mesh)
    s.collection.objects.link(plane)
    return s, plane


def save(name):
    bpy.ops.wm.save_as_mainfile(filepath=os.path.join(here, name + ".blend"), relative_remap=False)


def text(name, body):
    t = bpy.data.texts.new(name)
    t.write(body)
    t.use_module = name.endswith(".py")
    return t


def material(plane):
    m = bpy.data.materials.new("m")
    m.use_nodes = True
    plane.data.materials.append(m)
    return m.node_tree


def glow(tree, socket):
    e = tree.nodes.new("ShaderNodeEmission")
    tree.links.new(socket, e.inputs[0])
    tree.links.new(e.outputs[0], tree.nodes["Material Output"].inputs[0])


def picture(path):
    """The plane shows the file at path."""
    s, plane = scene()
    image = bpy.data.images.new("i", 4, 4)
    image.source = "FILE"
    image.filepath = path
    tree = material(plane)
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image = image
    glow(tree, node.outputs[0])
    return s


# Python that waits for Blender to run it. Where it runs before the driver, it can put
# the guard out of action too.
NO_GUARD = "import sys, types\nm = types.ModuleType('guard')\nm.guard = lambda *a: []\nm.release = m.hold = lambda *a: None\n" \
           "m.node_trees = lambda bpy: []\nsys.modules['guard'] = m\n"

scene()
text("go.py", touch("text"))
save("text")

scene()
text("go.py", "import bpy\n@bpy.app.handlers.persistent\ndef go(*a):\n" +
     "".join("    " + line + "\n" for line in touch("handler").splitlines()) +
     "for h in ('load_post', 'frame_change_pre', 'render_pre', 'render_post', 'depsgraph_update_post'):\n"
     "    getattr(bpy.app.handlers, h).append(go)\n")
save("handler")

_, plane = scene()
d = plane.driver_add("location", 0).driver
d.type, d.expression = "SCRIPTED", "__import__('os').system('echo; echo PAYLOAD; touch %s/driver %s') * 0.0" % (to["outside"], to["etc"])
save("driver")

_, plane = scene()
text("go.py", "import bpy\ndef go():\n    __import__('os').system('echo; echo PAYLOAD; touch %s/space %s')\n    return 0.0\n"
     "bpy.app.driver_namespace['go'] = go\n" % (to["outside"], to["etc"]))
d = plane.driver_add("location", 0).driver
d.type, d.expression = "SCRIPTED", "go()"
save("namespace")

for name in ("freestyle", "freestyle_unguarded"):
    s, _ = scene()
    if name != "freestyle":
        text("go.py", NO_GUARD)
    style = text("style", touch("freestyle"))
    s.render.use_freestyle = True
    layer = s.view_layers[0]
    layer.use_freestyle = True
    layer.freestyle_settings.mode = "SCRIPT"
    layer.freestyle_settings.modules.new().script = style
    save(name)


def output(tree, base, slot, source):
    n = tree.nodes.new("CompositorNodeOutputFile")
    n.base_path = base
    n.file_slots[0].path = slot
    tree.links.new(source, n.inputs[0])


for name in ("outputs", "outputs_unguarded"):
    s, _ = scene()
    if name != "outputs":
        text("go.py", NO_GUARD + "print('\\nPAYLOAD', flush=True)\n")
    s.use_nodes = True
    layers = s.node_tree.nodes["Render Layers"].outputs[0]
    output(s.node_tree, to["outside"], "base", layers)
    output(s.node_tree, to["etc"] + ".d", "etc", layers)
    output(s.node_tree, "//", "../" * 20 + to["outside"].lstrip("/") + "/climb", layers)
    group = bpy.data.node_groups.new("g", "CompositorNodeTree")
    if hasattr(group, "interface"):
        group.interface.new_socket("in", in_out="INPUT", socket_type="NodeSocketColor")
    else:
        group.inputs.new("NodeSocketColor", "in")
    output(group, to["outside"], "group", group.nodes.new("NodeGroupInput").outputs[0])
    n = s.node_tree.nodes.new("CompositorNodeGroup")
    n.node_tree = group
    s.node_tree.links.new(layers, n.inputs[0])
    save(name)

# The test makes the links and the FIFO beside the files.
for name, path in {
    "link": "//link.png", "shadow": "//shadow.png", "absolute": to["secret"], "pipe": "//pipe.png",
    "zero": "/dev/zero", "stdin": "/dev/stdin", "memory": "/proc/self/mem", "climbing": "//" + "../" * 20 + to["secret"].lstrip("/"),
}.items():
    picture(path)
    save(name)

s, _ = scene()
s.render.filepath = "//" + "../" * 20 + to["outside"].lstrip("/") + "/frame"
save("climb")

s, _ = scene()
s.render.image_settings.file_format = "FFMPEG"
s.render.filepath = to["outside"] + "/movie.mkv"
save("movie")

# Ten million faces, and far more.
_, plane = scene()
for count in (100, 100, 100, 10):
    m = plane.modifiers.new("many", "ARRAY")
    m.count, m.show_viewport = count, False
save("faces")
_, plane = scene()
for _ in range(3):
    m = plane.modifiers.new("fine", "SUBSURF")
    m.render_levels = m.levels = 6
    m.show_viewport = False
save("levels")

# 65536 pixels square, 16 bytes each, in several layers.
s, _ = scene()
s.render.resolution_x = s.render.resolution_y = 65536
s.render.image_settings.file_format, s.render.image_settings.color_depth = "OPEN_EXR_MULTILAYER", "32"
layer = s.view_layers[0]
layer.use_pass_combined = layer.use_pass_z = layer.use_pass_normal = layer.use_pass_position = layer.use_pass_vector = True
save("huge")

# Groups in groups, each twice: a million nodes, in a file of twenty.
for name, depth, times in (("doubling", 20, 2), ("deep", 500, 1)):
    _, plane = scene()
    below = None
    for i in range(depth):
        g = bpy.data.node_groups.new("g%d" % i, "ShaderNodeTree")
        if hasattr(g, "interface"):
            g.interface.new_socket("out", in_out="OUTPUT", socket_type="NodeSocketColor")
        else:
            g.outputs.new("NodeSocketColor", "out")
        mix = g.nodes.new("ShaderNodeMixRGB")
        for k in range(times if below else 0):
            n = g.nodes.new("ShaderNodeGroup")
            n.node_tree = below
            g.links.new(n.outputs[0], mix.inputs[1 + k])
        g.links.new(mix.outputs[0], g.nodes.new("NodeGroupOutput").inputs[0])
        below = g
    tree = material(plane)
    n = tree.nodes.new("ShaderNodeGroup")
    n.node_tree = below
    glow(tree, n.outputs[0])
    save(name)

s, plane = scene()
s.cycles.shading_system = True
tree = material(plane)
for mode, path in (("EXTERNAL", "/etc/passwd"), ("EXTERNAL", to["outside"] + "/x.osl"), ("INTERNAL", "")):
    n = tree.nodes.new("ShaderNodeScript")
    n.mode = mode
    if mode == "INTERNAL":
        n.script = text("shader.osl", "shader s(output color c = 0) { c = texture(\"/etc/passwd\", 0, 0); }")
    else:
        n.filepath = path
save("osl")

# Smoke whose cache lies in /etc and outside; needs a Blender with its fluids.
s, plane = scene()
for at in (to["etc"] + ".d", to["outside"]):
    bpy.ops.mesh.primitive_cube_add(size=2)
    ob = bpy.context.object
    m = ob.modifiers.new("fluid", "FLUID")
    m.fluid_type = "DOMAIN"
    m.domain_settings.resolution_max = 6
    m.domain_settings.cache_type = "REPLAY"
    m.domain_settings.cache_directory = at
save("fluid")

# A sound and a clip that never end.
s, _ = scene()
sound = os.path.join(here, "quiet.wav")
with wave.open(sound, "wb") as w:
    w.setparams((1, 2, 8000, 80, "NONE", ""))
    w.writeframes(bytes(160))
strips = s.sequence_editor_create().sequences
strips.new_sound("s", sound, 1, 1)
shot = bpy.data.images.new("c", 4, 4)
shot.filepath_raw, shot.file_format = os.path.join(here, "clip.png"), "PNG"
shot.save()
clip = bpy.data.movieclips.load(os.path.join(here, "clip.png"))
strips.new_clip("c", clip, 2, 1)
clip.filepath = "/dev/zero"
bpy.data.sounds[0].filepath = "/dev/zero"
s.render.use_sequencer = True
save("endless")

# A library that is not part of the project.
bpy.ops.wm.read_factory_settings(use_empty=True)
other = bpy.data.objects.new("stranger", bpy.data.meshes.new("stranger"))
bpy.context.scene.collection.objects.link(other)
library = os.path.join(to["library"], "library.blend")
bpy.ops.wm.save_as_mainfile(filepath=library)
s, _ = scene()
with bpy.data.libraries.load(library, link=True, relative=False) as (_, b):
    b.objects = ["stranger"]
s.collection.objects.link(b.objects[0])
save("library")

# What is no .blend, or not all of one.
with open(os.path.join(here, "text.blend"), "rb") as f:
    whole = f.read()
for name, content in {
    "cut": whole[:len(whole) // 2], "garbage": whole[:64] + os.urandom(1 << 16), "noise": os.urandom(1 << 16),
    "lengths": whole[:12] + struct.pack("<4siQii", b"SC\0\0", 0x7fffffff, 1, 1, 1) + whole[12:], "empty": b"",
    "packed": gzip.compress(whole[:12] + struct.pack("<4siQii", b"DATA", 0x7ffffff0, 1, 0, 1) + bytes(1 << 28), 1),
}.items():
    with open(os.path.join(here, name + ".blend"), "wb") as f:
        f.write(content)

# Bombs, for a Blender that runs what is in the file. Each ends by itself.
scene()
text("go.py", """
import os, signal
for _ in range(9):
    try:
        if os.fork() == 0:
            os.setsid()
            signal.alarm(20)
    except OSError:
        break
signal.alarm(20)
signal.pause()
""")
save("forks")

scene()
text("go.py", "import time\nheld = []\nfor _ in range(30):\n    held.append(bytearray(b'x') * (100 << 20))\n    time.sleep(0.05)\n")
save("hoard")

scene()
text("go.py", """
import os, time
f = [os.memfd_create("m%d" % i) for i in range(40)]
for fd in f:
    for _ in range(64):
        os.write(fd, bytes(1 << 20))
    time.sleep(0.05)
time.sleep(10)
""")
save("nameless")

scene()
text("go.py", """
import os, tempfile, time
f = []
try:
    for i in range(20):
        f.append(tempfile.TemporaryFile())
        for _ in range(40):
            f[-1].write(bytes(1 << 20))
        f[-1].flush()
        time.sleep(0.1)
except OSError:
    pass
time.sleep(10)
""")
save("unlinked")

scene()
text("go.py", """
import os, time
try:
    for i in range(20):
        with open("/dev/shm/%d" % i, "wb") as f:
            for _ in range(40):
                f.write(bytes(1 << 20))
        time.sleep(0.1)
except OSError:
    pass
time.sleep(10)
""")
save("shared")

# Every way out of the sandbox that comes to mind, told on stdout.
scene()
text("go.py", "to = %r\nhere = %r\n" % (to, here) + r'''
import bpy, ctypes, errno, glob, os, platform, socket

def wall(name, way):
    try:
        end = way()
        print("\nWALL %s: %s" % (name, "open" if end is None or end is True else end), flush=True)
    except OSError as e:
        print("\nWALL %s: holds, %s" % (name, errno.errorcode.get(e.errno, e)), flush=True)
    except Exception as e:
        print("\nWALL %s: holds, %r" % (name, e), flush=True)

def write(path):
    def way():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o600))
    return way

def read(path):
    def way():
        with open(path, "rb") as f:
            f.read(1)
    return way

for path in (to["etc"], "/usr/vizpeer-hostile", "/vizpeer-hostile", "/dev/vizpeer-hostile", "/var/vizpeer-hostile", to["outside"] + "/wall",
             to["data"] + "/wall", bpy.data.filepath, "/vizpeer/driver/driver.py", "/vizpeer/vizpeer-hostile",
             "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/pressure/memory"):
    wall("write " + path, write(path))
for path in (to["secret"], to["data"] + "/key", "/etc/shadow", "/etc/passwd", "/root", "/home", "/var", "/sys/kernel", "/proc/kcore", "/proc/1/root/etc/shadow"):
    wall("read " + path, read(path) if not os.path.isdir(path) else lambda: True)

def mounts():
    bad = []
    for line in open("/proc/self/mountinfo"):
        f = line.split()
        if f[5].split(",")[0] == "rw" and not f[4].startswith(("/dev/", "/tmp", "/vizpeer/out", "/proc")) or f[4] == "/dev" and f[5].startswith("rw"):
            bad.append(f[4])
    return "open " + " ".join(bad) if bad else "holds"
wall("mounts", mounts)

def connect(family, kind, address):
    def way():
        with socket.socket(family, kind) as s:
            s.settimeout(2)
            s.connect(address)
    return way

wall("net loopback", connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", to["port"])))
wall("net abroad", connect(socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 9)))
wall("net six", connect(socket.AF_INET6, socket.SOCK_DGRAM, ("2001:db8::1", 9)))
wall("net abstract", connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + to["socket"]))
wall("net host", connect(getattr(socket, "AF_VSOCK", 40), socket.SOCK_STREAM, (2, 9)))
wall("net packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
wall("net algorithms", lambda: socket.socket(38, socket.SOCK_SEQPACKET).close())
wall("process", lambda: os.kill(to["pid"], 0))
wall("processes", lambda: "open" if len(glob.glob("/proc/[0-9]*")) > 4 else "holds")

status = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
wall("capabilities", lambda: "holds" if all(int(status[k], 16) == 0 for k in ("CapEff", "CapPrm", "CapBnd", "CapAmb")) else "open")
wall("privileges", lambda: "holds" if status["NoNewPrivs"].strip() == "1" else "open")
wall("open files", lambda: "holds" if __import__("resource").getrlimit(7)[1] <= 8192 else "open")
wall("oom", lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1000") < 0)
wall("oom first", lambda: "holds" if int(open("/proc/self/oom_score_adj").read()) >= 900 else "open")

if platform.machine() == "x86_64":
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    def call(number, *args):
        def way():
            if libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in args]) < 0:
                e = ctypes.get_errno()
                # What the kernel itself says to senseless arguments is no wall.
                if e not in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT):
                    return "open, the kernel says %s" % errno.errorcode[e]
                raise OSError(e, "")
        return way
    for name, number, args in (
        ("ptrace", 101, (0, 0, 0, 0)), ("unshare user", 272, (0x10000000,)), ("clone user", 56, (0x10000000 | 17, 0, 0, 0, 0)),
        ("clone3", 435, (0, 0)), ("mount", 165, (0, 0, 0, 0, 0)), ("umount", 166, (0, 0)), ("chroot", 161, (0,)), ("setns", 308, (-1, 0)),
        ("io_uring", 425, (1, 0)), ("bpf", 321, (0, 0, 0)), ("userfaultfd", 323, (1,)), ("keyctl", 250, (0, -3, 1)), ("add_key", 248, (0, 0, 0, 0, 0)),
        ("perf", 298, (0, 0, -1, -1, 0)), ("memfd_secret", 447, (0,)), ("shmget", 29, (0, 4096, 0o1600)), ("process_vm_readv", 310, (1, 0, 0, 0, 0, 0)),
        ("open_by_handle_at", 304, (-1, 0, 0)), ("x32", 0x40000000 + 39, ()), ("tiocsti", 16, (0, 0x5412, 0)), ("fsopen", 430, (0, 0)),
    ):
        wall("call " + name, call(number, *args))
    print("\nWALL filter: %s" % ("holds" if status["Seccomp"].strip() == "2" else "open"), flush=True)
print("\nWALL end: holds", flush=True)
''')
save("wall")
