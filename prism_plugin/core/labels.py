"""Label rules: which positions of a draft are judged, and with which target."""

from dataclasses import dataclass

import torch

from prism_plugin.core.history import History
from prism_plugin.types import PerToken, TokenIds, TokenMask


@dataclass(frozen=True)
class Labels:
    """What the quality head should say at the `labelled` positions.

    `targets` is the probability that the token is right, in [0, 1] (0 or 1 where that is known), and 0 where nothing is
    labelled.
    """

    targets: PerToken
    labelled: TokenMask


def drafted_labels(draft_ids: TokenIds, clean_ids: TokenIds, drafted: TokenMask) -> Labels:
    """Label the drafted positions alone: PRISM's rule (arXiv 2510.01384), and Token-Critic's when all masks were filled.

    The minimiser of the cross-entropy is then p(clean = token | the rest of the draft) for one drafted position per row.

    Args:
        draft_ids: Tokens that the head sees.
        clean_ids: Tokens of the data.
        drafted: Positions that were filled in the draft.
    """
    return Labels(targets=((draft_ids == clean_ids) & drafted).float(), labelled=drafted)


def visible_labels(draft_ids: TokenIds, clean_ids: TokenIds, maskable: TokenMask, masked_in_draft: TokenMask) -> Labels:
    """Label every visible token that could have been corrupted, the untouched data among them.

    The head then learns how often a visible token is right under this corruption, which is a higher number than "right,
    given that the model wrote it": thresholds do not carry over from `drafted_labels`.

    Args:
        draft_ids: Tokens that the head sees.
        clean_ids: Tokens of the data.
        maskable: Positions that may be corrupted; prompt and padding are not.
        masked_in_draft: Positions that still hold the mask token in the draft.
    """
    return drafted_labels(draft_ids, clean_ids, maskable & ~masked_in_draft)


def of_written_labels(labels: Labels, history: History) -> Labels:
    """Leave out given tokens in rows whose history the head sees: that they were given would tell that they are right.

    Args:
        labels: Those of visible tokens.
        history: What the head sees of it.
    """
    shown = torch.ones_like(labels.labelled) if history.known is None else history.known.unsqueeze(-1)
    labelled = labels.labelled & (history.written | ~shown)
    return Labels(targets=labels.targets * labelled, labelled=labelled)


def with_soft_labels(labels: Labels, masked: TokenMask, probability: PerToken) -> Labels:
    """Label masks as well, by the probability that the token which will be written there is right (RemeDi, arXiv 2509.23653).

    Args:
        labels: Those of visible tokens.
        masked: Masked positions that may be corrupted.
        probability: What the model gives to the data's token at each of them, in [0, 1].
    """
    return Labels(targets=torch.where(masked, probability, labels.targets), labelled=labels.labelled | masked)
