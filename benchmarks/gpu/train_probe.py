"""Steps of training at the size of the papers: milliseconds and peak memory, beside eager PyTorch where it fits.

    python -m benchmarks.gpu.train_probe multicbam volume cdal [--page FILE]

multicbam: the published network, 256x256, batch 8; also eager. volume: a level of M3D-NCA on 320x320x24 cells without
patches. cdal: the generator of automata in 3D on 128x128x64 cells. A step is forward, backward and Adam; the images are
noise. Needs no library that reads images.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.gpu.cases import TINY
from benchmarks.harness import measure, record
from benchmarks.segmentation import denoiser, peak_memory
from benchmarks.segmentation.denoiser_eager import Answers
from ncaseg import config
from ncaseg.models import build_model

Step = Callable[[], Tensor]  # computes the loss
MIB = 2**20


def multicbam(provider: str) -> tuple[nn.Module, Step]:
    side, batch = (32, 2) if os.environ.get(TINY) else denoiser.PUBLISHED
    module = Answers(denoiser.build("multicbam", provider)).cuda()
    image = denoiser.picture(side, batch).cuda()
    return module, lambda: module(image).square().mean()


def volume(provider: str) -> tuple[nn.Module, Step]:
    problem = peak_memory.PROBLEMS["prostate-1level"]
    size = (16, 16, 8) if os.environ.get(TINY) else problem.size
    model = peak_memory.build(problem, provider).cuda()
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0)).cuda()
    target = (image > 0.9).float()

    def step() -> Tensor:
        logits, label = model.crop_forward(image, target, seed=0, keep_every="sqrt")
        return nn.functional.binary_cross_entropy_with_logits(logits, label)

    return model, step


def cdal(provider: str) -> tuple[nn.Module, Step]:
    cfg = config.load_recipe("cdal-nca-hippocampus-3d")
    size = (16, 16, 8) if os.environ.get(TINY) else (128, 128, 64)
    torch.manual_seed(0)
    net = build_model(cfg.model, cfg.cdal).generator.cuda()
    x, image = (torch.rand(1, count, *size).cuda() for count in (net.label_channels, cfg.model.in_channels))
    tau = torch.zeros(1, dtype=torch.long).cuda()
    latent = torch.randn(1, net.latent).cuda() if net.latent else None
    return net, lambda: net(x, tau, image, latent, seed=0).square().mean()


PROBES = {"multicbam": (multicbam, ("kernel", "eager")), "volume": (volume, ("kernel",)), "cdal": (cdal, ("kernel",))}


def probe(name: str, provider: str) -> str:
    """Measure one network, and say it as a line of the table; one that does not fit says so."""
    try:
        module, loss = PROBES[name][0](provider)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)

        def call() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()

        peak, timing = measure.peak_bytes(call), measure.time_on_device(call, seconds=15, max_rounds=20)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return f"| {name} | {provider} | out of memory | | |"
    spread = f"{timing.p20_ms:.1f} to {timing.p80_ms:.1f}"
    return f"| {name} | {provider} | {timing.p50_ms:.1f} ({spread}) | {timing.num_rounds} | {peak / MIB:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", choices=PROBES)
    parser.add_argument("--page", type=Path, help="also write the table here, line by line")
    options = parser.parse_args()
    lines = ["| network | provider | ms per step (20 to 80 %) | steps | peak, MiB |", "| --- | --- | --- | --- | --- |"]
    for name in options.networks:
        for provider in PROBES[name][1]:
            lines.append(probe(name, provider))
            print(lines[-1], flush=True)
            if options.page:
                record.write_file(options.page, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
