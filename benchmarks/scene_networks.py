"""Small networks for scenes.py, of the families that are explained in the literature on LRP, trained in minutes.

    python benchmarks/scene_networks.py [NETWORK ...] [--kind shapes] [--count N] [--epochs N] [--kept FOLDER]

Prints how many of the test scenes each network gets right. Networks: vgg (VGG-16 with batch norms), vgg_plain
(without), resnet (ResNet-18), densenet, efficientnet, relation (a Relation Network, on scenes of the kind questions).

    from scene_networks import Training, accuracy, trained
    from scenes import Shapes

    model = trained("resnet", Training(kept=Path("networks")))
    print(accuracy(model, Shapes("test", 600)))
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from scenes import KINDS, Scenes
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet, EfficientNet, ResNet
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.resnet import BasicBlock

VGG16 = (8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M")
"""VGG-16, an eighth as wide."""


def vgg(classes: int, *, norm: bool = True) -> nn.Module:
    """VGG-16, an eighth as wide: 13 convolutions, five poolings, three fully connected layers."""
    layers: list[nn.Module] = []
    channels = 3
    for out in VGG16:
        if isinstance(out, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, out, 3, padding=1), *([nn.BatchNorm2d(out)] if norm else []), nn.ReLU()]
        channels = out
    head = [nn.Linear(4 * channels, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, classes)]
    return initialized(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *head))


def initialized(model: nn.Module) -> nn.Module:
    """The weights that networks of ReLUs without batch norms are trained from (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def resnet(classes: int, *, width: int = 16) -> nn.Module:
    """ResNet-18, a quarter as wide, with a stem for small images."""
    model = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    model.inplanes = width
    model.conv1, model.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
    for i in range(4):
        setattr(model, f"layer{i + 1}", model._make_layer(BasicBlock, width << i, 2, stride=1 if i == 0 else 2))
    model.fc = nn.Linear(width << 3, classes)
    return model


def densenet(classes: int) -> nn.Module:
    """Three dense blocks of four layers each, that grow by 16."""
    make: Any = DenseNet  # Which takes any number of blocks, though it says four.
    return make(growth_rate=16, block_config=(4, 4, 4), num_init_features=32, bn_size=2, num_classes=classes)


def efficientnet(classes: int) -> nn.Module:
    """Mobile inverted bottlenecks in four stages, with depthwise layers, squeeze and excitation, and SiLU."""
    stages = ((1, 3, 1, 16, 16, 1), (4, 3, 2, 16, 24, 2), (4, 5, 2, 24, 40, 2), (4, 3, 2, 40, 64, 1))
    return EfficientNet([MBConvConfig(*stage, 1.0, 1.0) for stage in stages], dropout=0.0, num_classes=classes)


class RelationNetwork(nn.Module):
    """Santoro et al. 2017: what pairs of places in an image have to do with a question, summed up.

    As in theirs, the last batch norm's value goes into the pairs, with places and question (Pahde et al., appendix B).

    Parameters
    ----------
    classes : int
        How many answers.
    words : int
        The question's length.
    channels, hidden : int
        How wide.
    """

    def __init__(self, classes: int, words: int = 6, *, channels: int = 32, hidden: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into in (3, channels, channels, channels):
            layers += [nn.Conv2d(into, channels, 3, stride=2, padding=1), nn.ReLU(), nn.BatchNorm2d(channels)]
        self.features = nn.Sequential(*layers)
        place = channels + 2
        self.relation = nn.Sequential(
            nn.Linear(2 * place + words, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.answer = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        found = self.features(image)
        height, width = found.shape[-2:]
        line = lambda n: torch.linspace(-1, 1, n, dtype=found.dtype, device=found.device)
        places = torch.stack(torch.meshgrid(line(height), line(width), indexing="ij")).expand(len(found), -1, -1, -1)
        objects = torch.cat([found, places], 1).flatten(2).transpose(1, 2)
        n = objects.shape[1]
        first, second = objects[:, :, None].expand(-1, -1, n, -1), objects[:, None].expand(-1, n, -1, -1)
        asked = question[:, None, None].expand(-1, n, n, -1)
        # The sum, for each object: that over all pairs is too large to begin with.
        return self.answer(self.relation(torch.cat([first, second, asked], 3)).sum((1, 2)) / n)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "vgg": vgg,
    "vgg_plain": partial(vgg, norm=False),
    "resnet": resnet,
    "densenet": densenet,
    "efficientnet": efficientnet,
    "relation": RelationNetwork,
}
"""Each network by its name: ``NETWORKS[name](classes)``."""


def train(
    model: nn.Module, scenes: Scenes, *, epochs: int = 10, batch: int = 64, lr: float = 3e-3, seed: int = 0
) -> nn.Module:
    """Train a network on scenes, in place, by Adam with one cycle of the learning rate.

    Parameters
    ----------
    model : nn.Module
        A network; its weights are what it starts from.
    scenes : Scenes
        All are kept in memory: 64 x 64 pixels are 48 kB each.
    epochs, batch : int
        How often each scene is seen, and how many at a time.
    lr : float
        The highest learning rate.
    seed : int
        Of the order.

    Returns
    -------
    nn.Module
        The network, in evaluation mode.
    """
    x, labels, _ = scenes.tensors()
    inputs = x if isinstance(x, tuple) else (x,)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 2))
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=generator).split(batch):
            if len(chosen) < batch:  # Batch norms take no batch of one.
                continue
            loss = F.cross_entropy(model(*(each[chosen].to(device) for each in inputs)), labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes
    ----------
    kind : str
        Of scenes.
    count : int or None
        How many scenes; None: 3000, and of relation 20000, a gigabyte.
    epochs, size, seed : int
        How often each is seen; their pixels; of weights, scenes and order.
    kept : Path or None
        The folder in which weights are kept, and looked for before training.
    """

    kind: str = "shapes"
    count: int | None = None
    epochs: int = 10
    size: int = 64
    seed: int = 0
    kept: Path | None = None

    def of(self, name: str) -> Training:
        """The same for a network: a Relation Network is asked questions."""
        return self if name != "relation" else replace(self, kind="questions", count=self.count or 20000)

    def scenes(self, split: str, count: int) -> Scenes:
        return KINDS[self.kind](split, count, size=self.size, seed=self.seed)


def trained(name: str, how: Training) -> nn.Module:
    """A network of `NETWORKS`, trained on scenes; if it is kept, as it is there."""
    how = how.of(name)
    scenes = how.scenes("train", how.count or 3000)
    torch.manual_seed(how.seed)
    model = NETWORKS[name](len(scenes.classes))
    if how.kept is None:
        return train(model, scenes, epochs=how.epochs, seed=how.seed)
    path = how.kept / f"{name}_{how.kind}_{len(scenes)}_{how.epochs}_{how.size}_{how.seed}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    train(model, scenes, epochs=how.epochs, seed=how.seed)
    how.kept.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, scenes: Scenes, batch: int = 100) -> float:
    """The share of scenes that a network gets right."""
    x, labels, _ = scenes.tensors()
    inputs = x if isinstance(x, tuple) else (x,)
    device = next(model.parameters()).device
    parts: Iterator[tuple[Any, ...]] = zip(*(each.split(batch) for each in inputs), strict=True)
    found = torch.cat([model(*(each.to(device) for each in part)).argmax(1).cpu() for part in parts])
    return float((found == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", default=list(NETWORKS))
    parser.add_argument("--kind", choices=KINDS, default="shapes", help="relation has questions, whatever this says")
    parser.add_argument("--count", type=int, help="training scenes (default: 3000; of relation, 20000, a gigabyte)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=Path, metavar="FOLDER", help="where weights are kept, and looked for first")
    args = parser.parse_args()
    if unknown := set(args.networks) - set(NETWORKS):
        parser.error(f"there are no networks {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    how = Training(args.kind, args.count, args.epochs, args.size, args.seed, args.kept)
    print("| network | scenes | parameters | trained, s | right of the test scenes |\n| --- | --- | --- | --- | --- |")
    for name in track(args.networks, "Training", transient=True):
        held = how.of(name).scenes("test", min(args.count or 600, 600))
        start = time.perf_counter()
        model = trained(name, how)
        taken, numbers = time.perf_counter() - start, sum(p.numel() for p in model.parameters())
        print(
            f"| {name} | {how.of(name).kind} | {numbers / 1e3:.0f} k | {taken:.0f} | {accuracy(model, held):.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
