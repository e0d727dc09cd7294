"""Recovery of PyTorch trainings: snapshots of all that a training holds, and acting on verdicts."""
