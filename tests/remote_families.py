"""Folders with a model and its own code, as repositories hold them: built on the spot, loaded by the real way."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from prism_plugin.backbones import get_spec_by_model_type
from prism_plugin.backbones import spec as known_specs
from prism_plugin.backbones.compat import patch_model_class, transformers_4_names

STANDINS = Path(__file__).parent / "standins"
MASK = 31


@dataclass(frozen=True)
class RemoteFamily:
    """Code of a family, and the config of a tiny model of it.

    Attributes:
        files: Python files to copy, relative to `root`.
        auto_map: As in config.json.
        config: The rest of config.json.
        root: Where the files are.
        spec_changes: What has to be said of this code that the family's spec does not say.
    """

    files: tuple[str, ...]
    auto_map: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    root: Path = STANDINS
    spec_changes: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
        """Write a folder with code, config and random weights. Returns the model that it holds, built without loading."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.files:
            shutil.copy(self.root / name, folder)
        config = {**self.config, "auto_map": dict(self.auto_map), **changes}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "generation_config.json").write_text("{}", encoding="utf-8")  # Dream's code reads it
        with transformers_4_names():
            config_class = get_class_from_dynamic_module(self.auto_map["AutoConfig"], folder)
            auto_class = next(
                name for name in ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel") if name in self.auto_map
            )
            model_class = get_class_from_dynamic_module(self.auto_map[auto_class], folder)
            patch_model_class(model_class)
            model = model_class(config_class.from_pretrained(folder))
        randomise(model, seed)
        unique = {id(tensor): name for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()
                   if unique[id(tensor)] == name}  # fmt: skip
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return model.eval()

    @contextmanager
    def described(self) -> Iterator[None]:
        """While open, the family's spec says what has to be said of this code of it."""
        spec = get_spec_by_model_type(self.config["model_type"], self.config["architectures"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(known_specs._SPECS, spec.model_type, replace(spec, **self.spec_changes))
            yield


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Give a model weights of which each one matters: some classes start with zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(noise * 0.2)


def _family(name: str, classes: str, auto_class: str, config: Mapping[str, Any], *further_files: str) -> RemoteFamily:
    config_class, model_class, config_file = classes.split()
    auto_map = {"AutoConfig": f"{config_file}.{config_class}", auto_class: f"modeling_{name}.{model_class}"}
    files = (f"{config_file}.py", f"modeling_{name}.py", *further_files)
    return RemoteFamily(files, auto_map, {"architectures": [model_class], "dtype": "float32", **config})


_MASK = {"mask_token_id": MASK}  # where a released config says it
_DECODERS, _SPECIAL = "configuration_decoders", {"pad_token_id": 0, "eos_token_id": 1}
STANDIN_FAMILIES = {
    "llada": _family(
        "llada", "LLaDAConfig LLaDAModelLM configuration_llada", "AutoModel", {"model_type": "llada", **_MASK}, "parts.py"
    ),
    # As before October 2025: the mask is taken and not used, so pads are seen.
    "llada_old": replace(
        _family(
            "llada", "LLaDAConfig LLaDAModelLM configuration_llada", "AutoModel",
            {"model_type": "llada", "ignores_mask": True, **_MASK}, "parts.py",
        ),
        spec_changes={"attention_mask": "none"},
    ),
    "mmada": RemoteFamily(
        ("modeling_mmada.py", "configuration_llada.py", "modeling_llada.py", "parts.py"),
        {"AutoConfig": "modeling_mmada.MMadaConfig", "AutoModel": "modeling_mmada.MMadaModelLM"},
        {"model_type": "mmada", "architectures": ["MMadaModelLM"], "dtype": "float32", **_MASK},
    ),
    "remedi": _family(
        "remedi", "RemeDiConfig RemeDiUPMModelLM configuration_remedi", "AutoModel", {"model_type": "RemeDi", **_MASK},
        "configuration_llada.py", "modeling_llada.py", "parts.py",
    ),
    "illada": _family(
        "illada", f"ILLaDAConfig ILLaDAForCausalLM {_DECODERS}", "AutoModel",
        {"model_type": "illada", "tie_word_embeddings": True}, "parts.py",
    ),
    "lladamoe": _family(
        "lladamoe", f"LLaDAMoEConfig LLaDAMoEModelLM {_DECODERS}", "AutoModel", {"model_type": "llada"}, "parts.py"
    ),
    "llada2_moe": _family(
        "llada2_moe", f"LLaDA2MoeConfig LLaDA2MoeModelLM {_DECODERS}", "AutoModelForCausalLM",
        {"model_type": "llada2_moe"}, "parts.py",
    ),
    "dream": _family(
        "dream", f"DreamConfig DreamModel {_DECODERS}", "AutoModel", {"model_type": "Dream", **_MASK}, "parts.py"
    ),
    "mdlm": _family(
        "mdlm", "MDLMConfig MDLM configuration_mdlm", "AutoModelForMaskedLM", {"model_type": "mdlm", "return_dict": False}
    ),
    "proseco": _family(
        "proseco", "ProsecoConfig Proseco configuration_mdlm", "AutoModelForMaskedLM", {"model_type": "proseco"},
        "modeling_mdlm.py",
    ),
}  # fmt: skip

# Not in the contract, since its family has no spec of its own: code that trains itself in training mode.
OWN_LOSS = RemoteFamily(
    ("modeling_own_loss.py",),
    {"AutoConfig": "modeling_own_loss.OwnLossConfig", "AutoModelForCausalLM": "modeling_own_loss.OwnLossForCausalLM"},
    {
        "model_type": "own_loss", "architectures": ["OwnLossForCausalLM"], "dtype": "float32", "is_causal": False,
        "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 64, **_SPECIAL, **_MASK,
    },
)  # fmt: skip

# Sizes of the tiny models that real code makes.
_LLADA = {
    "model_type": "llada", "d_model": 16, "n_heads": 2, "n_kv_heads": 2, "n_layers": 2, "mlp_hidden_size": 32, "vocab_size": 32,
    "embedding_size": 32, "max_sequence_length": 64, "block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu",
    "rope": True, "rope_full_precision": True, "alibi": False, "include_bias": False, "bias_for_layer_norm": False,
    "weight_tying": False, "flash_attention": False, "attention_dropout": 0.0, "residual_dropout": 0.0,
    "embedding_dropout": 0.0, "init_device": "meta", **_SPECIAL, **_MASK,
}  # fmt: skip
_LLAMA_SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": False, **_SPECIAL,
}  # fmt: skip
_LLADA_MOE = {
    **_LLAMA_SIZES, "model_type": "lladamoe", "expert_intermediate_size": 32, "dense_intermediate_size": 32, "num_experts": 4,
    "shared_expert_intermediate_size": None, "num_experts_per_tok": 2, "moe_layer_freq": [1, 1], "partial_rotary_factor": 1,
    "norm_topk_prob": None, "qk_layernorm": True, "moe_router_score_function": "softmax",
}  # fmt: skip
_LLADA2 = {
    **_LLAMA_SIZES, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 2,
    "first_k_dense_replace": 1, "num_shared_experts": 1, "partial_rotary_factor": 0.5, "use_qk_norm": True,
    "attention_dropout": 0.0, "embedding_dropout": 0.0, "output_dropout": 0.0,
}  # fmt: skip
_DREAM = {**_LLAMA_SIZES, "model_type": "Dream", **_MASK}
_PROSECO = {
    "model_type": "proseco",
    "vocab_size": 32,
    "model_length": 64,
    "hidden_dim": 16,
    "cond_dim": 8,
    "n_blocks": 2,
    "n_heads": 2,
}
_REMEDI = {**_LLADA, "model_type": "RemeDi", "n_layers": 31}  # its second stream has blocks at layers 0, 10, 20 and 30

# Real code, as tiny models.
_REAL = {
    "llada": _family("llada", "LLaDAConfig LLaDAModelLM configuration_llada", "AutoModel", _LLADA),
    "lladamoe": _family("lladamoe", "LLaDAMoEConfig LLaDAMoEModelLM configuration_lladamoe", "AutoModel", _LLADA_MOE),
    "llada2_moe": _family(
        "llada2_moe", "LLaDA2MoeConfig LLaDA2MoeModelLM configuration_llada2_moe", "AutoModelForCausalLM",
        {"model_type": "llada2_moe", **_LLADA2},
    ),
    "llada21_moe": _family(
        "llada21_moe", "LLaDA2MoeConfig LLaDA2MoeModelLM configuration_llada21_moe", "AutoModelForCausalLM",
        {"model_type": "llada21_moe", **_LLADA2},
    ),
    "dream": _family("dream", "DreamConfig DreamModel configuration_dream", "AutoModel", _DREAM, "generation_utils.py"),
    "proseco": _family("proseco", "ProsecoConfig Proseco configuration_proseco", "AutoModelForMaskedLM", _PROSECO),
    "mmada": RemoteFamily(
        ("configuration_llada.py", "modeling_llada.py", "sampling.py", "modeling_mmada.py"),
        {"AutoConfig": "modeling_mmada.MMadaConfig", "AutoModel": "modeling_mmada.MMadaModelLM"},
        # its config has no defaults
        {
            "architectures": ["MMadaModelLM"], "dtype": "float32", **_LLADA, "model_type": "mmada", "mlp_ratio": 4,
            "block_group_size": 1, "alibi_bias_max": 8.0, "multi_query_attention": None, "attention_layer_norm": False,
            "input_emb_norm": False, "layer_norm_with_affine": True, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "attention_layer_norm_with_affine": True, "include_qkv_bias": False, "scale_logits": False, "init_fn": "normal",
            "init_std": 0.02, "init_cutoff_factor": None, "precision": None, "use_cache": False,
        },
    ),
    "remedi": RemoteFamily(
        ("configuration_remedi.py", "modelling_remedi_bitowel.py"),
        {
            "AutoConfig": "configuration_remedi.RemeDiConfig",
            "AutoModel": "modelling_remedi_bitowel.RemeDiUPMModelLM",
        },
        {"architectures": ["RemeDiUPMModelLM"], "dtype": "float32", **_REMEDI},
    ),
}  # fmt: skip
# Where they are in the folders that `git clone` makes.
_CHECKOUTS = {
    "dllm/dllm/pipelines/llada/models": ("llada", "lladamoe"),
    "dllm/dllm/pipelines/llada2/models": ("llada2_moe",),
    "dllm/dllm/pipelines/llada21/models": ("llada21_moe",),
    "dllm/dllm/pipelines/dream/models": ("dream",),
    "Fast-dLLM/llada/model": ("llada",),
    "Fast-dLLM/dream/model": ("dream",),
    "proseco/models/hf": ("proseco",),
    "Dream-Coder/instruct/src/inference/fast_dllm": ("dream",),
    "RemeDi/remedi": ("remedi",),
    "MMaDA/models": ("mmada",),
}


def checked_out_families() -> dict[str, RemoteFamily]:
    """Real code of the families, where `PRISM_REMOTE_CODE` says where it is; see docs/families.md.

    It names a folder of checkouts, or a JSON file that maps families to folders with their code, relative to the file. A key
    may say more behind a colon, so that a family can be there twice: "dream", "dream:coder".
    """
    if "PRISM_REMOTE_CODE" not in os.environ:
        return {}
    base = Path(os.environ["PRISM_REMOTE_CODE"])
    if base.is_file():
        mapped = json.loads(base.read_text(encoding="utf-8"))
        # not the name of a stand-in, whose place it would take
        folders = {name if ":" in name else f"{name}:mapped": base.parent / folder for name, folder in mapped.items()}
        unknown = sorted({name.partition(":")[0] for name in folders} - _REAL.keys())
        assert not unknown, f"{base}: no code is known for {', '.join(unknown)}; known are {', '.join(_REAL)}"
    else:
        folders = {
            f"{name}:{place.partition('/')[0]}": base / place
            for place, names in _CHECKOUTS.items()
            for name in names
            if (base / place).is_dir()
        }
    found = {name: replace(_REAL[name.partition(":")[0]], root=folder) for name, folder in folders.items()}
    for name, family in found.items():
        missing = [one for one in family.files if not (family.root / one).is_file()]
        assert not missing, f"{name}: {family.root} holds no {', '.join(missing)}"
    assert found, f"PRISM_REMOTE_CODE={base} holds none of {sorted(_CHECKOUTS)}"
    if "llada:Fast-dLLM" in found:  # the code from before October 2025
        found["llada:Fast-dLLM"] = replace(found["llada:Fast-dLLM"], spec_changes={"attention_mask": "none"})
    return found
