"""Small real models and a small real tokenizer, built on the spot without the network, for tests and first steps."""

from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from prism_plugin.backbones import get_spec_by_model_type
from prism_plugin.backbones.builtin import BUILTIN_SPECS
from prism_plugin.backbones.spec import FAMILY

# Families whose classes are transformers' own, so that they can be built without a repository's code.
TINY_FAMILIES = tuple(
    spec.model_type
    for spec in BUILTIN_SPECS
    if (spec.loads_as or dict(spec.known_by).get("model_type", spec.model_type)) in CONFIG_MAPPING_NAMES
)

_LETTERS = "abcdefghijklmnopqrstuvwxyz ."
_VOCABULARY = ("[PAD]", "[EOS]", "[UNK]", *_LETTERS, "[MASK]")  # 32 tokens, the mask is the last


def tiny_backbone(
    model_type: str = "bert",
    *,
    vocab_size: int = 32,
    hidden_size: int = 16,
    num_hidden_layers: int = 2,
    num_attention_heads: int = 2,
    max_position_embeddings: int = 64,
    dropout: float = 0.0,
) -> PreTrainedModel:
    """Build a randomly initialised model of a registered family, in evaluation mode, from the global generator.

    Args:
        model_type: Family, any of `TINY_FAMILIES`. Decoder classes get `is_causal=False`.
        vocab_size: Tokens, > 2; id 0 is padding, id 1 ends a text, the last is the mask, as in `tiny_tokenizer`.
        hidden_size: Width; the feed-forward layers are twice as wide.
        num_hidden_layers: Layers.
        num_attention_heads: Heads; must divide `hidden_size`.
        max_position_embeddings: Longest sequence, tokens.
        dropout: Probability of every dropout that the family has, in [0, 1).
    """
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_attention_heads,
        "intermediate_size": 2 * hidden_size,
        "hidden_dim": 2 * hidden_size,  # DistilBERT's word for it
        # RoBERTa and ESM count positions from padding id + 1.
        "max_position_embeddings": max_position_embeddings + 1,
        "initializer_range": hidden_size**-0.5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "cls_token_id": 1,
        "sep_token_id": 1,
        "mask_token_id": vocab_size - 1,
        "is_causal": False,
        "head_dim": hidden_size // num_attention_heads,
        "position_embedding_type": "rotary",
        "token_dropout": True,  # as in every released ESM-2
        "embedding_size": hidden_size // 2,  # the LM head of ALBERT, ELECTRA and RoFormer is as wide as that
        "sliding_window": max_position_embeddings // 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": hidden_size,
        # As released DeBERTas have it: positions are relative, in buckets, and share the projections of the content.
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False,
        "position_buckets": max_position_embeddings // 4,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    }
    spec = get_spec_by_model_type(model_type)
    marks: dict[str, Any] = {"model_type": spec.loads_as or model_type, **dict(spec.known_by)}
    if spec.loads_as is not None:
        marks[FAMILY] = model_type
    if spec.block_length_name is not None:
        marks[spec.block_length_name] = 4
    config_class = type(AutoConfig.for_model(marks.pop("model_type")))
    known = config_class().to_dict() | dict.fromkeys(config_class.attribute_map)
    if "sliding_attention" in known.get("layer_types", ()):  # some layers of each kind
        kinds = ["sliding_attention", "full_attention"] * num_hidden_layers
        sizes["layer_types"] = kinds[:num_hidden_layers]
    settings = {name: value for name, value in sizes.items() if name in known or name == "is_causal"}
    settings |= {name: dropout for name in known if "drop" in name and name != "token_dropout"}
    return getattr(transformers, spec.auto_class).from_config(config_class(**settings, **marks)).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of single characters: 26 letters, space, full stop, [PAD] 0, [EOS] 1, [UNK] 2 and [MASK] 31."""
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(_VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]", mask_token="[MASK]"
    )
