"""Gaussian diffusion: schedules, targets, samplers, ensembles. Knows neither networks nor files."""
