"""ISNets in several processes: two that share a batch do what one does with all of it."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import fxlrp
from fxlrp.testing import trained

STEPS, HALF, CLASSES = 5, 4, 3
VARIANTS = ("selective", "dual", "original")
SHARES = (slice(0, 3), slice(3, 7))
SUPERVISED = ("block", "pool")
# The layers' losses are ranked, in each process for its share: these are so far apart that all ranks are the same.
RANGES = {"input": (0.01, 0.02), "block": (0.01, 10.0), "pool": (5.0, 6.0)}


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels, momentum=0.3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.bn(self.conv(x)))


class Net(nn.Module):
    """A small residual network; no linear layer stands in front of its first batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(2)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.down = nn.MaxPool2d(2)
        self.block = Block(4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        x = self.down(self.relu(self.bn(self.conv(self.bn0(x)))))
        return self.fc(self.pool(self.block(x)).flatten(1))


def model() -> nn.Module:
    torch.manual_seed(0)
    return trained(Net()).train()


def synchronized(network: nn.Module, process_group=None) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(network, process_group)


def batches():
    """Images, labels and masks of the joint batches; of each, the first process has the first half."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(2 * HALF, 2, 8, 8, generator=generator).double()
        labels = torch.randint(CLASSES, (2 * HALF,), generator=generator)
        yield x, labels, torch.rand(2 * HALF, 8, 8, generator=generator) < 0.5


def part(batch, rank: int | None):
    return batch if rank is None else tuple(value[rank * HALF : (rank + 1) * HALF] for value in batch)


def isnet_of(network: nn.Module, variant: str) -> fxlrp.ISNet:
    return fxlrp.ISNet(network, variant, deep_supervision=SUPERVISED)


def ranges_of(isnet: fxlrp.ISNet, rank: int | None = None, **options):
    return fxlrp.calibrate(isnet, [part(batch, rank) for batch in batches()], progress=False, **options)


def train(isnet, loss, loader, rank: int | None = None, accelerator=None, synchronize: bool = False):
    """The user's loop; the state and the losses behind it."""
    optimizer = torch.optim.SGD(isnet.parameters(), lr=0.02, momentum=0.9)
    wrapped = isnet if rank is None else DistributedDataParallel(isnet)
    if accelerator is not None:
        wrapped, optimizer, loader = accelerator.prepare(isnet, optimizer, loader)
    if synchronize:  # Now, for on a CPU DistributedDataParallel refuses a model with SyncBatchNorm.
        synchronized(isnet.model)
    totals = []
    for batch in loader:
        x, labels, masks = part(batch, rank)
        optimizer.zero_grad()
        total = loss(wrapped(x), labels, masks).total
        (total.backward if accelerator is None else lambda total=total: accelerator.backward(total))()
        optimizer.step()
        totals.append(total.item())
    return {name: value.detach().clone() for name, value in isnet.model.state_dict().items()}, totals


def loader_of(size: int):
    data = torch.utils.data.TensorDataset(*(torch.cat(values) for values in zip(*batches(), strict=True)))
    return torch.utils.data.DataLoader(data, batch_size=size)


def one_batch():
    return torch.randn(7, 2, 8, 8, generator=torch.Generator().manual_seed(2)).double()


def unequal(network: nn.Module, share: slice):
    """Logits, heatmaps, gradients and buffers of one step on a share of a batch."""
    out = fxlrp.ISNet(network)(one_batch()[share])
    (out.heatmaps["input"].square().sum() + out.logits.square().sum()).backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    return out.logits.detach(), out.heatmaps["input"].detach(), gradients, dict(network.named_buffers())


def work(rank: int, port: int, path: str) -> None:
    """All that two processes are to show, for there is only one spawn: each writes what it found."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo")
    both, *groups = (dist.new_group(ranks) for ranks in ([0, 1], [0], [1]))
    found = {"ranges": ranges_of(isnet_of(synchronized(model(), both), "dual"), rank)}
    loss = fxlrp.ISNetLoss(ranges=RANGES)
    for variant in VARIANTS:
        found["trained", variant] = train(isnet_of(model(), variant), loss, batches(), rank, synchronize=True)

    found["ranges with epochs"] = ranges_of(fxlrp.ISNet(synchronized(model()).eval()), rank, epochs=1)

    found["unequal"] = unequal(synchronized(model()), SHARES[rank])

    found["alone"] = unequal(synchronized(model(), groups[rank]), SHARES[rank])

    torch.manual_seed(rank)  # The stochastic ISNet draws its classes in each process on its own.
    found["plain"] = train(isnet_of(model(), "stochastic"), fxlrp.ISNetLoss(), batches(), rank)

    try:
        from accelerate import Accelerator
    except ImportError:
        pass
    else:
        found["accelerate"] = train(
            isnet_of(model(), "selective"),
            loss,
            loader_of(HALF),
            accelerator=Accelerator(cpu=True),
            synchronize=True,
        )
    torch.save(found, f"{path}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes found."""
    path = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    spawn(work, (port, str(path)), nprocs=2)
    return [torch.load(path / str(rank), weights_only=False) for rank in range(2)]


def assert_same_state(state, expected, bound=1e-8):
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert (value - expected[name]).abs().max() <= bound, name


def assert_same_ranges(ranges, expected):
    assert ranges.keys() == expected.keys()
    for name, pairs in ranges.items():
        torch.testing.assert_close(torch.tensor(pairs), torch.tensor(expected[name]), rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def expected():
    """State and losses of one process with the joint batch, by variant."""
    return {v: train(isnet_of(model(), v), fxlrp.ISNetLoss(ranges=RANGES), batches()) for v in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_train_as_one_with_the_joint_batch(found, expected, variant):
    state, totals = expected[variant]
    for name, value in model().state_dict().items():
        # A bias in front of a batch norm on the batch's statistics has no effect; all others have.
        assert (state[name] - value).abs().max() > 1e-5 or name == "conv.bias", name
    for each in found:
        assert_same_state(each["trained", variant][0], state)
    of_processes = torch.tensor([each["trained", variant][1] for each in found])
    torch.testing.assert_close(of_processes.mean(0), torch.tensor(totals), rtol=1e-6, atol=0)
    assert not torch.allclose(of_processes[0], of_processes[1])


def test_two_processes_calibrate_as_one_with_all_data(found):
    ranges = ranges_of(isnet_of(model(), "dual"))
    for each in found:
        assert_same_ranges(each["ranges"], ranges)


def test_calibration_with_epochs_of_two_processes_is_that_of_one(found):
    """In evaluation mode: PyTorch's own SyncBatchNorm, with which the plain classifier is trained, wants a GPU."""
    isnet = fxlrp.ISNet(model().eval())
    ranges = ranges_of(isnet, epochs=1)
    assert ranges["input"] != pytest.approx(ranges_of(isnet)["input"], rel=1e-3)
    for each in found:
        assert_same_ranges(each["ranges with epochs"], ranges)


def test_shares_of_different_size_are_one_batch(found):
    logits, heatmaps, gradients, buffers = unequal(model(), slice(None))
    for index, joint in enumerate((logits, heatmaps)):
        parts = torch.cat([each["unequal"][index] for each in found])
        torch.testing.assert_close(parts, joint, rtol=1e-9, atol=1e-9)
    for name, gradient in gradients.items():
        total = sum(each["unequal"][2][name] for each in found)
        torch.testing.assert_close(total, gradient, rtol=1e-9, atol=1e-9, msg=name)
    for each in found:
        assert_same_state(each["unequal"][3], buffers, 1e-12)


def test_a_process_group_of_one_synchronizes_nothing(found):
    for each, share in zip(found, SHARES, strict=True):
        torch.testing.assert_close(each["alone"], unequal(model(), share), rtol=0, atol=0)


def test_plain_batch_norms_run_in_two_processes(found):
    first, second = (each["plain"] for each in found)
    names = [name for name, _ in model().named_parameters()]
    assert_same_state({name: first[0][name] for name in names}, {name: second[0][name] for name in names}, 0)
    assert first[1] != second[1]
    assert torch.isfinite(torch.tensor([first[1], second[1]])).all()


@pytest.mark.parametrize("training", [True, False])
def test_without_processes_a_synchronized_batch_norm_is_a_batch_norm(training):
    network, plain = synchronized(model()).train(training), model().train(training)
    torch.testing.assert_close(unequal(network, slice(None)), unequal(plain, slice(None)), rtol=0, atol=0)
    assert type(network.bn) is nn.SyncBatchNorm


def test_accelerate_in_one_process_is_the_plain_loop(expected):
    accelerate = pytest.importorskip("accelerate")
    isnet, loss = isnet_of(model(), "selective"), fxlrp.ISNetLoss(ranges=RANGES)
    try:
        found = train(isnet, loss, loader_of(2 * HALF), accelerator=accelerate.Accelerator(cpu=True))
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    torch.testing.assert_close(found, expected["selective"], rtol=0, atol=0)


def test_accelerate_in_two_processes_is_one_with_the_joint_batch(found, expected):
    pytest.importorskip("accelerate")
    for each in found:
        assert_same_state(each["accelerate"][0], expected["selective"][0])
