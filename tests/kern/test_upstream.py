"""Checkpoints of M3D-NCA, Med-NCA and Growing-NCA, against their layers written out in upstream's own layout."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ncakern import load_upstream


def _draw(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name.replace("_", "."): 0.3 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def _upstream_step(tensors: dict[str, Tensor], state: Tensor, *, frozen: int) -> Tensor:
    """One step with every cell firing, as the upstream modules compute it on ``[B, X, Y(, Z), C]``."""
    x = state.transpose(1, -1)  # [B, C, Y, X] or [B, C, Y, Z, X]: what the convolution sees
    ndim = x.dim() - 2
    conv = F.conv2d if ndim == 2 else F.conv3d
    seen = [x]
    for name in ("p0", "p1"):
        if f"{name}.weight" in tensors:
            weight = tensors[f"{name}.weight"]
            pad = [(k - 1) // 2 for k in reversed(weight.shape[2:]) for _ in range(2)]
            groups = x.shape[1] // weight.shape[1]
            seen.append(conv(F.pad(x, pad, mode="reflect"), weight, tensors[f"{name}.bias"], groups=groups))
    if len(seen) == 1:  # Growing-NCA: fixed Sobel filters, zero padding
        dx = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=x.dtype) / 8
        for kernel in (dx, dx.T):
            seen.append(conv(x, kernel.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1]))
    y = torch.cat(seen, 1).transpose(1, -1)
    y = F.linear(y, tensors["fc0.weight"], tensors["fc0.bias"])
    if "bn.weight" in tensors:
        channels_first = y.movedim(-1, 1)
        y = F.batch_norm(channels_first, None, None, tensors["bn.weight"], tensors["bn.bias"], training=True).movedim(
            1, -1
        )
    delta = F.linear(F.relu(y), tensors["fc1.weight"])
    return torch.cat((state[..., :frozen], (state + delta)[..., frozen:]), -1)


DENSE = {"fc0_weight": (6, 12), "fc0_bias": (6,), "fc1_weight": (4, 6)}
M3D = {"p0_weight": (4, 1, 3, 3, 3), "p0_bias": (4,), **DENSE, "fc0_weight": (6, 8), "bn_weight": (6,), "bn_bias": (6,)}
MED = {"p0_weight": (4, 4, 3, 3), "p0_bias": (4,), "p1_weight": (4, 4, 3, 3), "p1_bias": (4,), **DENSE}


@pytest.mark.parametrize(
    ("shapes", "size", "frozen", "perception", "padding"),
    [
        (M3D, (4, 5, 6), 1, "depthwise", "reflect"),
        (MED, (5, 7), 3, "dense", "reflect"),
        (DENSE, (5, 7), 0, "depthwise", "zeros"),
    ],
    ids=["m3d-nca", "med-nca", "growing-nca"],
)
def test_loaded_module_computes_what_upstream_does(
    shapes: dict, size: tuple, frozen: int, perception: str, padding: str
) -> None:
    tensors = _draw(**shapes)
    nca = load_upstream(tensors, upstream_fire_rate=0.0, frozen_channels=frozen).double()
    assert (nca.spec.perception, nca.spec.padding, nca.spec.fire_rate) == (perception, padding, 1.0)
    # load_state_dict copies into float32 parameters: give upstream's layer the same rounded numbers.
    rounded = {name: tensor.float().double() for name, tensor in tensors.items()}
    state = torch.randn(2, *size, 4, dtype=torch.float64)
    expected = state
    for _ in range(3):
        expected = _upstream_step(rounded, expected, frozen=frozen)
    torch.testing.assert_close(nca(state, 3, seed=0), expected, rtol=1e-12, atol=1e-12)


def test_fire_rate_is_turned_around() -> None:
    nca = load_upstream(_draw(**DENSE), upstream_fire_rate=0.7)
    assert nca.spec.fire_rate == pytest.approx(0.3)


def test_fixed_filters_do_not_train() -> None:
    frozen = load_upstream(_draw(**DENSE))
    assert not frozen.perceive_weight.requires_grad and not frozen.perceive_bias.requires_grad
    assert frozen.hidden_weight.requires_grad
    assert load_upstream(_draw(**MED)).perceive_weight.requires_grad


def test_m3d_nca_has_the_published_number_of_parameters() -> None:
    # One level with k = 7: the hippocampus model of the paper.
    shapes = {"p0_weight": (16, 1, 7, 7, 7), "p0_bias": (16,), "fc0_weight": (64, 32), "fc0_bias": (64,)}
    shapes |= {"bn_weight": (64,), "bn_bias": (64,), "fc1_weight": (16, 64)}
    nca = load_upstream(_draw(**shapes))
    assert sum(p.numel() for p in nca.parameters()) == 8768


def test_file_is_read(tmp_path: Path) -> None:
    tensors = _draw(**MED)
    torch.save(tensors, tmp_path / "model0.pth")
    from_file, direct = load_upstream(tmp_path / "model0.pth"), load_upstream(tensors)
    for (name, a), (_, b) in zip(from_file.named_parameters(), direct.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("remove", "add", "message"),
    [
        ("fc0.bias", {}, "missing: fc0.bias; not expected: none"),
        ("p1.bias", {}, "missing: p1.bias; not expected: none"),
        (None, {"bn.running_mean": torch.zeros(6)}, "missing: none; not expected: bn.running_mean"),
        ("fc1.weight", {"fc2.weight": torch.zeros(1)}, "missing: fc1.weight; not expected: fc2.weight"),
        (None, {"p1.weight": torch.zeros(4, 4, 5, 5)}, r"p1.weight must have the shape of p0.weight"),
        (None, {"p0.weight": torch.zeros(4, 2, 3, 3)}, r"p0.weight must be \[C, 1, \*k\] or \[C, C, \*k\] with C=4"),
        (None, {"fc0.weight": torch.zeros(6, 8)}, r"source must give hidden_weight the shape \(6, 12\); got \(6, 8\)"),
        (None, {"fc1.weight": torch.zeros(4)}, r"fc1.weight must be \[C, h\]"),
    ],
)
def test_wrong_state_dict_is_refused(remove: str | None, add: dict, message: str) -> None:
    tensors = {name: tensor for name, tensor in _draw(**MED).items() if name != remove} | add
    with pytest.raises(ValueError, match=message):
        load_upstream(tensors)


def test_wrong_source_is_refused() -> None:
    with pytest.raises(TypeError, match="source must be a state dict or the path of one; got list"):
        load_upstream([torch.zeros(3)])
    with pytest.raises(ValueError, match="upstream_fire_rate must be in"):
        load_upstream(_draw(**DENSE), upstream_fire_rate=1.5)
