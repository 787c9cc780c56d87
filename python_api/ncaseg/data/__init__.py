"""From files to tensors: cases, their split, their volumes, and synthetic ones."""
