"""Training: the loop, its tasks, and what they draw, measure and write."""
