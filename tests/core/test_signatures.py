"""The shapes in signatures are checked while these tests run: else a wrong one would be a comment."""

import jaxtyping
import pytest
import torch

from prism_plugin.core import Labels, draw_times, mask_tokens, quality_loss


def test_a_wrong_shape_or_type_is_found():
    clean_ids, t = torch.zeros(2, 3, dtype=torch.long), torch.ones(2)
    settings = {"mask_token_id": 9, "t": t, "noise": torch.zeros(2, 3)}
    mask_tokens(clean_ids, clean_ids == 0, **settings)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"parameters of prism_plugin\S+mask_tokens(?s:.*)maskable"):
        mask_tokens(clean_ids, torch.ones(2, 4, dtype=torch.bool), **settings)
    with pytest.raises(jaxtyping.TypeCheckError, match="t_max"):
        draw_times(t, 0.1, "1")


def test_the_fields_of_a_value_belong_together():
    with pytest.raises(jaxtyping.TypeCheckError, match="labelled"):
        quality_loss(torch.zeros(2, 3), Labels(torch.zeros(2, 3), torch.ones(2, 4, dtype=torch.bool)))
