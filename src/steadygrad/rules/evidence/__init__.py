"""What several rules read: views of a run, the story of its first NaN, its clip calls."""
