"""How time and latent steer an automaton: a factor and a shift per hidden unit, the same at all cells and steps."""

from torch import Tensor, nn

SMALL = 0.02  # deviation of the weights at the start: factors near 1, shifts near 0, yet no two times or latents equal


class Modulation(nn.Module):
    """``(scale, shift)``, each ``[B, hidden]``: ``(1, 0)`` plus a learned row per time and a dense layer of the latent.

    Args:
        hidden: h of the automaton.
        timesteps: T.
        width: features of :class:`ncaseg.models.cdal.layers.LatentMap`; 0 without a latent.
    """

    def __init__(self, hidden: int, timesteps: int, width: int) -> None:
        super().__init__()
        self.time = nn.Embedding(timesteps, 2 * hidden)
        nn.init.normal_(self.time.weight, std=SMALL)
        self.latent = nn.Linear(width, 2 * hidden, bias=False) if width else None
        if self.latent is not None:
            nn.init.normal_(self.latent.weight, std=SMALL)

    def forward(self, tau: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        change = self.time(tau)
        if self.latent is not None:
            assert features is not None  # there is a width because there is a latent
            change = change + self.latent(features)
        scale, shift = change.chunk(2, dim=1)
        return 1 + scale, shift
