"""The page of families says what the specs say."""

from pages import ROOT, tables, text_of

from prism_plugin.backbones.builtin import BUILTIN_SPECS

PAGE = ROOT / "docs" / "families.md"


def row(spec):
    """A spec as the page shows it."""
    known = "" if spec.mask_token_id is None else f"{spec.mask_token_id} of {spec.mask_token_vocab_size}"
    block = "" if spec.attention_block_length is None else f", blocks of {spec.attention_block_length}"
    return [
        spec.model_type,
        spec.final_hidden_at,
        spec.logits_alignment.replace("_", " "),
        known,
        spec.attention_mask + block,
        spec.pads if spec.attention_mask != "none" else "none",
        ", ".join(spec.lora_target_modules),
        ", ".join(spec.layer_classes),
        "yes" if spec.activation_checkpointing else "no",
        ", ".join(f"{path}={value}" for path, value in spec.settings_while_attached),
    ]


def test_the_table_is_the_specs():
    assert tables(text_of(PAGE, "Known families"))[0] == [row(spec) for spec in BUILTIN_SPECS]
