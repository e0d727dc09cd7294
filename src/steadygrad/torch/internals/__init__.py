"""Everything that reaches inside torch: its patches and its private names."""
