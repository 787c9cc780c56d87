"""MedSegDiffNCA: the denoiser, its rollout with attention, and that attention."""
