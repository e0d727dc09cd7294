"""One attached optimizer: from `attach` to the weights, step by step."""
