"""A vision transformer of two blocks against AttnLRP written out for one image, number by number (arXiv 2402.05602)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers.config import set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from zennit.composites import LayerMapComposite
from zennit.layer import Sum
from zennit.rules import Epsilon, Norm, Pass
from zennit.types import Activation, Linear

import fxlrp
from fxlrp.testing import trained

EPSILON = 1e-3
DEFAULT = 1e-6
HEADS, PATCH, GRID = 2, 4, 2


def stable(z, epsilon):
    return z + epsilon * torch.where(z >= 0, 1.0, -1.0)


def of_matrix(matrix, bias, x, relevance, epsilon):
    """LRP-epsilon of ``y = matrix x + bias`` for one token: ``sum_k M_ki x_i R_k / (y_k + eps sign)``."""
    contributions = matrix * x[None, :]
    return (contributions * (relevance / stable(contributions.sum(1) + bias, epsilon))[:, None]).sum(0)


def of_linear(layer, x, relevance):
    return torch.stack([of_matrix(layer.weight, layer.bias, *pair, EPSILON) for pair in zip(x, relevance, strict=True)])


def of_norm(norm, x, relevance):
    """With the deviation constant, a layer norm is the centring matrix, scaled: a linear map."""
    size = x.shape[1]
    centre = torch.eye(size).double() - 1 / size
    found = []
    for token, part in zip(x, relevance, strict=True):
        deviation = ((centre @ token).square().mean() + norm.eps).sqrt()
        matrix = norm.weight[:, None] * centre / deviation
        found.append(of_matrix(matrix, norm.bias, token, part, DEFAULT))
    return torch.stack(found)


def of_sum(a, b, relevance):
    share = relevance / stable(a + b, DEFAULT)
    return a * share, b * share


def of_product(a, v, relevance):
    """Of ``o = a v``, half to each: ``sum_p a_ji v_ip R_jp / (2 o_jp)`` to `a` (proposition 3.3)."""
    terms = a[:, :, None] * v[None, :, :]
    shared = terms * (relevance / stable(2 * terms.sum(1), DEFAULT))[:, None, :]
    return shared.sum(2), shared.sum(0)


def of_softmax(x, relevance):
    """``R_i = x_i (R_s,i - s_i sum_j R_s,j)`` (proposition 3.1), row by row."""
    s = (x - x.amax(1, keepdim=True)).exp()
    s = s / s.sum(1, keepdim=True)
    return torch.stack([r * (p - q * p.sum()) for r, p, q in zip(x, relevance, s, strict=True)])


def softmax(x):
    return torch.stack([row.exp() / row.exp().sum() for row in x])


def heads_of(attention, x):
    width = x.shape[1] // HEADS
    parts = (x @ attention.qkv.weight.T + attention.qkv.bias).reshape(len(x), 3, HEADS, width)
    return [(parts[:, 0, h] / width**0.5, parts[:, 1, h], parts[:, 2, h]) for h in range(HEADS)]


def attended(attention, x):
    found = [softmax(q @ k.T) @ v for q, k, v in heads_of(attention, x)]
    return torch.cat(found, 1)


def of_attention(attention, x, relevance):
    relevance = of_linear(attention.proj, attended(attention, x), relevance)
    width = x.shape[1] // HEADS
    of_qkv = torch.zeros(len(x), 3, HEADS, width, dtype=x.dtype)
    for h, (q, k, v) in enumerate(heads_of(attention, x)):
        scores = q @ k.T
        of_weights, of_v = of_product(softmax(scores), v, relevance[:, h * width : (h + 1) * width])
        of_q, of_k = of_product(q, k.T, of_softmax(scores, of_weights))
        of_qkv[:, 0, h], of_qkv[:, 1, h], of_qkv[:, 2, h] = of_q, of_k.T, of_v
    return of_linear(attention.qkv, x, of_qkv.reshape(len(x), -1))


def by_hand(model, image, target):
    """Relevance of one image (3, 8, 8) for one logit."""
    corners = [(PATCH * i, PATCH * j) for i in range(GRID) for j in range(GRID)]
    patches = torch.stack([image[:, i : i + PATCH, j : j + PATCH].flatten() for i, j in corners])
    kernel = model.patch_embed.proj.weight.flatten(1)
    embedded = patches @ kernel.T + model.patch_embed.proj.bias
    with_class = torch.cat([model.cls_token[0], embedded])
    states = [with_class + model.pos_embed[0]]
    for block in model.blocks:
        x = states[-1]
        branch = block.attn.proj(attended(block.attn, block.norm1(x)))
        y = x + branch
        hidden = block.mlp.fc1(block.norm2(y))
        states += [y, y + block.mlp.fc2(torch.nn.functional.gelu(hidden))]
    final = model.norm(states[-1])
    logits = model.head(final[0])

    seed = torch.zeros_like(logits)
    seed[target] = logits[target]
    relevance = torch.zeros_like(final)
    relevance[0] = of_linear(model.head, final[:1], seed[None])[0]
    relevance = of_norm(model.norm, states[-1], relevance)
    for index in (1, 0):
        block, x, y = model.blocks[index], states[2 * index], states[2 * index + 1]
        hidden = block.mlp.fc1(block.norm2(y))
        active = torch.nn.functional.gelu(hidden)
        direct, relevance = of_sum(y, block.mlp.fc2(active), relevance)
        relevance = of_linear(block.mlp.fc1, block.norm2(y), of_linear(block.mlp.fc2, active, relevance))
        relevance = direct + of_norm(block.norm2, y, relevance)
        branch = block.attn.proj(attended(block.attn, block.norm1(x)))
        direct, relevance = of_sum(x, branch, relevance)
        relevance = direct + of_norm(block.norm1, x, of_attention(block.attn, block.norm1(x), relevance))
    relevance, _ = of_sum(with_class, model.pos_embed[0], relevance)
    of_pixels = torch.zeros_like(image)
    for (i, j), patch, part in zip(corners, patches, relevance[1:], strict=True):
        of_patch = of_matrix(kernel, model.patch_embed.proj.bias, patch, part, EPSILON)
        of_pixels[:, i : i + PATCH, j : j + PATCH] = of_patch.reshape(3, PATCH, PATCH)
    return logits, of_pixels


@pytest.mark.parametrize("fused", [True, False])
def test_a_vision_transformer_is_attnlrp(fused):
    torch.manual_seed(0)
    set_fused_attn(fused)
    model = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2, num_classes=5)
    set_fused_attn(True)
    trained(model).eval()
    # Attention of a fresh model is nearly uniform.
    blocks: Any = model.blocks
    for block in blocks:
        block.attn.qkv.weight.data.mul_(20)
        assert block.attn.fused_attn == fused
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    composite = LayerMapComposite([(Linear, Epsilon(EPSILON)), (Activation, Pass()), (Sum, Norm())])
    out = fxlrp.convert(model, composite)(images, 3)
    with torch.no_grad():
        for image, output, relevance in zip(images, out.output, out.relevance, strict=True):
            logits, expected = by_hand(model, image, 3)
            torch.testing.assert_close(output, logits, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(relevance, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
