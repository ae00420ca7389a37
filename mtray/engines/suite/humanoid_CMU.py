"""humanoid_CMU: stand, walk, run."""

from mtray.engines.suite import humanoid


class TaskView(humanoid.TaskView):
    """The view of humanoid for a body whose spine is the torso's y axis."""

    torso = "thorax"
    limbs = ("lhand", "lfoot", "rhand", "rfoot")
    spine = 7
