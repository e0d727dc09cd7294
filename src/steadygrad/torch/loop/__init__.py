"""What the first steps show of a loop: its losses' graphs, and how gradients are handled."""
