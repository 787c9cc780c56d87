"""Masks and labels sampled by diffusion with a trained network."""
