"""Trainer libraries: one thin file each over `steadygrad.torch.attach`.

Nothing is imported here, so that asking for one trainer never loads another.
"""
