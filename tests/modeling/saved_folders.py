"""What a saved folder holds."""

OURS = {"prism_config.json", "quality_head.safetensors", "README.md"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
BACKBONE = {"config.json", "model.safetensors"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}


def names(folder):
    return {path.name for path in folder.iterdir()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
