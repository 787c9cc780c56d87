"""Where the spread of cDAL's samples comes from: the noisy label, the latent z, or the fire bits of automata.

    python -m benchmarks.segmentation.cdal_noise run/model.safetensors --data Task04_Hippocampus --split run/split.json

One source is drawn anew while the others stay, then all are, for the first answer of a sampling run (tau = T - 1, pure
noise). Printed is how far the probabilities of foreground lie from their mean over the draws: the root mean square over
cells, cases and draws (n - 1), over all cells and over those of the labelled foreground.
"""

import argparse
from pathlib import Path

import torch

from ncaseg.checkpoint.model import load_model
from ncaseg.config import Config
from ncaseg.data.dataset import CaseStore, Volume
from ncaseg.data.index import find_cases
from ncaseg.data.split import load_split
from ncaseg.models.cdal.base import Generator
from ncaseg.sampling.cdal import decode, from_samples, generator_of, to_samples
from ncaseg.streams import normal

SOURCES = ("noise", "latent", "fire")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="weights of a cDAL")
    parser.add_argument("--data", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--split", type=Path, required=True, help="whose validation cases are taken")
    parser.add_argument("--cases", type=int, default=8, help="the first so many")
    parser.add_argument("--draws", type=int, default=6, help="of each source, at least 2")
    options = parser.parse_args()
    model, cfg, _ = load_model(options.model)
    chosen = load_split(options.split).validation[: options.cases]
    store = CaseStore(find_cases(options.data), cfg.data)
    print("| what is drawn anew | all cells | foreground |\n| --- | --- | --- |")
    for name, sources in [(source, {source}) for source in SOURCES] + [("all three", set(SOURCES))]:
        spreads = []
        for case in chosen:
            spreads.append(spread(generator_of(model), store[case], cfg, sources, options.draws))
        everywhere, inside = torch.tensor(spreads).square().mean(dim=0).sqrt().tolist()
        print(f"| {name} | {everywhere:.4f} | {inside:.4f} |")


@torch.no_grad()
def spread(net: Generator, volume: Volume, cfg: Config, sources: set[str], draws: int) -> tuple[float, float]:
    """Root mean square deviation over all cells of a case, and over those of its label, on its native grid.

    ``sources``, some of ``SOURCES``, differ from draw to draw.
    """
    image = torch.from_numpy(volume.image)[None]
    inputs = to_samples(image, net.ndim)
    tau = torch.full((len(inputs),), cfg.cdal.timesteps - 1)
    found = []
    for draw in range(draws):
        seeds = {source: draw if source in sources else 0 for source in SOURCES}
        x = normal((len(inputs), net.label_channels, *inputs.shape[2:]), seed=seeds["noise"], first_sample=0, step=0)
        z = normal((len(inputs), net.latent), seed=seeds["latent"], first_sample=0, step=1) if net.latent else None
        coded = net(x, tau, inputs, z if z is None else z * cfg.cdal.latent_on, seed=seeds["fire"])
        p = volume.to_native(decode(from_samples(coded, image.shape[-1], net.ndim), cfg.cdal)[0].numpy())
        found.append(torch.from_numpy(1 - p[0] if cfg.model.has_background else p[0]))
    squared = torch.stack(found).var(dim=0)
    is_inside = torch.from_numpy(volume.require_label() > 0)
    return squared.mean().sqrt().item(), squared[is_inside].mean().sqrt().item()


if __name__ == "__main__":
    main()
