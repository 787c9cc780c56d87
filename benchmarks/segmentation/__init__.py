"""Whole networks and recipes of ncaseg: time, memory, spread."""
