"""Architectures of transformers, tiny, and what their forward passes drop: counted in torch, whatever the source says."""

import contextlib
import inspect
from collections.abc import Iterator
from unittest import mock

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

# Numbers that make a model small, under the names that configurations have for them.
_SMALL = {
    16: "hidden_size d_model n_embd embed_dim dim embedding_size word_embed_proj_dim encoder_hidden_dim projection_dim",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers layers",
    4: "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads heads num_key_value_heads"
    " num_kv_heads head_dim d_kv key_value_proj_dim",
    32: "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim mlp_dim n_inner d_inner inner_dim",
    50: "vocab_size",
    64: "image_size max_position_embeddings n_positions max_seq_len seq_length n_ctx",
}
_VALUES = {name: value for value, names in _SMALL.items() for name in names.split()}
_MOST_PARAMETERS = 20_000_000


def names() -> list[str]:
    return sorted(MODEL_MAPPING_NAMES)


def tiny(name: str, rate: float) -> PreTrainedModel | None:
    """Return the model with all rates that its configuration knows at `rate`; `None` if it can't be made small."""
    with contextlib.suppress(Exception):
        config = transformers.AutoConfig.for_model(name)
        for part in [config, *_parts(config)]:
            _shrink(part, rate)
        with torch.device("meta"):
            if sum(weight.numel() for weight in AutoModel.from_config(config).parameters()) > _MOST_PARAMETERS:
                return None
        torch.manual_seed(0)
        return AutoModel.from_config(config).train()
    return None


def inputs_of(model: PreTrainedModel) -> dict[str, torch.Tensor] | None:
    """Return something that the model takes; `None` if nothing is found."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(5, 40, (2, 8), generator=generator)
    side = getattr(model.config, "image_size", 32)
    side = side if isinstance(side, int) else 32
    images = torch.randn(2, getattr(model.config, "num_channels", 3), side, side, generator=generator)
    choices = {
        "input_ids": {"input_ids": words},
        "pixel_values": {"pixel_values": images},
        "pixel_values_videos": {"pixel_values_videos": images[:, None].repeat(1, 4, 1, 1, 1)},
        "input_values": {"input_values": torch.randn(2, 4000, generator=generator)},
        "input_features": {"input_features": torch.randn(2, 80, 64, generator=generator)},
    }
    takes = inspect.signature(model.forward).parameters
    decoder = {"decoder_input_ids": words} if "decoder_input_ids" in takes else {}
    video = {"pixel_values": images[:, None].repeat(1, getattr(model.config, "num_frames", 4), 1, 1, 1)}
    tried = [choices[name] for name in choices if name in takes]
    tried += [tried[0] | choices["pixel_values"]] if "pixel_values" in takes and tried else []
    for inputs in [*(one | decoder for one in tried), *tried, *([video] if "pixel_values" in takes else [])]:
        with contextlib.suppress(Exception), torch.no_grad():
            model(**inputs)
            return inputs
    return None


@contextlib.contextmanager
def counted(model: nn.Module) -> Iterator[list[float]]:
    """Yield a list of the rates, above 0, of all that drops meanwhile."""
    rates: list[float] = []
    with contextlib.ExitStack() as undo:
        for name, argument, position in [
            ("dropout", "p", 1),
            ("dropout1d", "p", 1),
            ("dropout2d", "p", 1),
            ("dropout3d", "p", 1),
            ("alpha_dropout", "p", 1),
            ("feature_alpha_dropout", "p", 1),
            ("scaled_dot_product_attention", "dropout_p", 4),
        ]:
            spy = _spy(getattr(functional, name), argument, position, rates)
            undo.enter_context(mock.patch.object(functional, name, spy))
        for part in model.modules():
            if "droppath" in type(part).__name__.lower() or "stochasticdepth" in type(part).__name__.lower():
                undo.callback(part.register_forward_pre_hook(_note_drop_path(rates)).remove)
        yield rates


def _spy(function, argument, position, rates):
    def spy(*args, **kwargs):
        rate = kwargs.get(argument, args[position] if len(args) > position else (0.5 if argument == "p" else 0.0))
        training = kwargs.get("training", args[2] if argument == "p" and len(args) > 2 else True)
        if training and rate > 0:
            rates.append(float(rate))
        return function(*args, **kwargs)

    return spy


def _note_drop_path(rates):
    def note(module, _):
        rate = getattr(module, "drop_prob", None) or getattr(module, "p", None) or 0.0
        if module.training and rate > 0:
            rates.append(float(rate))

    return note


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    return [value for value in vars(config).values() if isinstance(value, PretrainedConfig)]


def _shrink(config: PretrainedConfig, rate: float) -> None:
    for name, value in list(vars(config).items()):
        if name in _VALUES and isinstance(value, int) and not isinstance(value, bool):
            setattr(config, name, min(value, _VALUES[name]))
        elif name.endswith("_token_id") and isinstance(value, int) and value >= _VALUES["vocab_size"]:
            setattr(config, name, 1)
        elif "drop" in name and "layer" not in name and isinstance(value, float) and 0 <= value < 1:
            setattr(config, name, rate)
        elif name in ("attn_pdrop", "resid_pdrop", "embd_pdrop"):
            setattr(config, name, rate)
        elif name in ("hidden_sizes", "embed_dims", "encoder_hidden_sizes") and isinstance(value, (list, tuple)):
            setattr(config, name, [16 * (2**i) for i in range(len(value))])
        elif name == "depths" and isinstance(value, (list, tuple)):
            setattr(config, name, [1] * len(value))
