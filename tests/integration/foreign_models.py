"""Models that others have shaped, small and with random weights, and what callbacks must find in them, by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

BATCH, LENGTH, WORDS, CLASSES, SIDE = 4, 6, 20, 3, 8
STEPS = 5


def sentences() -> Tensor:
    return torch.randint(WORDS, (BATCH * STEPS, LENGTH), generator=torch.Generator().manual_seed(1))


def images() -> Tensor:
    return torch.randn(BATCH * STEPS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


class LayerNorm2d(nn.LayerNorm):
    """Over channels, as in timm."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Stochastic depth, as in timm."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, inputs: Tensor) -> Tensor:
        if self.drop_prob == 0 or not self.training:
            return inputs
        keep = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) >= self.drop_prob
        return inputs * keep / (1 - self.drop_prob)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, inverted bottleneck, layer scale, stochastic depth."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = LayerNorm2d(channels)
        self.fc1 = nn.Conv2d(channels, 4 * channels, 1)
        self.fc2 = nn.Conv2d(4 * channels, channels, 1)
        self.gamma = nn.Parameter(torch.full((channels,), 0.1))
        self.drop_path = DropPath(drop_path)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.fc2(functional.gelu(self.fc1(self.norm(self.conv_dw(inputs)))))
        return inputs + self.drop_path(self.gamma[:, None, None] * hidden)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 2, stride=2), LayerNorm2d(16))
        self.blocks = nn.ModuleList(ConvNeXtBlock(16, rate) for rate in (0.1, 0.2))
        self.norm = nn.LayerNorm(16)
        self.head_drop = nn.Dropout(0.2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.head_drop(self.norm(hidden.mean((2, 3)))))


class Translator(nn.Module):
    """`torch.nn.Transformer` with an embedding for both languages."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 16)
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, dropout=0.1, batch_first=True)
        self.out = nn.Linear(16, WORDS)

    def forward(self, inputs: Tensor) -> Tensor:
        embedded = self.embedding(inputs)
        mask = self.transformer.generate_square_subsequent_mask(LENGTH)
        return self.out(self.transformer(embedded, embedded, tgt_mask=mask))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 16)
        self.lstm = nn.LSTM(16, 8, num_layers=2, bidirectional=True, dropout=0.2, batch_first=True)
        self.tags = nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.tags(self.lstm(self.embedding(inputs))[0])


def bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=LENGTH,
            num_labels=CLASSES,
        )
    )


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS,
            n_positions=LENGTH,
            n_embd=16,
            n_layer=2,
            n_head=2,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def vit() -> nn.Module:
    return ViTForImageClassification(
        ViTConfig(
            image_size=SIDE,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            num_labels=CLASSES,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
        )
    )


@dataclass(frozen=True)
class Case:
    """A model, and what callbacks must find in it.

    `normalized`, `constrained`, `grouped` and `sparse` are matrices of their own for the callbacks that change weights
    after a step; `units` is the dimension of the weight `grouped` along which its output units lie.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    matrices: Sequence[str]
    """Every weight of two or more dimensions."""
    dropouts: Sequence[str]
    """Every module with a dropout rate."""
    normalized: str
    constrained: str
    grouped: str
    sparse: str
    linear: str
    """A linear layer of 16 inputs: whole models that begin with words, or attend, have no Lipschitz constant."""
    units: int = 0


def _each(pattern: str, parts: Sequence[str], layers: int = 2) -> list[str]:
    return [pattern.format(layer, part) for layer in range(layers) for part in parts]


CASES = {
    "bert": Case(
        bert,
        sentences,
        matrices=[
            "bert.embeddings.word_embeddings.weight",
            "bert.embeddings.position_embeddings.weight",
            "bert.embeddings.token_type_embeddings.weight",
            *_each(
                "bert.encoder.layer.{}.{}.weight",
                [
                    "attention.self.query",
                    "attention.self.key",
                    "attention.self.value",
                    "attention.output.dense",
                    "intermediate.dense",
                    "output.dense",
                ],
            ),
            "bert.pooler.dense.weight",
            "classifier.weight",
        ],
        dropouts=[
            "bert.embeddings.dropout",
            *_each(
                "bert.encoder.layer.{}.{}", ["attention.self.dropout", "attention.output.dropout", "output.dropout"]
            ),
            "dropout",
        ],
        normalized="bert.encoder.layer.0.attention.self.query.weight",
        constrained="bert.encoder.layer.0.intermediate.dense.weight",
        grouped="bert.encoder.layer.1.intermediate.dense.weight",
        sparse="bert.embeddings.word_embeddings.weight",
        linear="classifier",
    ),
    # The output layer is the word embedding. The layers called Conv1D are linear, with a row for each input.
    "gpt2": Case(
        gpt2,
        sentences,
        matrices=[
            "transformer.wte.weight",
            "transformer.wpe.weight",
            *_each("transformer.h.{}.{}.weight", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
        ],
        dropouts=[
            "transformer.drop",
            *_each("transformer.h.{}.{}", ["attn.attn_dropout", "attn.resid_dropout", "mlp.dropout"]),
        ],
        normalized="transformer.h.0.attn.c_attn.weight",
        constrained="transformer.h.0.mlp.c_fc.weight",
        grouped="transformer.h.1.mlp.c_fc.weight",
        sparse="transformer.wte.weight",
        linear="lm_head",
        units=1,
    ),
    "vit": Case(
        vit,
        images,
        matrices=[
            "vit.embeddings.cls_token",
            "vit.embeddings.position_embeddings",
            "vit.embeddings.patch_embeddings.projection.weight",
            *_each(
                "vit.layers.{}.{}.weight",
                ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"],
            ),
            "classifier.weight",
        ],
        dropouts=["vit.embeddings.dropout", *_each("vit.layers.{}.{}", ["attention", "dropout"])],
        normalized="vit.layers.0.attention.q_proj.weight",
        constrained="vit.layers.0.mlp.fc1.weight",
        grouped="vit.layers.1.mlp.fc1.weight",
        sparse="classifier.weight",
        linear="classifier",
    ),
    "convnext": Case(
        ConvNeXt,
        images,
        matrices=["stem.0.weight", *_each("blocks.{}.{}.weight", ["conv_dw", "fc1", "fc2"]), "head.weight"],
        dropouts=["blocks.0.drop_path", "blocks.1.drop_path", "head_drop"],
        normalized="blocks.0.fc1.weight",
        constrained="blocks.1.fc2.weight",
        grouped="blocks.1.fc1.weight",
        sparse="head.weight",
        linear="head",
    ),
    "transformer": Case(
        Translator,
        sentences,
        matrices=[
            "embedding.weight",
            "transformer.encoder.layers.0.self_attn.in_proj_weight",
            "transformer.encoder.layers.0.self_attn.out_proj.weight",
            "transformer.encoder.layers.0.linear1.weight",
            "transformer.encoder.layers.0.linear2.weight",
            "transformer.decoder.layers.0.self_attn.in_proj_weight",
            "transformer.decoder.layers.0.self_attn.out_proj.weight",
            "transformer.decoder.layers.0.multihead_attn.in_proj_weight",
            "transformer.decoder.layers.0.multihead_attn.out_proj.weight",
            "transformer.decoder.layers.0.linear1.weight",
            "transformer.decoder.layers.0.linear2.weight",
            "out.weight",
        ],
        dropouts=[
            *_each("transformer.encoder.layers.{}.{}", ["self_attn", "dropout", "dropout1", "dropout2"], 1),
            *_each(
                "transformer.decoder.layers.{}.{}",
                ["self_attn", "multihead_attn", "dropout", "dropout1", "dropout2", "dropout3"],
                1,
            ),
        ],
        normalized="transformer.encoder.layers.0.self_attn.in_proj_weight",
        constrained="transformer.encoder.layers.0.linear1.weight",
        grouped="transformer.decoder.layers.0.linear1.weight",
        sparse="out.weight",
        linear="out",
    ),
    "lstm": Case(
        Tagger,
        sentences,
        matrices=[
            "embedding.weight",
            *(
                f"lstm.weight_{kind}_l{layer}{direction}"
                for layer in (0, 1)
                for direction in ("", "_reverse")
                for kind in ("ih", "hh")
            ),
            "tags.weight",
        ],
        dropouts=["lstm"],
        normalized="lstm.weight_ih_l0",
        constrained="lstm.weight_hh_l0",
        grouped="embedding.weight",
        sparse="tags.weight",
        linear="tags",
    ),
}


class Classifier(LightningModule):
    """Learns one of a few classes for each row, or for each word; always begins with the same weights."""

    def __init__(self, case: Case, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = case.build()
        self.optimizer = optimizer

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.model(inputs)
        return outputs if isinstance(outputs, Tensor) else outputs.logits

    def loss(self, inputs: Tensor) -> Tensor:
        logits = self(inputs)
        # Something to learn: which third of the words a word is of, or how bright the first pixel is.
        labels = inputs * CLASSES // WORDS if inputs.ndim == 2 else (inputs[:, 0, 0, 0] > 0).long()
        if logits.ndim == 2 and labels.ndim == 2:
            labels = labels[:, 0]
        return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())

    def training_step(self, inputs: Tensor, batch_idx: int) -> Tensor:
        torch.manual_seed(batch_idx)  # the same dropout masks in every run
        return self.loss(inputs)

    def predict_step(self, inputs: Tensor, batch_idx: int) -> Tensor:
        return self(inputs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=0.01)
