"""Every kind of Triton kernel once, on grids of a few hundred cells: something to run under compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m benchmarks.gpu.small

Without torch's cache of memory each tensor ends where its allocation ends, so that an address behind it is found.
"""

import argparse

import torch

import ncakern

# (size, channels, hidden, filters, kernel, options of NCA)
SMALL = [
    ((7, 6, 9), 16, 64, 1, 3, {"norm": "batch", "frozen_channels": 1}),
    ((4, 5, 9), 5, 7, 1, 5, {"norm": "instance", "padding": "zeros", "activation": "leaky_relu"}),
    ((11, 13), 16, 64, 2, 3, {"padding": "circular"}),
    ((8, 9, 7), 16, 64, 1, 7, {"padding": "replicate"}),
    ((11, 13), 64, 512, 2, 3, {"perception": "dense"}),
    ((9, 7), 32, 128, 2, 3, {"perception": "dense", "norm": "batch"}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", type=int, choices=range(len(SMALL)), default=list(range(len(SMALL))))
    for size, channels, hidden, num_filters, kernel_size, options in (SMALL[i] for i in parser.parse_args().only):
        for dtype in (torch.float32, torch.bfloat16):
            nca = ncakern.NCA(
                len(size), channels, hidden, num_filters=num_filters, kernel_size=kernel_size, **options
            ).cuda()
            torch.nn.init.normal_(nca.out_weight, std=0.1)
            state = torch.rand(2, *size, channels, device="cuda").to(dtype).requires_grad_()
            nca(state, 3, seed=1, keep_every=2, backend="triton").sum().backward()
            torch.cuda.synchronize()
            assert torch.isfinite(state.grad).all()
            print(size, channels, hidden, options, dtype, "ran", flush=True)


if __name__ == "__main__":
    main()
