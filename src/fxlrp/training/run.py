"""A model in training: what happens to it, and what of it is saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, DistributedSampler

from ..conversion import convert
from ..errors import FxlrpError, InputError, ModelError
from ..isnet import ISNet, ISNetLoss, ISNetLosses
from ..isnet.ranges import Ranges
from ..isnet.variants import Settings, epsilon_composite
from ..zoo import LoadedModel
from .checkpoint import Checkpoint, State
from .data import MaskedImages, Sample
from .heatmaps import background_share
from .log import COLUMNS, Row
from .settings import TrainSettings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderShard

__all__ = ["CLIP", "Run"]

CLIP = 1.0
"""Largest norm of the gradient (appendix F)."""


class Run:
    """A model in training: what happens to it, and what of it is saved."""

    def __init__(
        self,
        accelerator: Accelerator,
        loaded: LoadedModel,
        settings: TrainSettings,
        training: list[Sample],
        validation: list[Sample],
    ) -> None:
        self.accelerator, self.settings, self.loaded = accelerator, settings, loaded
        self.training_samples, self.validation_samples = training, validation
        model = loaded.model.to(accelerator.device).train()
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model
        # A constant of the model's own may be infinite.
        self.finite = [name for name, value in model.state_dict().items() if value.isfinite().all()]
        low, high = (bound.to(accelerator.device) for bound in loaded.bounds)
        self.isnet = ISNet(
            model,
            settings.variant,
            settings.epsilon,
            settings.first_layer,
            (low, high),
            settings.deep_supervision,
        )
        self.optimizer: Optimizer = SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
        # Whatever the variant, relevance is looked at in the same way.
        rules = Settings(settings.epsilon, settings.first_layer, (low, high), "bounded", 1e-2, flex=False)
        self.twin = convert(model, epsilon_composite(rules), trainable=True)
        size = min(settings.batch_size, len(training) // accelerator.num_processes)
        self.loader = self._loader(training, size, shuffled=True)
        self.validation_loader = self._loader(validation, size, shuffled=False) if validation else None

    def _loader(self, samples: Sequence[Sample], batch_size: int, *, shuffled: bool) -> DataLoaderShard:
        data = MaskedImages(samples, self.settings.size, self.loaded.mean, self.loaded.std)
        # In the order of the seed and the epoch alone. One replica: accelerate gives each process its batches.
        order = DistributedSampler(data, num_replicas=1, rank=0, seed=self.settings.seed) if shuffled else None
        workers = self.settings.workers
        loader = DataLoader(
            data, batch_size, sampler=order, drop_last=shuffled, num_workers=workers, persistent_workers=workers > 0
        )
        return self.accelerator.prepare(loader)

    def start(self, ranges: Ranges) -> None:
        """Get ready to train."""
        self.loss = self._loss(ranges)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.isnet, self.optimizer)

    def _loss(self, ranges: Ranges) -> ISNetLoss:
        settings = self.settings
        return ISNetLoss(settings.p, settings.d, settings.w1, settings.w2, ranges)

    def epoch(self, epoch: int, advance: Callable[[], None]) -> Row:
        """Train for one epoch, and validate."""
        accelerator, began = self.accelerator, time.perf_counter()
        # Random numbers of an epoch do not depend on whether there was an interruption before.
        torch.manual_seed(self.settings.seed + epoch * accelerator.num_processes + accelerator.process_index)
        self.loader.set_epoch(epoch)
        sums = torch.zeros(len(ISNetLosses._fields) + 2, device=accelerator.device)
        for x, labels, masks, has_mask in self.loader:
            with accelerator.autocast():
                out = self.wrapped(x)
                losses = self.loss(out, labels, masks, has_mask)
            accelerator.backward(losses.total)
            accelerator.clip_grad_norm_(self.wrapped.parameters(), CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
            hits = (out.logits.argmax(1) == labels).sum()
            sums += torch.stack([*(part.detach() * len(x) for part in losses), hits, torch.full_like(hits, len(x))])
            advance()
        *totals, count = cast(Tensor, accelerator.reduce(sums, "sum")).tolist()
        figures = [total / count for total in totals]
        found = [epoch + 1, time.perf_counter() - began, *figures, *self._validated()]
        return dict(zip(COLUMNS, found, strict=True))

    def _validated(self) -> tuple[float | None, float | None]:
        """Accuracy, and the share of relevance in the background; None where there is nothing to take it of."""
        if self.validation_loader is None:
            return None, None
        from accelerate.utils import broadcast

        # Each process has running statistics of its own batches; those of the first are written.
        broadcast(list(self.model.buffers()))
        found = []
        for x, labels, masks, has_mask in self.validation_loader:
            output, relevance = self._explain(x, labels)
            counts = has_mask & masks.flatten(1).any(1)
            share = torch.where(counts, background_share(relevance, masks), 0.0)
            table = torch.stack([(output.argmax(1) == labels).float(), share, counts.float()], 1)
            found.append(self.accelerator.gather_for_metrics(table))
        hits, share, counts = torch.cat(found).mean(0).tolist()
        return hits, share / counts if counts else None

    def _explain(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Output, and LRP-epsilon of the true classes, in evaluation mode."""
        self.model.eval()
        with torch.no_grad():
            out = self.twin(x, labels)
        self.model.train()
        return out.output, out.relevance

    def explained(self, samples: Sequence[Sample]) -> list[tuple[Tensor, Tensor]]:
        """Probabilities and relevance of each sample."""
        data = MaskedImages(samples, self.settings.size, self.loaded.mean, self.loaded.std)
        device = self.accelerator.device
        x = torch.stack([data[i][0] for i in range(len(data))]).to(device)
        output, relevance = self._explain(x, torch.tensor([sample.label for sample in samples], device=device))
        for sample, finite in zip(samples, output.isfinite().all(1).tolist(), strict=True):
            if not finite:
                raise ModelError(f"the model's output of {sample.image} is not finite (NaN or infinite)")
        return list(zip(output.softmax(1).cpu(), relevance.cpu(), strict=True))

    def state(self) -> State:
        """What it takes to go on."""
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load(self, saved: Checkpoint, path: Path) -> None:
        """Go on from there. To be called before `start`."""
        scaler = self.accelerator.scaler
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if scaler is not None:
                scaler.load_state_dict(saved["scaler"] or {})
            self._loss(saved["ranges"])
        # Of all kinds: the conditions are the same, so this is damage.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} does not fit the model, begin anew with --restart: {reason}") from error
        ruined = self._ruined()
        if ruined:
            raise InputError(f"{path} is of no use, begin anew with --restart: {ruined[0]} is not finite")

    def _ruined(self) -> list[str]:
        """The weights that are not finite any more."""
        state = self.model.state_dict()
        return [name for name in self.finite if not state[name].isfinite().all()]

    def check(self, row: Row, checkpoint: Path) -> None:
        """See that an epoch did not ruin the model, before it is saved."""
        wrong = [f"the {'loss' if k == 'total' else k} is {v}" for k, v in row.items() if not math.isfinite(v or 0)]
        wrong += [f"{name} is not finite" for name in self._ruined()]
        if wrong:
            raise FxlrpError(
                f"{wrong[0]} in epoch {row['epoch']}: lower --lr, or raise --epsilon. {checkpoint} is of the epoch "
                "before"
            )
