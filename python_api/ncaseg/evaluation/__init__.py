"""Scores of a model against labels, and the conditions that they hold under."""
