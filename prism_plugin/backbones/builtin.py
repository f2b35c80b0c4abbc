"""The families that we ship, one literal each; tests check every one against a small random model."""

from prism_plugin.backbones.spec import BackboneSpec

_DECODER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
# These classes would keep a key-value cache, which bidirectional attention cannot use.
_NO_CACHE = (("config.use_cache", False),)

BUILTIN_SPECS = (
    BackboneSpec(
        model_type="bert",
        final_hidden_at="cls",
        lora_target_modules=("query", "key", "value"),
        reference="https://huggingface.co/docs/transformers/model_doc/bert",
    ),
    BackboneSpec(
        model_type="roberta",
        final_hidden_at="lm_head",
        lora_target_modules=("query", "key", "value"),
        reference="https://huggingface.co/docs/transformers/model_doc/roberta",
    ),
    BackboneSpec(
        model_type="distilbert",
        final_hidden_at="vocab_transform",
        lora_target_modules=("q_lin", "k_lin", "v_lin", "out_lin"),
        reference="https://huggingface.co/docs/transformers/model_doc/distilbert",
    ),
    BackboneSpec(
        model_type="modernbert",
        final_hidden_at="head",
        lora_target_modules=("Wqkv", "Wo"),
        reference="https://huggingface.co/docs/transformers/model_doc/modernbert",
    ),
    BackboneSpec(
        model_type="eurobert",
        final_hidden_at="lm_head",
        lora_target_modules=_DECODER_TARGETS,
        reference="https://huggingface.co/docs/transformers/model_doc/eurobert",
    ),
    BackboneSpec(
        model_type="esm",
        final_hidden_at="lm_head",
        lora_target_modules=("query", "key", "value"),
        # ESM-2 zeroes the embeddings of mask tokens and rescales the others by 1 / (1 - mask ratio): infinite when every
        # token is masked, and tuned for the 15 % of its pretraining. The config goes along so that a saved copy agrees.
        settings_while_attached=(("esm.embeddings.token_dropout", False), ("config.token_dropout", False), *_NO_CACHE),
        reference="https://huggingface.co/docs/transformers/model_doc/esm",
    ),
    BackboneSpec(
        model_type="llama",
        final_hidden_at="lm_head",
        lora_target_modules=_DECODER_TARGETS,
        auto_class="AutoModelForCausalLM",
        causal_by_default=True,
        settings_while_attached=_NO_CACHE,
        reference="https://huggingface.co/docs/transformers/model_doc/llama",
    ),
    BackboneSpec(
        model_type="qwen2",
        final_hidden_at="lm_head",
        lora_target_modules=_DECODER_TARGETS,
        auto_class="AutoModelForCausalLM",
        causal_by_default=True,
        settings_while_attached=_NO_CACHE,
        reference="https://huggingface.co/docs/transformers/model_doc/qwen2",
    ),
    BackboneSpec(
        model_type="qwen3",
        final_hidden_at="lm_head",
        lora_target_modules=_DECODER_TARGETS,
        auto_class="AutoModelForCausalLM",
        causal_by_default=True,
        settings_while_attached=_NO_CACHE,
        reference="https://huggingface.co/docs/transformers/model_doc/qwen3",
    ),
)
