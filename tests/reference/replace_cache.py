"""Sampling with a dual cache, one row at a time, on transformers' own cache: slow, and by other means than the product's."""

import torch

from benchmarks.field import ReplaceCache


@torch.no_grad()
def sample(backbone, head, tokens, mask_token_id, *, num_steps, block_length, prefix, every, num_remask):
    """Fill the masks behind a prompt, block after block, the surest first; from the second look on take back the worst.

    Args:
        backbone: A transformers decoder with `is_causal=False`.
        head: Quality of final hidden states.
        tokens: A prompt and masks, [length].
        mask_token_id: Id of the mask.
        num_steps: Looks at each block.
        block_length: Divides the number of masks.
        prefix: What comes after the block is computed too.
        every: Looks from one whole look to the next; None: one for each block.
        num_remask: Tokens that are taken back at most.

    Returns:
        The tokens, and how many positions were computed.
    """
    tokens, computed = tokens.clone(), 0
    cache = ReplaceCache(backbone.config.num_hidden_layers)
    first = int((tokens == mask_token_id).nonzero()[0])
    for start in range(first, len(tokens), block_length):
        block = list(range(start, start + block_length))
        window = list(range(start, len(tokens))) if prefix else block
        for step in range(num_steps):
            whole = step == 0 or (every is not None and step % every == 0)
            columns = list(range(len(tokens))) if whole else window
            past = cache.at(None if whole else torch.tensor(columns))
            options = {"use_cache": True, "output_hidden_states": True, "past_key_values": past}
            output = backbone(input_ids=tokens[None, columns], position_ids=torch.tensor([columns]), **options)
            computed += len(columns)
            logits, hidden = output.logits[0].float(), output.hidden_states[-1]
            quality = head(hidden)[0].float()
            of = {column: place for place, column in enumerate(columns)}
            masked = [column for column in block if tokens[column] == mask_token_id]
            revealed = [column for column in block if column not in masked]
            goal = -(-(step + 1) * block_length // num_steps)
            back = min(num_remask, len(revealed), block_length - goal)
            worst = sorted(revealed, key=lambda column: float(quality[of[column]]))[:back]
            best = {}
            for column in masked:
                row = logits[of[column]].clone()
                row[mask_token_id] = -torch.inf
                best[column] = row.softmax(-1).max(-1)
            count = min(max(goal - len(revealed) + back, 0), len(masked))
            for column in sorted(masked, key=lambda column: -float(best[column].values))[:count]:
                tokens[column] = best[column].indices
            tokens[worst] = mask_token_id
    return tokens, computed
