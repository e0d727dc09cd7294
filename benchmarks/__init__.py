"""What things cost: `python -m benchmarks` prints one table and writes it as CSV."""
