"""Which rows go into a batch together, in a family that takes padding and in one that takes none."""

from collections.abc import Sequence

from prism_plugin.modeling import PrismModel


def batches_of(model: PrismModel, rows: Sequence[int], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Put rows into batches, in order; where the family takes no padding, those of one length together, however far apart.

    Args:
        model: Says whether its family takes padding.
        rows: Their numbers.
        lengths: Of all rows, tokens.
        batch_size: Rows in a batch at most.
    """
    batches: list[list[int]] = []
    filling: dict[int, list[int]] = {}
    for row in rows:
        key = 0 if takes_padding(model) else lengths[row]
        if len(filling.get(key, ())) in (0, batch_size):
            filling[key] = []
            batches.append(filling[key])
        filling[key].append(row)
    return batches


def takes_padding(model: PrismModel) -> bool:
    """Whether rows of several lengths may stand in a batch."""
    return model.spec.attention_mask != "none"
