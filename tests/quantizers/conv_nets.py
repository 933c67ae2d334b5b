"""Two small convolutional networks, one on features, one on samples, whose batchnorms are not the identity."""

import torch

from kwsbench.models.convolutional import ConvNet
from kwsbench.models.layers import Add, Conv, Front, Network, Output, Pool, same_padding

LABELS = ("_other_", "yes", "no")
SPECTRAL = Network(
    Front("mfcc", 10, 640, 320),
    LABELS,
    (
        Conv("stem", 1, 8, (5, 3), (1, 2), same_padding(10, 3, 2)),
        Conv("a_expand", 8, 12),
        Conv("a_depthwise", 12, 12, (5, 5), (2, 2), same_padding(5, 5, 2), depthwise=True),
        Conv("a_project", 12, 8, relu=False),
        Conv("b_depthwise", 8, 8, (3, 3), (1, 1), same_padding(3, 3, 1), depthwise=True),
        Conv("b_project", 8, 8, relu=False),
        Add("b_add", "a_project"),
        Conv("head", 8, 12),
        Pool("pool", 6),
        Output("output", 12, 3),
    ),
)
RAW = Network(
    Front("raw"),
    LABELS,
    (
        Conv("sinc", 1, 6, (11, 1), (2, 1), filters="sinc"),
        Conv("stride", 6, 6, (5, 1), (5, 1), depthwise=True),
        Conv("first", 6, 7, (3, 1)),
        Conv("second", 7, 7, (4, 1)),
        Add("add", "first"),
        Conv("last", 7, 5, relu=False),
        Pool("pool", 4),
        Output("output", 5, 3),
    ),
)


def made(network: Network, seed: int = 0) -> ConvNet:
    """A network in evaluation: gains of both signs, offsets, and statistics of its own on :func:`heard`."""
    model = ConvNet(network, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for conv in model.convs.values():
        gamma = conv.norm.gamma.data.uniform_(0.5, 1.5, generator=generator)
        gamma.mul_(torch.where(torch.rand(len(gamma), generator=generator) < 0.3, -1, 1))
        conv.norm.beta.data.normal_(generator=generator)
    model.output.bias.data.normal_(generator=generator)
    if network.front.kind != "raw":
        model.set_normalisation(
            torch.randn(network.front.bins, generator=generator),
            torch.rand(network.front.bins, generator=generator) + 0.5,
        )
    for _ in range(100):
        model.train()(heard(network))
    return model.eval()


def heard(network: Network, frames: int = 60, batch: int = 4, seed: int = 3) -> torch.Tensor:
    """Made-up clips: features, or 16-bit samples at full scale +-1."""
    generator = torch.Generator().manual_seed(seed)
    if network.front.kind == "raw":
        samples = torch.randint(-(2**15), 2**15, (batch, frames, 1), generator=generator)
        return samples.float() / 2**15
    return 2 * torch.randn(batch, frames, network.front.bins, generator=generator)
