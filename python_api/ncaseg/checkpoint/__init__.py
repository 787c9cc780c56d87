"""Weights on disk with their recipe: written and loaded with torch, read without."""
