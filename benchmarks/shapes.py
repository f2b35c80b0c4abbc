"""Models and requests of the sizes that are measured; random weights, or the shipped Sudoku model."""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import LoraConfig
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from benchmarks.contest import Machine
from prism_plugin.evaluation.tasks import sudoku
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head

SUDOKU = Path(__file__).resolve().parents[1] / "adapters" / "sudoku-9x9"


@dataclass(frozen=True)
class Shape:
    """A backbone and a request.

    Attributes:
        model_type: Family; "llama" without the causal mask has LLaDA's layers.
        batch: Rows of a request, and of a training batch.
        prompt_length: Tokens before the new ones.
        max_new_tokens: Masks to fill per row.
        block_length: Positions per block, None for one block.
        num_steps: Forward passes.
        training_length: Tokens per row of a training batch, every one maskable.
    """

    name: str
    model_type: str
    vocab_size: int
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    intermediate_size: int = 768
    batch: int = 2
    prompt_length: int = 64
    max_new_tokens: int = 128
    block_length: int | None = 32
    num_steps: int = 32
    training_length: int = 256

    @property
    def mask_token_id(self) -> int:
        """The last token."""
        return self.vocab_size - 1

    @property
    def length(self) -> int:
        """Tokens of a row when sampling."""
        return self.prompt_length + self.max_new_tokens


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llada", "llama", vocab_size=126_464),
        Shape(
            "llada-8b", "llama", vocab_size=126_464, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
            intermediate_size=12_288, batch=4, prompt_length=448, max_new_tokens=64, num_steps=16, training_length=512,
        ),
        Shape("bert", "bert", vocab_size=30_522, intermediate_size=1024),
        # 0.8 M parameters, 81 cells; a puzzle of the test set has 30 givens
        Shape(
            "sudoku", "bert", vocab_size=11, hidden_size=128, intermediate_size=256, batch=256, prompt_length=30,
            max_new_tokens=51, block_length=None, num_steps=17, training_length=81,
        ),
    )
}  # fmt: skip


def build_backbone(shape: Shape, machine: Machine) -> PreTrainedModel:
    """A randomly initialised model of the shape, with its LM head, in evaluation mode; the same one every time."""
    torch.manual_seed(0)
    config = type(AutoConfig.for_model(shape.model_type))(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=max(1024, shape.length, shape.training_length),
        tie_word_embeddings=shape.model_type == "bert",
        is_causal=False,
        pad_token_id=0,
        mask_token_id=shape.mask_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    auto_class = "AutoModelForMaskedLM" if shape.model_type == "bert" else "AutoModelForCausalLM"
    with torch.device(machine.device):  # eight billion numbers are drawn where they are wanted
        model = getattr(transformers, auto_class).from_config(config, dtype=getattr(torch, machine.dtype))
    return model.to(machine.device).eval()


def build_model(shape: Shape, machine: Machine, *, lora: bool = False) -> PrismModel:
    """The backbone with a quality head whose output differs from token to token, and LoRA on q, k and v if wanted."""
    if shape.name == "sudoku" and not lora:
        model = PrismModel.from_pretrained(SUDOKU / "weights").to(machine.device)
        model.merge_and_unload().to(getattr(torch, machine.dtype))
        return model
    names = ["query", "key", "value"] if shape.model_type == "bert" else ["q_proj", "k_proj", "v_proj"]
    adapter = LoraConfig(r=16, lora_alpha=16, target_modules=names) if lora else None
    backbone = build_backbone(shape, machine)
    model = attach_quality_head(backbone, PrismConfig(mask_token_id=shape.mask_token_id), lora=adapter)
    with torch.no_grad():
        model.quality_head.layers[-1].weight.normal_(generator=_generator(machine))
    return model


def request(shape: Shape, machine: Machine, mask_token_id: int) -> Tensor:
    """Tokens to fill, [batch, length]: random prompts and masks after them, or puzzles."""
    if shape.name == "sudoku":
        return sudoku.read_puzzles(SUDOKU / "data" / "test.txt")[: shape.batch].to(machine.device)
    tokens = _random_tokens(shape, shape.length, machine)
    tokens[:, shape.prompt_length :] = mask_token_id
    return tokens


def blocks(shape: Shape, tokens: Tensor, mask_token_id: int) -> list[Tensor]:
    """The positions of each block of a request, as masks [batch, length]."""
    editable = tokens == mask_token_id
    if shape.block_length is None:
        return [editable]
    number = (torch.arange(shape.length, device=tokens.device) - shape.prompt_length) // shape.block_length
    return [editable & (number == index) for index in range(shape.max_new_tokens // shape.block_length)]


def training_tokens(shape: Shape, machine: Machine) -> Tensor:
    """Clean tokens of a training batch, [batch, length]."""
    return _random_tokens(shape, shape.training_length, machine)


def _random_tokens(shape: Shape, length: int, machine: Machine) -> Tensor:
    size = (shape.batch, length)
    return torch.randint(1, shape.vocab_size - 1, size, generator=_generator(machine), device=machine.device)


def _generator(machine: Machine) -> torch.Generator:
    return torch.Generator(machine.device).manual_seed(1)
