"""Gradients that live on several ranks: one norm and one decision for all of them."""
