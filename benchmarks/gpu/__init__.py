"""The rollout on an accelerator, and what can be said of it without one."""
