"""Architectures of transformers, tiny, and what their forward passes drop, counted in torch itself."""

import contextlib
import inspect
from collections.abc import Iterator
from unittest import mock

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

# Numbers that make a model small, under the names that configurations have for them.
_SMALL = {
    16: "hidden_size d_model n_embd embed_dim dim embedding_size word_embed_proj_dim encoder_hidden_dim projection_dim",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers layers",
    4: "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads heads"
    " num_key_value_heads num_kv_heads head_dim d_kv key_value_proj_dim",
    32: "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim mlp_dim n_inner d_inner inner_dim",
    50: "vocab_size",
    64: "image_size max_position_embeddings n_positions max_seq_len seq_length n_ctx",
}
# Those that get small so, take the inputs below, drop at all, and need less than a few seconds. Not phimoe: whether its
# experts are drawn at random depends on close calls.
_NAMES = """
afmoe aimv2_vision_model albert apertus apertus1p5_text arcee aria aria_text audioflamingo3 aya_vision bart beam beit
bert bert-generation big_bird bigbird_pegasus biogpt bitnet blenderbot blenderbot-small blip bloom camembert canine
chinese_clip_vision_model clip_text_model clip_vision_model clipseg cohere cohere2 cohere2_moe cohere2_vision convbert
convnext convnextv2 cosmos3_edge cosmos3_edge_text cosmos3_omni cpmant ctrl cvt cwm data2vec-audio data2vec-text
data2vec-vision deberta deberta-v2 deepseek_vl deepseek_vl_hybrid deit dinov2 dinov2_with_registers dinov3_convnext
dinov3_vit distilbert doge dory dpr dpt electra embedding_gemma2 embedding_gemma2_text ernie esmc eurobert exaone
exaone4 exaone4_5 exaone_moe falcon flava flex_olmo flint fnet focalnet fsmt fun_asr_nano fuyu gemma gemma2 gemma3
gemma3_text git glm glm4 glm4_moe glm4_moe_lite glmasr got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox
gpt_neox_japanese gpt_oss gradium_phonon_tts granite granite_docling granite_docling_text granite_docling_vision
granite_swa granitemoe granitemoe_swa granitemoeshared gte helium higgs_audio_v2 hubert hy_v3 hyperclovax
hyperclovax_vision_v2 ibert idefics2 idefics3 idefics3_vision ijepa imagegpt inkling2_loop_text internlm3 internvl
internvl_vision iquestcoder jais2 jetmoe jina_embeddings_v3 kolibri1 kosmos-2.5 laguna lara_mini layoutlm lighton_ocr
llama llama4_text llava llava_next llava_next_video llava_onevision longformer longt5 m2m_100 marian markuplm
maskformer mbart megatron-bert mellum minimax minimax_m2 minimax_m3_vl_text ministral3 mistral mistral3 mixtral mlcd
mlcd_vision_model mllama mobilebert mobilevit modernbert modernbert-decoder modernvbert molmo2_text moonshine moshi
moss_transcribe_diarize mpnet mra mt5 muse_glimmer_text musicflamingo mvp nanochat nllb-moe nomic_bert nystromformer
olmo olmo2 olmo3 olmoe omniasr openai-gpt openai_privacy_filter opt ovis2 paligemma pegasus pegasus_x persimmon phi
phi3 phi4_multimodal pixio pixtral plbart pocket_tts poolformer qianfan_ocr qianfan_ocr_vision qwen2 qwen2_audio
qwen2_moe qwen3 qwen3_asr qwen3_moe qwen3_vl qwen3_vl_moe_text qwen3_vl_text radio rembert roberta
roberta-prelayernorm roc_bert roformer sam3_vision_model sam3_vit_model sarvam_moe seed_oss segformer sew sew-d
siglip_vision_model smollm3 smolvlm smolvlm_vision solar_open splinter squeezebert stablelm starcoder2 swiftformer t5
tapas timesformer tipsv2 tipsv2_text_model tipsv2_vision_model ultrabert ultravbert umt5 unispeech unispeech-sat
vaultgemma video_llama_3 video_llava videomae vilt vipllava visual_bert vit vit_mae vit_msn vitdet vivit voxtral
wav2vec2 wav2vec2-conformer wavlm xglm xlm-roberta xlm-roberta-xl xlnet yolos yoso zaya
"""
NAMES = _NAMES.split()

_VALUES = {name: value for value, names in _SMALL.items() for name in names.split()}


def tiny(name: str, rate: float) -> PreTrainedModel:
    """Return the model with all rates that its configuration knows at `rate`."""
    config = AutoConfig.for_model(name)
    for part in [config, *_parts(config)]:
        _shrink(part, rate)
    torch.manual_seed(0)
    return AutoModel.from_config(config).train()


def inputs_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return something that the model takes."""
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
    msg = f"{type(model).__name__} takes none of the inputs that are tried."
    raise ValueError(msg)


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
        elif ("drop" in name and "layer" not in name and isinstance(value, float) and 0 <= value < 1) or name in (
            "attn_pdrop",
            "resid_pdrop",
            "embd_pdrop",
        ):
            setattr(config, name, rate)
        elif name in ("hidden_sizes", "embed_dims", "encoder_hidden_sizes") and isinstance(value, (list, tuple)):
            setattr(config, name, [16 * (2**i) for i in range(len(value))])
        elif name == "depths" and isinstance(value, (list, tuple)):
            setattr(config, name, [1] * len(value))
