"""Label rules: which positions of a draft are judged, and with which target."""

from dataclasses import dataclass

from prism_plugin.types import TokenIds, TokenMask


@dataclass(frozen=True)
class QualityLabels:
    """What the quality head should say: `targets` is "the token is right", at the `labelled` positions; False elsewhere."""

    targets: TokenMask
    labelled: TokenMask


def drafted_labels(draft_ids: TokenIds, clean_ids: TokenIds, drafted: TokenMask) -> QualityLabels:
    """Label the drafted positions alone: PRISM's rule (arXiv 2510.01384), and Token-Critic's when all masks were filled.

    The minimiser of the cross-entropy is then p(clean = token | the rest of the draft) for one drafted position per row.

    Args:
        draft_ids: Tokens that the head sees.
        clean_ids: Tokens of the data.
        drafted: Positions that were filled in the draft.
    """
    return QualityLabels(targets=(draft_ids == clean_ids) & drafted, labelled=drafted)


def visible_labels(draft_ids: TokenIds, clean_ids: TokenIds, maskable: TokenMask, masked_in_draft: TokenMask) -> QualityLabels:
    """Label every visible token that could have been corrupted, the untouched data among them.

    The head then learns how often a visible token is right under this corruption, which is a higher number than "right,
    given that the model wrote it": thresholds do not carry over from `drafted_labels`.

    Args:
        draft_ids: Tokens that the head sees.
        clean_ids: Tokens of the data.
        maskable: Positions that may be corrupted; prompt and padding are not.
        masked_in_draft: Positions that still hold the mask token in the draft.
    """
    labelled = maskable & ~masked_in_draft
    return QualityLabels(targets=(draft_ids == clean_ids) & labelled, labelled=labelled)
