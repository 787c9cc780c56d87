"""ncaseg: segmentation of medical images with neural cellular automata, on the kernels of ``ncakern``.

The modules are imported by name (``from ncaseg import config``), so that importing the package loads neither torch
nor the kernels and ``ncaseg --help`` answers at once.
"""
