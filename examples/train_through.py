"""Train through relevance: one step that pushes relevance out of the left half of the image."""

import torch
import torchvision

import fxlrp

torch.manual_seed(0)
model = torchvision.models.resnet18(num_classes=4).train()
twin = fxlrp.convert(model, "epsilon_plus", trainable=True)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

x, labels = torch.randn(8, 3, 64, 64), torch.randint(4, (8,))
for step in range(5):
    out = twin(x, labels)
    share = out.relevance[..., :32].abs().sum() / out.relevance.abs().sum()
    loss = torch.nn.functional.cross_entropy(out.output, labels) + share
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: {share.item():.3f} of the relevance lies in the left half")
