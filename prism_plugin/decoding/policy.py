"""A learned order of unmasking: a small network over what a look says of each position, and the rule that asks it.

The network is trained outside, by policy gradient; `examples/09_an_unmasking_policy.py` does so. Its file says of which
backbone's looks it has learnt.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from prism_plugin.backbones.spec import hidden_size_of, vocab_size_of
from prism_plugin.core.selection import select_top
from prism_plugin.core.unmasking import UNMASKING
from prism_plugin.core.validation import require_int, require_number
from prism_plugin.core.view import StepView
from prism_plugin.errors import ConfigurationError, SamplingError, StoredStateError
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.modeling.strict_files import read_tensors, stored
from prism_plugin.parsing import parse_json
from prism_plugin.reader import without_version
from prism_plugin.types import PerRow, PerToken, TokenMask
from prism_plugin.writing import write_bytes

POLICY_FORMAT_VERSION = 1
_ABOUT = "unmasking_policy"  # key of the file's metadata
_NUM_FEATURES = 8
_NUM_HEADS = 4


@dataclass(frozen=True)
class PolicyShape:
    """What an `UnmaskingPolicy` is made of.

    Attributes:
        hidden_size: Width of its one block, >= 4, a multiple of 4.
        num_positions: Positions of a row that it tells apart, counted from the row's first token; 0: none. A grid has cells,
            while in a text a position's number says little.
        reads_quality: It reads the quality head's view of the tokens that stand there.
    """

    hidden_size: int = 32
    num_positions: int = 0
    reads_quality: bool = False

    def __post_init__(self) -> None:
        require_int(self, "hidden_size", minimum=_NUM_HEADS)
        require_int(self, "num_positions", minimum=0)
        if self.hidden_size % _NUM_HEADS:
            raise ConfigurationError(f"`hidden_size` of a policy must be a multiple of {_NUM_HEADS}, found {self.hidden_size}.")
        if not isinstance(self.reads_quality, bool):
            raise ConfigurationError(f"`reads_quality` of a policy must be True or False, found {self.reads_quality!r}.")


class UnmaskingPolicy(nn.Module):
    """Scores the masked positions of a look: the higher, the sooner they are filled.

    After "Learning unmasking policies" (arXiv 2512.09106): one transformer block over a few figures per position, whatever the
    backbone's size. A score is the log odds of the candidate plus what the block adds, which is nothing before training, so
    that it begins as `ConfidenceUnmasking`.

    Args:
        hidden_size: See `PolicyShape`.
        num_positions: See `PolicyShape`.
        reads_quality: See `PolicyShape`.

    Raises:
        ConfigurationError: If a size is out of range.
    """

    def __init__(self, hidden_size: int = 32, num_positions: int = 0, *, reads_quality: bool = False) -> None:
        super().__init__()
        self.shape = PolicyShape(hidden_size, num_positions, reads_quality)
        self.inner = nn.Linear(_NUM_FEATURES, hidden_size)
        self.place = nn.Embedding(num_positions, hidden_size) if num_positions else None
        self.norm = nn.LayerNorm(hidden_size)
        self.attention = nn.MultiheadAttention(hidden_size, _NUM_HEADS, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, 2 * hidden_size),
            nn.GELU(),
            nn.Linear(2 * hidden_size, hidden_size),
        )
        self.outer = nn.Linear(hidden_size, 1)
        if self.place is not None:
            nn.init.zeros_(self.place.weight)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    @property
    def needs(self) -> frozenset[str]:
        """Features of a look that it reads."""
        return frozenset({"entropy", "margin"} | ({"quality"} if self.shape.reads_quality else set()))

    def features(self, view: StepView, grant: PerRow) -> Tensor:
        """What it reads of a look.

        Args:
            view: The look, with `needs`.
            grant: Positions to reveal, per row.

        Returns:
            [batch, length, 9]: of masks the log odds of the candidate, entropy and margin; of tokens the log odds when they
            were written, and of their quality; whether it is a mask, the share of masks that is granted, the share of the block
            that stands; and whether the position counts.
        """
        masked, revealed = view.masked.float(), (view.editable & ~view.masked).float()
        left, whole = masked.sum(-1), view.editable.sum(-1).clamp(min=1)
        share = (grant / left.clamp(min=1)).clamp(max=1).unsqueeze(-1).expand_as(masked)
        stands = (1 - left / whole).unsqueeze(-1).expand_as(masked)
        quality = view.require("quality", self) if self.shape.reads_quality else torch.full_like(masked, 0.5)
        parts = (
            _log_odds(view.confidence) * masked,
            view.require("entropy", self) * masked,
            view.require("margin", self) * masked,
            _log_odds(view.commit_confidence) * revealed,
            _log_odds(quality.nan_to_num(0.5)) * revealed,
            masked, share, stands, view.editable.float(),
        )  # fmt: skip
        return torch.stack(parts, dim=-1)

    def forward(self, features: Tensor) -> PerToken:
        """Score positions, [batch, length], from `features`; those of masks count.

        Raises:
            SamplingError: If a row is longer than `num_positions`.
        """
        counts = features[..., -1] > 0
        hidden = self.inner(features[..., :-1])
        if self.place is not None:
            length, most = features.shape[1], self.place.num_embeddings
            if length > most:
                raise SamplingError(
                    f"this policy has learnt rows of at most {most} positions, found one of {length}; train one with more "
                    "`num_positions`, or with none."
                )
            hidden = hidden + self.place.weight[:length]
        normed = self.norm(hidden)
        # a row without a position that counts attends to itself, or its scores would be NaN
        unseen = ~counts & counts.any(-1, keepdim=True)
        attended, _ = self.attention(normed, normed, normed, key_padding_mask=unseen, need_weights=False)
        hidden = hidden + attended
        return features[..., 0] + self.outer(hidden + self.mlp(hidden)).squeeze(-1)

    def save(self, file: str | Path, model: HeadedBackbone) -> None:
        """Write it as safetensors, with what it is of: beside the old file, then renamed.

        Args:
            file: Where to.
            model: Whose looks it has learnt of.

        Raises:
            SavingError: If the file cannot be written.
        """
        about = {**vars(self.shape), **_backbone_of(model)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        metadata = {_ABOUT: json.dumps({"format_version": POLICY_FORMAT_VERSION, **about})}
        write_bytes(Path(file), save(tensors, metadata=metadata))


@dataclass(frozen=True)
class _About:
    """What a policy's file says of it."""

    hidden_size: int
    num_positions: int
    reads_quality: bool
    backbone_model_type: str
    backbone_hidden_size: int
    backbone_vocab_size: int
    mask_token_id: int


def log_probability(scores: PerToken, order: Tensor) -> PerRow:
    """Log-probability that positions are chosen in an order, one after another, each by the softmax of what is left.

    This is Plackett and Luce's distribution. The highest of `scores` plus `gumbel` noise, sorted, are a draw of it.

    Args:
        scores: [batch, length]; -inf where nothing may be chosen.
        order: Chosen positions, first to last, [batch, count]; -1 behind the last.
    """
    total = torch.zeros_like(scores[:, 0])
    for chosen in order.unbind(-1):
        one = chosen.clamp(min=0).unsqueeze(-1)
        gained = scores.log_softmax(-1).gather(-1, one).squeeze(-1)
        total = total + torch.where(chosen >= 0, gained, 0.0)
        scores = torch.where((chosen >= 0).unsqueeze(-1), scores.scatter(-1, one, -torch.inf), scores)
    return total


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise out of uniform noise in [0, 1)."""
    tiny = torch.finfo(uniform.dtype).tiny
    return -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()


@UNMASKING.register("policy")
@dataclass(frozen=True)
class PolicyUnmasking:
    """Reveal first what a learned policy scores highest (after "Learning unmasking policies", arXiv 2512.09106).

    Args:
        file: Of an `UnmaskingPolicy`, as its `save` writes it.
        randomness: Of the order: 0 goes by scores; above 0 by scores plus so much Gumbel noise, which draws one position after
            another by the softmax of what is left of scores / randomness.

    Raises:
        ConfigurationError: If `randomness` is out of range, or `file` is none.
        StoredStateError: If the file holds no policy.
    """

    file: str = field(metadata={"file": True})
    randomness: float = 0.0
    policy: UnmaskingPolicy = field(init=False, repr=False, compare=False)
    _about: _About = field(init=False, repr=False, compare=False)
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self, "randomness", "a finite number of at least 0 (which goes by scores)", low=0)
        path = Path(self.file)
        if not path.is_file():
            raise ConfigurationError(
                f"A policy is read from a file that `UnmaskingPolicy.save` wrote, but there is none at {path}; give its path."
            )
        object.__setattr__(self, "file", str(path))
        about = _read_about(path)
        policy = UnmaskingPolicy(about.hidden_size, about.num_positions, reads_quality=about.reads_quality)
        policy.load_state_dict(read_tensors(path, policy.state_dict()))
        object.__setattr__(self, "policy", policy.eval().requires_grad_(False))
        object.__setattr__(self, "_about", about)

    @property
    def needs(self) -> frozenset[str]:
        """What the policy reads, and noise where the order is drawn."""
        return self.policy.needs | (frozenset({"noise"}) if self.randomness else frozenset())

    def may_unmask(self, model: HeadedBackbone) -> None:
        """Refuse a policy that has learnt of another backbone's looks.

        Raises:
            ConfigurationError: If it has.
        """
        for name, found in _backbone_of(model).items():
            learnt = getattr(self._about, name)
            if learnt != found:
                raise ConfigurationError(
                    f"The policy in {self.file} has learnt of looks of a backbone with {name.removeprefix('backbone_')} "
                    f"{learnt!r}, but this one has {found!r}; train one for it, or load the other."
                )

    @torch.no_grad()
    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        if self.policy.outer.weight.device != view.tokens.device:
            self.policy.to(view.tokens.device)
        scores = self.policy(self.policy.features(view, budget))
        if self.randomness:
            scores = scores + self.randomness * gumbel(view.require("noise", self))
        return select_top(scores, view.masked, budget)


def _log_odds(probability: Tensor) -> Tensor:
    return probability.clamp(1e-6, 1 - 1e-6).logit()


def _backbone_of(model: HeadedBackbone) -> dict[str, Any]:
    plain = model.plain_backbone
    return {
        "backbone_model_type": plain.config.model_type,
        "backbone_hidden_size": hidden_size_of(plain.config, model.spec),
        "backbone_vocab_size": vocab_size_of(model.get_output_embeddings()),
        "mask_token_id": model.mask_token_id,
    }


def _read_about(path: Path) -> _About:
    try:
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get(_ABOUT)
        if written is None:
            raise ValueError("it does not say that it is one")
        values = without_version(parse_json(written), POLICY_FORMAT_VERSION, source=str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise StoredStateError(f"{path} must be a policy as `UnmaskingPolicy.save` writes it, but is not ({error}).") from error
    return stored(_About, path, values)
