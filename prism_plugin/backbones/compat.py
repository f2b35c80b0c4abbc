"""Makes model code that repositories bring along, written for transformers 4, run under transformers 5.

All of it from outside: no file of a repository is changed. What a patch touches:

- `transformers_4_names` puts missing names into transformers, and a stand-in for flash-attn, while it is open. Nothing of it
  stays, except that transformers remembers for the rest of the process that the real flash-attn is not installed.
- `patch_model_class` and `patch_config_class` change one class, which came out of the repository; transformers keeps that class
  for the process.
- `finish_loading` changes the one model that was loaded.

Each patch names where it was reported. `tests/backbones/test_compat.py` has one test for each that fails on the day when the
code runs without it.
"""

import functools
import importlib.machinery
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import import_utils

from prism_plugin.backbones.probe import require_ok
from prism_plugin.backbones.rotary import check_rotary_tables, tables_of_config
from prism_plugin.errors import BackboneError

_PATCHED, _TIED = "_prism_plugin_patched", "_prism_plugin_tied"


@contextmanager
def transformers_4_names() -> Iterator[None]:
    """While open, what the code of transformers 4 looks for is there.

    - `is_torch_fx_available` (LLaDA2.0, https://github.com/vllm-project/vllm/pull/45664).
    - The RoPE type "default" (Dream, LLaDA-MoE, LLaDA2.x, https://github.com/DreamLM/Dream/issues/83).
    - flash-attn, where it is not installed (MDLM, ProSeCo, https://github.com/kuleshov-group/mdlm/issues/28).
    """
    lacks_fx = not hasattr(import_utils, "is_torch_fx_available")
    lacks_rope = "default" not in ROPE_INIT_FUNCTIONS
    stubs = {} if "flash_attn" in sys.modules or importlib.util.find_spec("flash_attn") else _flash_attn_stubs()
    if lacks_fx:
        import_utils.is_torch_fx_available = lambda: False
    if lacks_rope:
        ROPE_INIT_FUNCTIONS["default"] = default_rope
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in stubs:
            del sys.modules[name]
        if lacks_rope:
            del ROPE_INIT_FUNCTIONS["default"]
        if lacks_fx:
            del import_utils.is_torch_fx_available


def default_rope(
    config: PreTrainedConfig, device: torch.device | None = None, seq_len: int | None = None, **_: Any
) -> tuple[Tensor, float]:
    """The RoPE without scaling, as transformers 4 computed it.

    Args:
        config: Gives `rope_theta`, `head_dim` or `hidden_size` and `num_attention_heads`, and `partial_rotary_factor`.
        device: Where the frequencies are made.
        seq_len: Not used by this type.

    Returns:
        Inverse frequencies, float32 [rotary width / 2], the first being 1.0, and the scaling of attention, which is 1.
    """
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary = int(width * (getattr(config, "partial_rotary_factor", None) or 1.0))
    return _inverse_frequencies(config, rotary, device), 1.0


def _inverse_frequencies(config: PreTrainedConfig, rotary_width: int, device: torch.device | None) -> Tensor:
    scaled = getattr(config, "rope_parameters", None) or {}
    theta = getattr(config, "rope_theta", None) or scaled.get("rope_theta", 10_000.0)
    exponents = torch.arange(0, rotary_width, 2, dtype=torch.int64).to(device=device, dtype=torch.float32) / rotary_width
    return 1.0 / theta**exponents


def patch_model_class(model_class: type[PreTrainedModel]) -> None:
    """Let a class out of a repository be built, loaded, saved and checkpointed by transformers 5. Twice does no harm.

    Args:
        model_class: As `get_class_from_dynamic_module` gives it: the object that the auto classes then use.
    """
    if _PATCHED in vars(model_class):
        return
    setattr(model_class, _PATCHED, True)
    _map_tied_weights(model_class)
    # LLaDA's own signature takes no argument: https://github.com/NVIDIA-NeMo/Automodel/pull/1672. The tie itself is seen to by
    # `finish_loading`.
    if not _takes_tying_arguments(model_class):
        model_class.tie_weights = PreTrainedModel.tie_weights
    if hasattr(sys.modules[model_class.__module__], "ActivationCheckpointingStrategy"):
        # LLaDA can checkpoint, but says it in words of its own: https://github.com/ML-GSAI/LLaDA/issues/51
        model_class.supports_gradient_checkpointing = True
        model_class._set_gradient_checkpointing = _set_llada_checkpointing
    original = model_class.__init__

    @functools.wraps(original)
    def __init__(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        with transformers_4_names(), _on_no_named_device(model_class):
            original(self, *args, **kwargs)
        # LLaDA and MDLM never call it, and from_pretrained needs what it sets: https://github.com/ML-GSAI/LLaDA/issues/130
        if not hasattr(self, "all_tied_weights_keys"):
            self.post_init()

    model_class.__init__ = __init__


def patch_config_class(config_class: type[PreTrainedConfig]) -> None:
    """Let a config out of a repository be saved by transformers 5. Twice does no harm.

    transformers refuses to write what it takes for settings of generation, such as `max_length`, unless the class declares them
    as its fields. Classes of transformers 4 declare their settings in the constructor.
    """
    if _PATCHED in vars(config_class):
        return
    setattr(config_class, _PATCHED, True)
    constructors = [vars(one)["__init__"] for one in config_class.__mro__ if "__init__" in vars(one) and one is not object]
    declared = {name for constructor in constructors for name in inspect.signature(constructor).parameters}
    original = config_class._get_generation_parameters

    @functools.wraps(original)
    def undeclared(self: PreTrainedConfig) -> dict[str, Any]:
        return {name: value for name, value in original(self).items() if name not in declared}

    config_class._get_generation_parameters = undeclared


def _takes_tying_arguments(model_class: type[PreTrainedModel]) -> bool:
    parameters = inspect.signature(model_class.tie_weights).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return takes_any or {"missing_keys", "recompute_mapping"} <= parameters.keys()


def _map_tied_weights(model_class: type[PreTrainedModel]) -> None:
    """Turn `_tied_weights_keys`, a list in transformers 4, into the mapping to what the weights are tied to.

    Dream, LLaDA-MoE, LLaDA2.x, iLLaDA: https://github.com/DreamLM/Dream/issues/83.
    """
    tied: list[str] = []
    for ancestor in model_class.__mro__:
        if isinstance(vars(ancestor).get("_tied_weights_keys"), list):
            setattr(ancestor, _TIED, ancestor._tied_weights_keys)  # for other classes that inherit from it
            ancestor._tied_weights_keys = {}
        tied += vars(ancestor).get(_TIED, [])
    if not tied:
        return
    original = model_class.post_init

    @functools.wraps(original)
    def post_init(self: PreTrainedModel) -> None:
        weight = self.get_input_embeddings().weight
        source = next(name for name, parameter in self.named_parameters() if parameter is weight)
        self._tied_weights_keys = {name: source for name in tied if name != source}
        original(self)

    model_class.post_init = post_init


def _set_llada_checkpointing(
    self: PreTrainedModel,
    enable: bool = True,
    gradient_checkpointing_func: Callable[..., Any] = checkpoint,
    every_n_layers: int = 1,
) -> None:
    """What `activation_checkpointing_enable` calls, in LLaDA's words."""
    strategies = sys.modules[type(self).__module__].ActivationCheckpointingStrategy
    names = {1: "whole_layer", 2: "one_in_two", 3: "one_in_three", 4: "one_in_four"}
    if every_n_layers not in names:
        raise BackboneError(f"LLaDA checkpoints every layer, or one in 2, 3 or 4, got `every_n_layers={every_n_layers}`.")
    inner = self.model
    inner.gradient_checkpointing = enable
    inner._activation_checkpoint_fn = functools.partial(_checkpoint_with_options, gradient_checkpointing_func)
    inner.set_activation_checkpointing(getattr(strategies, names[every_n_layers]) if enable else None)


def _checkpoint_with_options(recompute: Callable[..., Any], block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # The reentrant kind of checkpointing takes no keyword arguments for the block.
    return recompute(functools.partial(block, **kwargs), *args)


@contextmanager
def _on_no_named_device(model_class: type[PreTrainedModel]) -> Iterator[None]:
    """While open, LLaDA's layers are made on torch's default device, which is "meta" while transformers loads a model.

    The code names a device for each layer ("cpu", in dLLM's copy "cuda"), so that every parameter is allocated and drawn at
    random before it is read: 8 B of them, on every process. https://github.com/NVIDIA-NeMo/Automodel/pull/1672
    """
    config_class = getattr(sys.modules[model_class.__module__], "ModelConfig", None)
    if "init_device" not in getattr(config_class, "__dataclass_fields__", ()):
        yield
        return
    default = config_class.init_device
    # The instance keeps the key, since dLLM's copy passes `vars` of one config on to the next.
    config_class.init_device = property(lambda self: None, lambda self, value: vars(self).update(init_device=None))
    try:
        yield
    finally:
        config_class.init_device = default


def finish_loading(backbone: PreTrainedModel) -> None:
    """Put right what loading left wrong in a model with code of its own.

    Raises:
        BackboneError: If its rotary frequencies are not what they must be.
    """
    if not hasattr(backbone.config, "use_cache"):
        # Generation settings no longer get into a config, and LLaDA's forward reads this one.
        backbone.config.use_cache = False
    _untie(backbone)
    for module in backbone.modules():
        if isinstance(getattr(module, "inv_freq", None), Tensor):
            _recompute_frequencies(module, backbone.config)
    require_ok([check_rotary_tables(backbone)])


def _untie(backbone: PreTrainedModel) -> None:
    """Give a LLaDA with `weight_tying=True` an LM head of its own: its forward bypasses the module that could be hooked."""
    if not getattr(backbone.config, "weight_tying", False):
        return
    places = set(getattr(backbone, "hf_device_map", {}).values())
    if len(places) > 1 or "disk" in places:
        raise BackboneError(
            "A LLaDA with `weight_tying` gets an LM head of its own, which needs all weights on one device, but `device_map` "
            f"shares them out over {', '.join(sorted(map(str, places)))}; give it one device."
        )
    transformer = backbone.model.transformer
    embeddings = transformer["wte"].weight.detach()
    vocab_size, width = embeddings.shape
    head = nn.Linear(width, vocab_size, bias=False, device="meta")
    head.weight = nn.Parameter(embeddings.clone())
    transformer["ff_out"] = head
    backbone.config.weight_tying = backbone.model.config.weight_tying = False


def _recompute_frequencies(module: nn.Module, config: PreTrainedConfig) -> None:
    """Compute a buffer that is in no checkpoint again: transformers 5 leaves it as it finds the memory, without an error.

    https://github.com/unslothai/unsloth/pull/4112, https://github.com/pytorch/torchtitan/issues/4783
    """
    if "inv_freq" not in module._non_persistent_buffers_set:
        return
    device, width = module.inv_freq.device, 2 * module.inv_freq.numel()
    if hasattr(module, "rope_init_fn"):
        inv_freq, module.attention_scaling = module.rope_init_fn(module.config, device)
    else:
        plain = _inverse_frequencies(config, width, device)
        inv_freq = next(iter(tables_of_config(module, "inv_freq")), plain).to(device)
    module.register_buffer("inv_freq", inv_freq, persistent=False)
    if hasattr(module, "original_inv_freq"):
        module.original_inv_freq = module.inv_freq


def _flash_attn_stubs() -> dict[str, types.ModuleType]:
    """The two functions of flash-attn that MDLM's code calls, in plain torch, as modules."""
    names = ("flash_attn", "flash_attn.layers", "flash_attn.layers.rotary", "flash_attn.flash_attn_interface")
    modules = {name: types.ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None, is_package=True)
        module.__path__ = []
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(modules[parent], leaf, module)
    modules["flash_attn.layers.rotary"].apply_rotary_emb_qkv_ = _rotate_qkv
    modules["flash_attn.flash_attn_interface"].flash_attn_varlen_qkvpacked_func = _attend_qkv
    return modules


def _rotate_qkv(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries and keys of [batch, length, 3, heads, width] by cos and sin, [length, width / 2]."""
    cos, sin = (torch.cat((table, table), dim=-1)[None, :, None, None, :] for table in (cos, sin))
    first, second = qkv[:, :, :2].chunk(2, dim=-1)
    rotated = qkv[:, :, :2] * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((rotated, qkv[:, :, 2:]), dim=2)


def _attend_qkv(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, causal: bool = False) -> Tensor:
    """Attention within rows of one length, of [batch * length, 3, heads, width]; MDLM has no other rows."""
    query, key, value = qkv.unflatten(0, (-1, max_seqlen)).transpose(1, 3).unbind(2)
    attended = scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, is_causal=causal)
    return attended.transpose(1, 2).flatten(0, 1)
