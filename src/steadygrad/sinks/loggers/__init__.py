"""The loggers: one file each, found by being here."""
