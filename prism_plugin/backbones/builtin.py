"""The families that we ship, one literal each; tests put every one through the same contract."""

from typing import Any

from prism_plugin.backbones.spec import BackboneSpec

_DECODER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
# These classes would keep a key-value cache, which bidirectional attention cannot use.
_NO_CACHE = (("config.use_cache", False),)
_NO_CACHE_IN_CALL = (("use_cache", False),)

_ENCODERS = (
    BackboneSpec(
        model_type="bert",
        final_hidden_at="cls",
        lora_target_modules=("query", "key", "value"),
        layer_classes=("BertLayer",),
        reference="https://huggingface.co/docs/transformers/model_doc/bert",
    ),
    *(
        BackboneSpec(
            model_type=model_type,
            final_hidden_at="lm_head",
            lora_target_modules=("query", "key", "value"),
            layer_classes=(layer_class,),
            reference=f"https://huggingface.co/docs/transformers/model_doc/{model_type}",
        )
        for model_type, layer_class in (
            ("roberta", "RobertaLayer"),
            ("xlm-roberta", "XLMRobertaLayer"),
            ("camembert", "CamembertLayer"),
        )
    ),
    BackboneSpec(
        model_type="distilbert",
        final_hidden_at="vocab_transform",
        lora_target_modules=("q_lin", "k_lin", "v_lin", "out_lin"),
        layer_classes=("TransformerBlock",),
        reference="https://huggingface.co/docs/transformers/model_doc/distilbert",
    ),
    BackboneSpec(
        model_type="albert",
        final_hidden_at="predictions",
        lora_target_modules=("query", "key", "value"),
        layer_classes=("AlbertLayer",),
        activation_checkpointing=False,
        reference="https://huggingface.co/docs/transformers/model_doc/albert",
    ),
    BackboneSpec(
        model_type="electra",  # the generator: a discriminator has no LM head, and loading refuses it
        final_hidden_at="generator_predictions",
        lora_target_modules=("query", "key", "value"),
        layer_classes=("ElectraLayer",),
        reference="https://huggingface.co/docs/transformers/model_doc/electra",
    ),
    *(
        BackboneSpec(
            model_type=f"{model_type}-lm-predictions" if released else model_type,
            # transformers has two heads for it. That of Microsoft's checkpoints multiplies by the embeddings, and works where
            # the config says `"legacy": false`; by default a fresh `cls` takes its place, which has to be trained.
            known_by=(("model_type", model_type), ("legacy", False)) if released else (),
            final_hidden_at="lm_predictions" if released else "cls",
            lm_head_at="deberta.embeddings.word_embeddings" if released else None,
            lora_target_modules=targets,
            layer_classes=(layer_class,),
            reference=f"https://huggingface.co/docs/transformers/model_doc/{model_type}",
        )
        for model_type, targets, layer_class in (
            ("deberta", ("in_proj",), "DebertaLayer"),
            ("deberta-v2", ("query_proj", "key_proj", "value_proj"), "DebertaV2Layer"),  # DeBERTa-v3 too
        )
        for released in (False, True)
    ),
    BackboneSpec(
        model_type="mpnet",
        final_hidden_at="lm_head",
        lora_target_modules=("q", "k", "v", "o"),
        layer_classes=("MPNetLayer",),
        activation_checkpointing=False,
        reference="https://huggingface.co/docs/transformers/model_doc/mpnet",
    ),
    BackboneSpec(
        model_type="roformer",
        final_hidden_at="cls",
        lora_target_modules=("query", "key", "value"),
        layer_classes=("RoFormerLayer",),
        reference="https://huggingface.co/docs/transformers/model_doc/roformer",
    ),
    BackboneSpec(
        model_type="nomic_bert",
        final_hidden_at="cls",
        lora_target_modules=_DECODER_TARGETS,
        layer_classes=("NomicBertLayer",),
        prefers_own_code=True,  # the code in the released repositories has other modules
        reference="https://huggingface.co/docs/transformers/model_doc/nomic_bert",
    ),
    BackboneSpec(
        model_type="modernbert",
        final_hidden_at="head",
        lora_target_modules=("Wqkv", "Wo"),
        layer_classes=("ModernBertEncoderLayer",),
        reference="https://huggingface.co/docs/transformers/model_doc/modernbert",
    ),
    BackboneSpec(
        model_type="eurobert",
        final_hidden_at="lm_head",
        lora_target_modules=_DECODER_TARGETS,
        layer_classes=("EuroBertDecoderLayer",),
        prefers_own_code=True,  # the code in the released repositories is for transformers 4 and fails
        reference="https://huggingface.co/docs/transformers/model_doc/eurobert",
    ),
    BackboneSpec(
        model_type="esm",
        final_hidden_at="lm_head",
        lora_target_modules=("query", "key", "value"),
        layer_classes=("EsmLayer",),
        # ESM-2 zeroes the embeddings of mask tokens and rescales the others by 1 / (1 - mask ratio): infinite when every
        # token is masked, and tuned for the 15 % of its pretraining. The config goes along so that a saved copy agrees.
        settings_while_attached=(("esm.embeddings.token_dropout", False), ("config.token_dropout", False), *_NO_CACHE),
        required_config=(("dplm_type", None),),  # DPLM-2 has this model type too, and code of its own
        reference="https://huggingface.co/docs/transformers/model_doc/esm",
    ),
    BackboneSpec(
        model_type="dplm",  # its config says "esm", and only `dplm_type` is left of it once transformers has saved it
        architectures=("EsmForDPLM",),
        known_by=(("model_type", "esm"), ("dplm_type", "dplm_esm")),
        final_hidden_at="lm_head",
        lora_target_modules=("query", "key", "value"),
        layer_classes=("EsmLayer",),
        mask_token_id=32,
        mask_token_vocab_size=33,
        # ESM-2's token dropout stays on: DPLM was trained with it at every mask ratio.
        needs_visible_token=True,
        settings_while_attached=_NO_CACHE,
        reference="https://github.com/bytedance/dplm",
    ),
    BackboneSpec(
        model_type="esmc",
        final_hidden_at="lm_head",
        lora_target_modules=_DECODER_TARGETS,
        layer_classes=("EsmcLayer",),
        reference="https://huggingface.co/docs/transformers/model_doc/esmc",
    ),
)

# Autoregressive models that were trained further with attention to both sides, such as dLLM's A2D models: transformers' own
# classes give the same logits as A2D's with `config.is_causal=False`, and A2D's Qwen classes no longer run.
_ADAPTED_DECODERS = tuple(
    BackboneSpec(
        model_type=model_type,
        final_hidden_at="lm_head",
        lora_target_modules=targets,
        layer_classes=(layer_class,),
        auto_class="AutoModelForCausalLM",
        causal_by_default=True,
        adapted_model_types=(f"a2d-{model_type}",) if model_type in ("llama", "qwen2", "qwen3") else (),
        settings_while_attached=_NO_CACHE,
        reference=f"https://huggingface.co/docs/transformers/model_doc/{model_type.removesuffix('_text')}",
    )
    for model_type, layer_class, targets in (
        ("llama", "LlamaDecoderLayer", _DECODER_TARGETS),
        ("qwen2", "Qwen2DecoderLayer", _DECODER_TARGETS),
        ("qwen3", "Qwen3DecoderLayer", _DECODER_TARGETS),
        ("qwen3_moe", "Qwen3MoeDecoderLayer", _DECODER_TARGETS),  # attention only: neither router nor experts
        ("mistral", "MistralDecoderLayer", _DECODER_TARGETS),
        ("gemma2", "Gemma2DecoderLayer", _DECODER_TARGETS),
        ("gemma3_text", "Gemma3DecoderLayer", _DECODER_TARGETS),
        ("smollm3", "SmolLM3DecoderLayer", _DECODER_TARGETS),
        ("olmo2", "Olmo2DecoderLayer", _DECODER_TARGETS),
        ("phi3", "Phi3DecoderLayer", ("qkv_proj", "o_proj")),
        ("gpt2", "GPT2Block", ("c_attn",)),  # PEFT's choice; its `c_proj` is in attention and in the MLP
    )
)


# Adapted from autoregressive models by block diffusion. Their own code runs under no transformers 5, or in training makes noise
# and loss itself; the weights have the names of transformers' classes, which give the same logits
# (tests/backbones/test_released_code.py).
def _by_blocks(model_type: str, class_name: str, loads_as: str, layer_class: str, **more: Any) -> BackboneSpec:
    return BackboneSpec(
        model_type=model_type,
        architectures=(class_name,),
        final_hidden_at="lm_head",
        lora_target_modules=_DECODER_TARGETS,
        layer_classes=(layer_class,),
        attention_mask="4d",
        auto_class="AutoModelForCausalLM",
        loads_as=loads_as,
        settings_while_attached=_NO_CACHE,
        **more,
    )


_SDAR = {
    "block_length_name": "block_size", "mask_token_id": 151669, "mask_token_vocab_size": 151936,
    "reference": "https://github.com/JetAstra/SDAR",
}  # fmt: skip
_BY_BLOCKS = (
    _by_blocks("sdar", "SDARForCausalLM", "qwen3", "Qwen3DecoderLayer", **_SDAR),
    _by_blocks("sdar_moe", "SDARMoeForCausalLM", "qwen3_moe", "Qwen3MoeDecoderLayer", **_SDAR),
    _by_blocks(
        "Fast_dLLM_Qwen",
        "Fast_dLLM_QwenForCausalLM",
        "qwen2",
        "Qwen2DecoderLayer",
        block_length_name="bd_size",
        logits_alignment="next_token",
        mask_token_id=151665,  # a constant of its code, whatever the vocabulary: 152,064 for 7B
        reference="https://huggingface.co/Efficient-Large-Model/Fast_dLLM_v2_7B",
    ),
    _by_blocks(
        "nemotron_labs_diffusion",
        "NemotronLabsDiffusionModel",
        "ministral3",
        "Ministral3DecoderLayer",
        weight_names=(("encoder.", "model."), ("diffusion_head.", "lm_head.")),
        block_length_name="block_size",
        causal_context=True,
        mask_token_id=100,
        reference="https://huggingface.co/nvidia/Nemotron-Labs-Diffusion-8B",
    ),
    _by_blocks(
        "stable_diffcoder",
        "StableDiffcoderForCausalLM",
        "llama",
        "LlamaDecoderLayer",
        attention_block_length=4,
        mask_token_id=5,
        mask_token_vocab_size=155136,
        reference="https://huggingface.co/ByteDance-Seed/Stable-DiffCoder-8B-Instruct",
    ),
)

# What LLaDA-8B and models of its code have in common.
_OF_LLADA: dict[str, Any] = {
    "final_hidden_at": "model.transformer.ff_out",
    "lora_target_modules": ("q_proj", "k_proj", "v_proj"),  # PRISM's; the blocks' `ff_out` has the LM head's leaf name
    "mask_token_id": 126336,
    "auto_class": "AutoModel",
    "required_config": (("weight_tying", False),),
    "call_arguments": _NO_CACHE_IN_CALL,
    "rotary_method": "get_rotary_embedding",
}

# These bring code of their own, written for transformers 4: prism_plugin/backbones/compat.py makes it run.
_WITH_REMOTE_CODE = (
    BackboneSpec(
        model_type="llada",  # LLaDA-8B and LLaDA-1.5
        architectures=("LLaDAModelLM",),
        layer_classes=("LLaDALlamaBlock",),
        mask_token_vocab_size=126464,
        pads="supervised",
        reference="https://huggingface.co/GSAI-ML/LLaDA-8B-Instruct",
        **_OF_LLADA,
    ),
    BackboneSpec(
        model_type="mmada",  # LLaDA-8B with 8,192 tokens for images behind its vocabulary: its text alone is written here
        architectures=("MMadaModelLM",),
        layer_classes=("LLaDALlamaBlock",),
        mask_token_vocab_size=134656,
        attention_mask="4d",  # a 2-D mask with a zero makes the whole batch causal
        mask_argument="attention_bias",
        hidden_size_name="d_model",
        reference="https://github.com/Gen-Verse/MMaDA",
        **_OF_LLADA,
    ),
    BackboneSpec(
        model_type="RemeDi",  # LLaDA-8B with a second stream, whose own confidences are not read; LoRA goes to both
        architectures=("RemeDiUPMModelLM",),
        layer_classes=("RemeDiLlamaBlock",),
        mask_token_vocab_size=126464,
        reference="https://github.com/maple-research-lab/RemeDi",
        **_OF_LLADA,
    ),
    BackboneSpec(
        model_type="illada",
        architectures=("ILLaDAForCausalLM",),
        final_hidden_at="lm_head",
        lora_target_modules=_DECODER_TARGETS,
        layer_classes=("ILLaDADecoderLayer",),
        mask_token_id=5,
        mask_token_vocab_size=155136,
        auto_class="AutoModelForCausalLM",
        reference="https://github.com/ML-GSAI/LLaDA",
    ),
    BackboneSpec(
        model_type="lladamoe",  # what dLLM calls it; the released checkpoints say "llada", so the class name decides
        architectures=("LLaDAMoEModelLM",),
        final_hidden_at="lm_head",
        lora_target_modules=_DECODER_TARGETS,  # attention only: neither router nor experts
        layer_classes=("LLaDAMoEDecoderLayer",),
        mask_token_id=156895,
        mask_token_vocab_size=157184,
        auto_class="AutoModel",
        call_arguments=_NO_CACHE_IN_CALL,
        reference="https://huggingface.co/inclusionAI/LLaDA-MoE-7B-A1B-Instruct",
    ),
    BackboneSpec(
        model_type="llada2_moe",  # LLaDA2.0, 2.1 and 2.2
        architectures=("LLaDA2MoeModelLM",),
        final_hidden_at="lm_head",
        lora_target_modules=("query_key_value", "dense"),
        layer_classes=("LLaDA2MoeDecoderLayer",),
        mask_token_id=156895,
        mask_token_vocab_size=157184,
        # Its last phase of training was block diffusion, and a 2-D mask with a zero makes the whole batch causal.
        attention_mask="4d",
        attention_block_length=32,
        edit_tokens=("delete_token_id", "split_token_id"),  # LLaDA2.2
        auto_class="AutoModelForCausalLM",  # its `AutoModel` has no LM head
        call_arguments=_NO_CACHE_IN_CALL,
        reference="https://huggingface.co/inclusionAI/LLaDA2.0-mini",
    ),
    BackboneSpec(
        model_type="Dream",  # Dream-7B, Dream-Coder-7B, DiffuCoder-7B and DreamOn-7B
        architectures=("DreamModel",),
        final_hidden_at="lm_head",
        lora_target_modules=_DECODER_TARGETS,
        layer_classes=("DreamDecoderLayer",),
        logits_alignment="next_token",
        mask_token_id=151666,
        mask_token_vocab_size=152064,
        edit_tokens=("expand_id", "expand_token_id", "<|expand|>"),  # DreamOn
        attention_mask="4d",  # the released code takes no 2-D mask, and reads an additive one upside down
        auto_class="AutoModel",
        call_arguments=_NO_CACHE_IN_CALL,
        reference="https://huggingface.co/Dream-org/Dream-v0-Instruct-7B",
    ),
    *(
        BackboneSpec(
            model_type=model_type,
            architectures=(class_name,),
            # The layer in front of it is modulated row by row, so rows are gathered behind that: the head reads the state
            # after the final norm and modulation.
            final_hidden_at="backbone.output_layer.linear",
            lora_target_modules=("attn_qkv", "attn_out"),
            layer_classes=("DDiTBlock",),
            activation_checkpointing=False,
            lm_head_at="backbone.output_layer.linear",
            input_embeddings_at="backbone.vocab_embed",
            hidden_size_name="hidden_dim",
            mask_token_id=50257,
            mask_token_vocab_size=50258,
            attention_mask="none",
            required_config=(("time_conditioning", False),),
            call_arguments=(("return_dict", True),),
            time_argument="timesteps",
            reference=reference,
        )
        for model_type, class_name, reference in (
            ("mdlm", "MDLM", "https://huggingface.co/kuleshov-group/mdlm-owt"),
            ("proseco", "Proseco", "https://github.com/kuleshov-group/proseco"),
        )
    ),
)

BUILTIN_SPECS = (*_ENCODERS, *_ADAPTED_DECODERS, *_BY_BLOCKS, *_WITH_REMOTE_CODE)
