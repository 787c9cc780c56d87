"""Pictures, charts and tables for people."""
