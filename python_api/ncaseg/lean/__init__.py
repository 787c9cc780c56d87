"""Prediction without torch: numpy and the C++ kernel, in memory or in tiles."""
