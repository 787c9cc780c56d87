"""What the project is measured by; see README.md. Run from the root of a clone: `python -m benchmarks.FOLDER.FILE`."""
