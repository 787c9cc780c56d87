"""The rollout on the CPU: the kernel, eager PyTorch, torch.compile and others, by turns."""
