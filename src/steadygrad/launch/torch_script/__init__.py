"""Observing a PyTorch script: what is patched (`install`), and what is made of it (`observer`)."""
