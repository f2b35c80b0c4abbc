"""Judges which position logits are about: seen when a model repeats a pattern, and when it fills masks in real rows."""

from torch import Tensor

from prism_plugin.backbones.probe import Check, not_run
from prism_plugin.backbones.spec import ALIGNMENTS, BackboneSpec
from prism_plugin.core.float64 import to_float64

# Alignment is only held against a model that shows it plainly: it repeats a pattern with this probability, at the other row.
_SURE_LOG_PROBABILITY, _SURE_LEAD = -0.7, 2.0
# On data, the other alignment has to be better by that many nats a token and that many standard errors, on that many tokens.
# And by these nats it has to beat guessing by how often each token occurs, which a model that has learnt nothing cannot do.
_CLEAR_NATS, _CLEAR_ERRORS, _FEWEST_TOKENS = 0.5, 5.0, 20


def judge_alignment(name: str, spec: BackboneSpec, claimed: Tensor, other: Tensor) -> Check:
    """Logits are about the position that the spec says. A random model shows nothing, and passes.

    Args:
        name: The model's class, for the sentence.
        spec: What is claimed about it.
        claimed: Log-probabilities of the token that continues a repeated pattern, at the row that the spec says is about it.
        other: The same, at the row of the other alignment.
    """
    lead, there = (claimed.mean() - other.mean()).item(), other.mean().item()
    if lead <= -_SURE_LEAD and there >= _SURE_LOG_PROBABILITY:
        return Check(
            "alignment", False, lead,
            f"The BackboneSpec of {spec.model_type!r} says that logits are aligned as {spec.logits_alignment!r}, but {name} "
            f"repeats a pattern as {_other(spec)!r} does (by {-lead:.1f} nats); {_align_by(_other(spec))}.",
        )  # fmt: skip
    shown = "seen when it repeats a pattern" if lead >= _SURE_LEAD else "as the BackboneSpec says; not to be seen here"
    return Check("alignment", True, lead, f"{spec.logits_alignment}, {shown}; lead over the other alignment in nats")


def judge_alignment_on_data(name: str, spec: BackboneSpec, filled: Tensor) -> Check:
    """Masked tokens are filled no better at the rows that would be right if logits were about the other position.

    The test is paired: the difference of both cross-entropies, token by token, with its standard error. It has to be clear on
    all tokens, and on those that differ from both neighbours: about the others, a model that repeats what it sees is right at
    the wrong row. A model that has learnt little or nothing passes, since neither row says more than how often tokens occur.

    Args:
        name: The model's class, for the sentence.
        spec: What is claimed about it.
        filled: As `modeling.alignment.fill_both_ways` gives it, [tokens, 4]: the token, its cross-entropy at the row that the
            spec says is about it, that at the other row, and 1 where it differs from its neighbours.
    """
    filled = to_float64(filled)
    parts = (filled, filled[filled[:, 3] > 0])
    if len(parts[1]) < _FEWEST_TOKENS:
        reason = f"{len(parts[1])} masked tokens differ from their neighbours, and comparing needs {_FEWEST_TOKENS}"
        return not_run("alignment_on_data", reason)
    (claimed, other), right = (one.mean().item() for one in filled[:, 1:3].unbind(-1)), _other(spec)
    worse = filled[:, 1] - filled[:, 2]
    figures = f"difference {abs(claimed - other):.2f} ± {_standard_error(worse):.2f} on {len(worse)} tokens"
    if all(_is_clear(part) for part in parts):
        return Check(
            "alignment_on_data", False, other - claimed,
            f"Logits of {name} are taken to be aligned as {spec.logits_alignment!r}, but as {right!r} they fill the masks of "
            f"this data better, at {other:.2f} nats a token against {claimed:.2f} ({figures}); {_align_by(right)}.",
        )  # fmt: skip
    learnt = min(claimed, other) < unlearnt(filled[:, 0]) - _CLEAR_NATS
    seen = f"seen on this data, {figures}" if learnt else "not to be seen: it fills masks hardly better than by frequency"
    return Check("alignment_on_data", True, other - claimed, f"{spec.logits_alignment}, {seen}; lead over the other in nats")


def _is_clear(filled: Tensor) -> bool:
    """The other alignment is better, and good."""
    worse = filled[:, 1] - filled[:, 2]
    clear = worse.mean() > max(_CLEAR_NATS, _CLEAR_ERRORS * _standard_error(worse))
    return bool(clear and filled[:, 2].mean() < unlearnt(filled[:, 0]) - _CLEAR_NATS)


def _standard_error(values: Tensor) -> float:
    return (values.std() / len(values) ** 0.5).item()


def unlearnt(tokens: Tensor) -> float:
    """Cross-entropy of tokens in nats for whoever knows how often each of them occurs, and nothing else."""
    shares = tokens.unique(return_counts=True)[1] / len(tokens)
    return -(shares * shares.log()).sum().item()


def _other(spec: BackboneSpec) -> str:
    return ALIGNMENTS[1 - ALIGNMENTS.index(spec.logits_alignment)]


def _align_by(right: str) -> str:
    """How a person says which alignment is right."""
    return (
        f"attach it with `PrismConfig(logits_alignment={right!r})`, in a recipe `attach.logits_alignment: {right}`, or correct "
        f"the family with `register_backbone(BackboneSpec(..., logits_alignment={right!r}), replace=True)`"
    )
