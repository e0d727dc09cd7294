"""A script's own clip calls: what they were given, what they left, and where they stand."""
