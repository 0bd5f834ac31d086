# SPDX-License-Identifier: Apache-2.0
"""Makes the sample scene: a floating island with a windmill, and a balloon.

    blender -b --factory-startup --python-exit-code 3 -P samplescene.py -- DIR

writes DIR/textures/meadow.png, DIR/library/props.blend and DIR/shot.blend. The
scene is small and loops: it is there to show a farm at work, not a renderer.
"""

import math
import os
import random
import sys

import bpy
from mathutils import Vector, noise

FRAMES = 24
DIR = sys.argv[sys.argv.index("--") + 1]
TEXTURE = os.path.join(DIR, "textures", "meadow.png")
PROPS = os.path.join(DIR, "library", "props.blend")
SHOT = os.path.join(DIR, "shot.blend")


def empty():
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.preferences.filepaths.save_version = 0


def material(name, color, roughness=0.9):
    m = bpy.data.materials.new(name)
    m.use_nodes = True
    shader = m.node_tree.nodes["Principled BSDF"]
    shader.inputs["Base Color"].default_value = color + (1.0,)
    shader.inputs["Roughness"].default_value = roughness
    for name in ("Specular", "Specular IOR Level"):
        if name in shader.inputs:
            shader.inputs[name].default_value = 0.1
    return m


def solid(name, points, faces, materials, choose=None, smooth=False, parent=None):
    """An object of the given mesh; choose(face) picks a material's index."""
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata(points, [], faces)
    for m in materials:
        mesh.materials.append(m)
    for face in mesh.polygons:
        face.use_smooth = smooth
        if choose:
            face.material_index = choose(face)
    mesh.update()
    ob = bpy.data.objects.new(name, mesh)
    ob.parent = parent
    return ob


def lathe(name, profile, sides, materials, **rest):
    """Turns a profile of (radius, height) around the vertical axis."""
    points, faces = [], []
    for radius, height in profile:
        for i in range(sides):
            a = 2 * math.pi * i / sides
            points.append((radius * math.cos(a), radius * math.sin(a), height))
    for row in range(len(profile) - 1):
        for i in range(sides):
            a, b = row * sides + i, row * sides + (i + 1) % sides
            faces.append((a, b, b + sides, a + sides))
    faces.append(tuple(reversed(range(sides))))
    faces.append(tuple(range((len(profile) - 1) * sides, len(profile) * sides)))
    return solid(name, points, faces, materials, **rest)


def box(name, size, at, mat, parent=None):
    x, y, z = (s / 2 for s in size)
    points = [Vector((i * x, j * y, k * z)) + Vector(at) for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return solid(name, points, faces, [mat], parent=parent)


def collection(name, objects):
    c = bpy.data.collections.new(name)
    for ob in objects:
        c.objects.link(ob)
    bpy.context.scene.collection.children.link(c)
    return c


def cycle(ob, path, index, values):
    """Animates evenly through values, which end where they begin for a loop."""
    for i, value in enumerate(values):
        data = getattr(ob, path)
        data[index] = value
        ob.keyframe_insert(path, index=index, frame=1 + i * FRAMES / (len(values) - 1))


def straight(ob, path):
    """Lets what is animated at path run evenly."""
    action = ob.animation_data.action
    curves = getattr(action, "fcurves", None)
    if curves is None:  # Blender 5 keeps them deeper
        curves = action.layers[0].strips[0].channelbags[0].fcurves
    for curve in curves:
        for key in curve.keyframe_points if curve.data_path == path else ():
            key.interpolation = "LINEAR"


def make_texture():
    """A meadow: patches of green, and flowers."""
    size, rnd = 256, random.Random(7)
    pixels = []
    for y in range(size):
        for x in range(size):
            # Walk two circles, so that the picture tiles.
            u, v = 2 * math.pi * x / size, 2 * math.pi * y / size
            n = noise.noise((2 * math.cos(u), 2 * math.sin(u), 2 * math.cos(v) + 3 * math.sin(v)))
            t = 0.5 + 0.5 * max(-1, min(1, 1.6 * n)) + rnd.uniform(-0.08, 0.08)
            pixels += (0.20 + 0.26 * t, 0.47 + 0.19 * t, 0.16 + 0.06 * t, 1.0)
    for _ in range(150):
        cx, cy = rnd.randrange(size), rnd.randrange(size)
        color = rnd.choice(((1.0, 0.97, 0.90), (1.0, 0.83, 0.25), (0.98, 0.55, 0.62)))
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                if dx * dx + dy * dy <= 5:
                    at = 4 * ((cy + dy) % size * size + (cx + dx) % size)
                    pixels[at:at + 3] = color
    image = bpy.data.images.new("meadow", size, size)
    image.pixels = pixels
    image.filepath_raw = TEXTURE
    image.file_format = "PNG"
    image.save()


def make_props():
    """The library: a tree, a windmill and a balloon, each a collection."""
    empty()
    wood = material("wood", (0.24, 0.12, 0.06))
    leaf = material("leaf", (0.06, 0.25, 0.10))
    light_leaf = material("light leaf", (0.13, 0.36, 0.10))
    trunk = lathe("trunk", [(0.10, 0.0), (0.07, 0.5)], 6, [wood])
    crown = lathe("crown", [(0.02, 0.28), (0.46, 0.36), (0.20, 0.85), (0.36, 0.80), (0.13, 1.25), (0.25, 1.20), (0.01, 1.70)],
                  7, [leaf, light_leaf], choose=lambda f: int(f.center.z > 1.15))
    collection("Tree", [trunk, crown])

    wall = material("wall", (0.85, 0.78, 0.66))
    roof = material("roof", (0.62, 0.13, 0.08))
    sail = material("sail", (0.93, 0.89, 0.80))
    dark = material("dark", (0.10, 0.08, 0.09))
    tower = lathe("tower", [(0.62, 0.0), (0.42, 1.55)], 8, [wall])
    cap = lathe("cap", [(0.52, 1.52), (0.50, 1.60), (0.02, 2.10)], 8, [roof])
    door = box("door", (0.24, 0.10, 0.42), (0, -0.56, 0.21), dark)
    window = box("window", (0.17, 0.10, 0.18), (0, -0.47, 1.02), dark)
    hub = lathe("hub", [(0.09, -0.12), (0.09, 0.10)], 8, [wood])
    hub.location, hub.rotation_euler = (0, -0.60, 1.62), (math.pi / 2, 0, 0)
    parts = [tower, cap, door, window, hub]
    for i in range(4):
        arm = box("arm", (0.05, 1.12, 0.04), (0, 0.56, 0.02), wood, parent=hub)
        cloth = box("cloth", (0.24, 0.78, 0.015), (0.15, 0.72, 0.02), sail, parent=hub)
        arm.rotation_euler[2] = cloth.rotation_euler[2] = i * math.pi / 2
        parts += [arm, cloth]
    cycle(hub, "rotation_euler", 2, (0.3, 0.3 + math.pi))  # four sails: half a turn loops
    straight(hub, "rotation_euler")
    collection("Windmill", parts)

    stripes = [material("stripe red", (0.80, 0.10, 0.07)), material("stripe cream", (0.94, 0.84, 0.62))]
    profile = [(0.14, 0.0), (0.42, 0.34), (0.62, 0.72), (0.64, 1.02), (0.50, 1.36), (0.25, 1.56), (0.02, 1.62)]
    bag = lathe("bag", profile, 16, stripes, smooth=True,
                choose=lambda f: int(math.atan2(f.center.y, f.center.x) % (math.pi / 4) > math.pi / 8))
    basket = box("basket", (0.24, 0.24, 0.20), (0, 0, -0.42), wood)
    ropes = [box("rope", (0.015, 0.015, 0.36), (x, y, -0.16), dark) for x in (-0.1, 0.1) for y in (-0.1, 0.1)]
    collection("Balloon", [bag, basket] + ropes)
    bpy.ops.wm.save_as_mainfile(filepath=PROPS, compress=False)


def instance(source, at, scale=1.0, turn=0.0):
    ob = bpy.data.objects.new(source.name, None)
    ob.instance_type = "COLLECTION"
    ob.instance_collection = source
    ob.location, ob.rotation_euler[2], ob.scale = at, turn, (scale,) * 3
    bpy.context.scene.collection.objects.link(ob)
    return ob


def ground(x, y):
    """The height of the island's meadow."""
    r = math.hypot(x, y)
    return 0.16 * noise.noise((0.55 * x, 0.55 * y, 4.0)) - 0.028 * r * r * 0.35


def island():
    """A disc of meadow on a cone of rock."""
    sides, rings = 40, 9
    edge = [3.0 + 0.36 * noise.noise((2.2 * math.cos(2 * math.pi * i / sides), 2.2 * math.sin(2 * math.pi * i / sides), 1.0))
            for i in range(sides)]
    points, faces = [(0.0, 0.0, ground(0, 0))], []
    below = ((0.93, -0.42), (0.80, -0.95), (0.58, -1.50), (0.34, -2.10), (0.12, -2.70))
    for ring in range(1, rings + 1):
        for i in range(sides):
            a, r = 2 * math.pi * i / sides, edge[i] * ring / rings
            x, y = r * math.cos(a), r * math.sin(a)
            points.append((x, y, ground(x, y)))
    for part, depth in below:
        for i in range(sides):
            a = 2 * math.pi * i / sides
            jag = 1 + 0.16 * noise.noise((3 * math.cos(a), 3 * math.sin(a), 2.3 * depth))
            points.append((edge[i] * part * jag * math.cos(a), edge[i] * part * jag * math.sin(a), depth * jag))
    points.append((0.0, 0.0, -3.05))
    first = lambda row: 1 + row * sides  # noqa: E731
    for i in range(sides):
        faces.append((0, first(0) + i, first(0) + (i + 1) % sides))
    for row in range(rings + len(below) - 1):
        for i in range(sides):
            j = (i + 1) % sides
            faces.append((first(row) + i, first(row + 1) + i, first(row + 1) + j, first(row) + j))
    last = first(rings + len(below) - 1)
    for i in range(sides):
        faces.append((last + i, len(points) - 1, last + (i + 1) % sides))

    meadow = material("meadow", (1.0, 1.0, 1.0))
    nodes, links = meadow.node_tree.nodes, meadow.node_tree.links
    picture = nodes.new("ShaderNodeTexImage")
    picture.image = bpy.data.images.load(TEXTURE)
    picture.image.filepath = bpy.path.relpath(TEXTURE)
    where = nodes.new("ShaderNodeTexCoord")
    scale = nodes.new("ShaderNodeMapping")
    scale.inputs["Scale"].default_value = (0.24, 0.24, 0.24)
    links.new(where.outputs["Object"], scale.inputs["Vector"])
    links.new(scale.outputs["Vector"], picture.inputs["Vector"])
    links.new(picture.outputs["Color"], nodes["Principled BSDF"].inputs["Base Color"])
    soil, rock = material("soil", (0.30, 0.17, 0.09)), material("rock", (0.33, 0.27, 0.26))

    def layer(face):
        if face.index < sides * rings:
            return 0
        return 1 if face.index < sides * (rings + 1) else 2
    return solid("island", points, faces, [meadow, soil, rock], choose=layer)


def cloud(name, at, scale, seed):
    """A heap of low-poly puffs."""
    rnd = random.Random(seed)
    white = bpy.data.materials.get("cloud") or material("cloud", (0.95, 0.95, 0.97))
    parent = bpy.data.objects.new(name, None)
    parent.location, parent.scale = at, (scale,) * 3
    made = [parent]
    for i in range(5):
        r = 0.34 + 0.30 * (1 - abs(i - 2) / 2) + rnd.uniform(-0.05, 0.05)
        profile = [(r * math.sin(math.pi * k / 8), -r * math.cos(math.pi * k / 8) * 0.75) for k in range(9)]
        profile[0], profile[-1] = (0.01, profile[0][1]), (0.01, profile[-1][1])
        puff = lathe(name, profile, 14, [white], smooth=True, parent=parent)
        puff.location = (0.52 * (i - 2), rnd.uniform(-0.15, 0.15), rnd.uniform(-0.04, 0.10) + 0.25 * r)
        made.append(puff)
    for ob in made:
        bpy.context.scene.collection.objects.link(ob)
    return parent


def sky(scene):
    world = scene.world = bpy.data.worlds.new("sky")
    world.use_nodes = True
    nodes, links = world.node_tree.nodes, world.node_tree.links
    where, split, ramp = (nodes.new(n) for n in ("ShaderNodeTexCoord", "ShaderNodeSeparateXYZ", "ShaderNodeValToRGB"))
    links.new(where.outputs["Window"], split.inputs[0])
    links.new(split.outputs["Y"], ramp.inputs["Fac"])
    ramp.color_ramp.elements[0].color = (0.98, 0.72, 0.50, 1)
    ramp.color_ramp.elements[1].color = (0.16, 0.42, 0.78, 1)
    middle = ramp.color_ramp.elements.new(0.42)
    middle.color = (0.62, 0.76, 0.90, 1)
    # What the camera sees is the ramp; what lights the scene is even, and free of noise.
    seen, light, mix, ray = (nodes.new(n) for n in ("ShaderNodeBackground", "ShaderNodeBackground", "ShaderNodeMixShader", "ShaderNodeLightPath"))
    links.new(ramp.outputs["Color"], seen.inputs["Color"])
    light.inputs["Color"].default_value = (0.55, 0.68, 0.95, 1)
    light.inputs["Strength"].default_value = 0.75
    links.new(ray.outputs["Is Camera Ray"], mix.inputs["Fac"])
    links.new(light.outputs[0], mix.inputs[1])
    links.new(seen.outputs[0], mix.inputs[2])
    links.new(mix.outputs[0], nodes["World Output"].inputs["Surface"])
    world.cycles.sampling_method = "NONE"  # there is nothing in it to aim at


def settings(scene):
    render, cycles = scene.render, scene.cycles
    render.engine = "CYCLES"
    render.resolution_x, render.resolution_y, render.resolution_percentage = 320, 180, 100
    render.fps = 12
    render.filepath = "//frames/shot_"
    render.image_settings.file_format = "PNG"
    render.image_settings.color_mode = "RGB"
    scene.frame_start, scene.frame_end = 1, FRAMES
    cycles.samples = 16
    cycles.use_adaptive_sampling = False
    cycles.use_denoising = False
    cycles.max_bounces = cycles.diffuse_bounces = 2
    cycles.glossy_bounces = cycles.transmission_bounces = 1
    cycles.caustics_reflective = cycles.caustics_refractive = False
    cycles.sample_clamp_indirect = 2.0
    scene.view_settings.view_transform = "Standard"


def make_shot():
    empty()
    scene = bpy.context.scene
    bpy.ops.wm.save_as_mainfile(filepath=SHOT, compress=False)  # so that paths can be relative to it
    with bpy.data.libraries.load(PROPS, link=True, relative=True) as (_, chosen):
        chosen.collections = ["Tree", "Windmill", "Balloon"]
    prop = bpy.data.collections

    settings(scene)
    sky(scene)
    scene.collection.objects.link(island())
    instance(prop["Windmill"], (-0.35, 0.55, ground(-0.35, 0.55) - 0.05), 1.12, 0.45)
    rnd = random.Random(11)
    for x, y, size in ((-2.1, 0.2, 0.95), (-1.65, 1.25, 1.15), (-1.75, -0.75, 0.70), (1.25, 1.35, 1.10), (1.95, 0.75, 0.85),
                       (2.2, -0.25, 0.62), (0.85, 2.05, 0.90), (-0.6, 2.2, 1.0), (-0.95, -1.75, 0.58), (1.45, -1.2, 0.50)):
        instance(prop["Tree"], (x, y, ground(x, y) - 0.04), size, rnd.uniform(0, 6))
    balloon = instance(prop["Balloon"], (1.95, -0.9, 1.7), 0.85)
    cycle(balloon, "location", 2, (1.55, 2.0, 1.55))
    cycle(balloon, "rotation_euler", 2, (0.0, math.pi / 4))  # as far as a pair of stripes
    straight(balloon, "rotation_euler")

    for i, (at, size) in enumerate((((-4.3, 3.6, 2.3), 1.0), ((4.8, 4.2, 2.6), 0.85), ((3.1, -1.6, -1.5), 0.62), ((-3.4, -1.2, -1.9), 0.55))):
        puff = cloud("cloud", at, size, i)
        cycle(puff, "location", 0, (at[0], at[0] + 0.35, at[0]))

    sun = bpy.data.objects.new("sun", bpy.data.lights.new("sun", "SUN"))
    sun.data.energy, sun.data.angle, sun.data.color = 4.2, math.radians(1), (1.0, 0.86, 0.68)
    sun.rotation_euler = (math.radians(52), math.radians(8), math.radians(-48))
    scene.collection.objects.link(sun)

    pivot = bpy.data.objects.new("pivot", None)
    pivot.location = (0.1, 0, 0.35)
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.data.lens = 39
    camera.parent = pivot
    camera.location = (0, -11.4, 3.3)
    look = Vector((0, 0, 0.12)) - camera.location
    camera.rotation_euler = look.to_track_quat("-Z", "Y").to_euler()
    for ob in (pivot, camera):
        scene.collection.objects.link(ob)
    cycle(pivot, "rotation_euler", 2, (-0.24, 0.24, -0.24))
    scene.camera = camera
    bpy.ops.wm.save_as_mainfile(filepath=SHOT, compress=False)


empty()
make_texture()
make_props()
make_shot()
