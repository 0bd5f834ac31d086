# SPDX-License-Identifier: Apache-2.0
"""Tells what a frame of the open file may owe to those rendered before it.

One Blender renders frames of many attempts, in the order in which they come. That
changes no pixel of most files, because a frame is evaluated from the file and its
number alone. These are the others.
"""

# The releases where render data that persist were compared with those that do not,
# feature by feature: see TestPersistentDataChangesNoPixel.
COMPARED = ((3, 4),)

def _baked(cache):
    return cache is not None and (cache.is_baked or getattr(cache, "use_external", False))


def _simulation(modifier):
    """What the modifier simulates while Blender renders; None where it does not."""
    if modifier.type == "CLOTH":
        return None if _baked(modifier.point_cache) else "the cloth"
    if modifier.type == "SOFT_BODY":
        return None if _baked(modifier.point_cache) else "the soft body"
    if modifier.type == "DYNAMIC_PAINT":
        canvas = modifier.canvas_settings
        surfaces = canvas.canvas_surfaces if canvas else ()
        return "the dynamic paint" if any(not _baked(surface.point_cache) for surface in surfaces) else None
    if modifier.type in ("SMOKE", "FLUID_SIMULATION"):  # up to 2.81
        return "the fluid"
    if modifier.type == "FLUID" and modifier.fluid_type == "DOMAIN":
        # The other types of cache are baked, or stay empty.
        return "the fluid" if modifier.domain_settings.cache_type == "REPLAY" else None
    return None


def simulations(bpy):
    """Yields a name for each simulation that Blender would run during the render.

    Such a one goes on from the frame before, and so depends on which that was.
    """
    for scene in bpy.data.scenes:
        world = scene.rigidbody_world
        if world is not None and world.enabled and not _baked(world.point_cache):
            yield "the rigid body world"
    for ob in bpy.data.objects:
        for modifier in ob.modifiers:
            what = _simulation(modifier)
            if what is not None:
                yield "%s of %r" % (what, ob.name)
        for system in ob.particle_systems:
            moves = system.settings.type != "HAIR" or system.use_hair_dynamics
            if moves and not _baked(system.point_cache):
                yield "the particle system of %r" % ob.name
    for group in bpy.data.node_groups:
        for node in group.nodes:
            if node.bl_idname == "GeometryNodeSimulationOutput":
                yield "the geometry of the nodes %r" % group.name


def persists(bpy, scene):
    """Whether Cycles may keep render data from one frame for the next.

    It takes over what has changed, but does not see all of it. With particles and
    hair, where Simplify is on and where subdivision adapts to the camera, other pixels
    came out than without.
    """
    if scene.render.engine != "CYCLES" or bpy.app.version[:2] not in COMPARED:
        return False
    if any(s.render.use_simplify for s in bpy.data.scenes):
        return False
    for ob in bpy.data.objects:
        if ob.type in ("CURVES", "HAIR") or len(ob.particle_systems):
            return False
        cycles = getattr(ob, "cycles", None)
        if cycles is not None and getattr(cycles, "use_adaptive_subdivision", False):
            return False
    return True
