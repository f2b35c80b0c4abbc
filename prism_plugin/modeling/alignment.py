"""Which position a model's logits are about, as real rows show it: masked tokens are filled at both rows that could be right.

The probes of `probing` see it only of a model that repeats patterns. A shift that nobody noticed costs everything: training and
sampling then read logits that are about another token.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from prism_plugin.backbones import device_of, dropout_off, input_embeddings_of, kept_random_state
from prism_plugin.core.lm_loss import cross_entropy
from prism_plugin.core.noise import uniforms
from prism_plugin.modeling.headed import HeadedBackbone

MOST_TOKENS = 512  # of a batch: enough for a clear answer, and few rows of logits
_PARTS = 4  # one is masked at a time: most neighbours stay, so that a model has something to go by
_SMALL = 1024  # positions of a batch of which every part is masked, each in a copy
_FEWEST_ROWS = 256  # of logits at one look, of a batch that is no larger than this: a step of training has as many in memory


@torch.no_grad()
def fill_both_ways(model: HeadedBackbone, batch: Mapping[str, Tensor]) -> Tensor:
    """Mask a quarter of a batch's tokens, by example id, and look, without dropout. The random state is left as it was.

    A look asks for no more rows of logits than a quarter of the batch, so that it needs no more memory than training will.

    Left out are the ends of rows, where there is only one row of logits, and tokens behind padding.

    Args:
        model: The model.
        batch: What `PrismCollator` makes. Of a small one four copies are looked at, in each of which another quarter is masked.

    Returns:
        float32 [tokens, 4], at most `MOST_TOKENS`: the token, its cross-entropy in nats at the row that is about it by the
        model's spec, that at the row that would be if the alignment were the other one, and 1 where the tokens before and
        after it are others, else 0.
    """
    noise = _PARTS * uniforms(0, 0, batch["example_id"], "alignment", batch["input_ids"].shape[1])
    parts = range(_PARTS if noise.numel() <= _SMALL else 1)
    masked = torch.cat([batch["maskable"] & (noise.floor() == part) for part in parts])
    ids, present = (batch[name].repeat(len(parts), 1) for name in ("input_ids", "attention_mask"))
    compared = torch.zeros_like(masked)
    compared[:, 1:-1] = masked[:, 1:-1] & present[:, :-2].bool()
    at = compared.flatten().nonzero().squeeze(-1)
    at = at[(noise % 1).repeat(len(parts), 1).flatten()[at].argsort()[:MOST_TOKENS]]
    step = -1 if model.spec.logits_alignment == "same_position" else 1
    flat, noised = ids.flatten(), ids.masked_fill(masked, model.mask_token_id)
    found = [torch.zeros(2, 0, device=flat.device)]
    device = device_of(input_embeddings_of(model.plain_backbone, model.spec))
    with dropout_off(model), kept_random_state(device):
        for some in at.split(max(_FEWEST_ROWS, noise.numel() // _PARTS) // 2):
            rows = model(noised, present, logits_at=torch.cat((some, some + step)), with_quality=False).logits
            found.append(cross_entropy(rows, flat[some].repeat(2)).view(2, -1))
    tokens, differs = flat[at], (flat[at] != flat[at - 1]) & (flat[at] != flat[at + 1])
    claimed, at_other = torch.cat(found, dim=-1)
    return torch.stack((tokens.float(), claimed, at_other, differs.float()), dim=-1)
