"""Shapes that several benchmarks share; apart from them, since each loads its own framework."""

from __future__ import annotations


def gpt2_small() -> list[tuple[int, ...]]:
    """The 148 parameters of GPT-2 small."""
    block = [(768,), (768,), (768, 2304), (2304,), (768, 768), (768,), (768,), (768,)]
    block += [(768, 3072), (3072,), (3072, 768), (768,)]
    return [(50257, 768), (1024, 768), *(block * 12), (768,), (768,)]
