"""The diagnoses: one file each, found by being here."""
