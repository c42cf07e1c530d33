"""Random pre-norm attention, written in the ways that people write it."""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

FORMS = ("by hand", "einsum", "function", "layer", "cross")


class Attention(nn.Module):
    """Normalized tokens that attend to each other; weights and masks by chance."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *sizes: int(torch.randint(*sizes, (), generator=generator))  # noqa: E731
        self.form = FORMS[seed % len(FORMS)]
        self.heads, self.tokens, self.samples = draw(1, 4), draw(1, 6), draw(1, 3)
        self.width = self.heads * draw(1, 5)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            eps = 10 ** float(torch.empty(()).uniform_(-3, 0))
            self.norm = nn.LayerNorm(self.width, eps=eps) if draw(2) else nn.RMSNorm(self.width, eps=eps)
            self.project = nn.Linear(self.width, 3 * self.width)
            self.attention = nn.MultiheadAttention(
                self.width, self.heads, batch_first=True, add_bias_kv=bool(draw(2)), add_zero_attn=bool(draw(2))
            )
            self.out = nn.Linear(self.width, self.width)
            with torch.no_grad():
                for weight in self.parameters():
                    weight.mul_(10 ** float(torch.empty(()).uniform_(-0.5, 0.7))).add_(0.1 * torch.randn(weight.shape))
        mask = torch.rand(self.tokens, self.tokens, generator=generator) < 0.3
        self.mask = torch.where(mask.fill_diagonal_(False), -math.inf, 0.3 * torch.randn(mask.shape)).double()
        self.causal = bool(draw(2))
        self.double().eval()

    def example(self):
        return torch.zeros(self.samples, self.tokens, self.width, dtype=torch.float64)

    def forward(self, x):
        rows = self.norm(x)
        if self.form == "layer":
            return self.attention(rows, rows, rows, need_weights=self.causal, attn_mask=self.mask)[0]
        if self.form == "cross":
            return self.attention(rows[:, :1], rows.flip(1), rows, need_weights=False)[0] + x[:, :1]
        query, key, value = self.project(rows).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.form == "function":
            heads = F.scaled_dot_product_attention(query, key, value, self.mask)
        elif self.form == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", query, key) * query.shape[-1] ** -0.5
            heads = torch.einsum("bhij,bhjd->bhid", (scores + self.mask).softmax(-1), value)
        else:
            scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
            scores = scores.masked_fill(self.mask.isinf(), -math.inf)
            heads = F.softmax(scores, dim=-1) @ value
        return x + self.out(heads.transpose(1, 2).reshape(x.shape))
