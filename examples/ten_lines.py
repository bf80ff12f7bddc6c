"""The README's example: explain a torchvision model (random weights here; load your own)."""

import torch
import torchvision

import fxlrp

model = torchvision.models.resnet18().eval()
twin = fxlrp.convert(model, "epsilon_plus_flat", record=("layer4",))

x = torch.randn(2, 3, 96, 96)
out = twin(x)  # explains each sample's highest output
print(out.output.shape, out.relevance.shape, out.recorded["layer4"].shape)

out = twin(x, target=torch.tensor([207, 281]))  # or a class for each sample
print(out.relevance.sum((1, 2, 3)), "of", out.output[[0, 1], [207, 281]])
