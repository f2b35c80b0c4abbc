"""Recorded drafts of a distribution that can be enumerated, for tests of what is learnt from them."""

import itertools


def recorded_rows(table):
    """Each row under each set of masks, with each letter in one of their places; the rest of the row is given."""
    mask, length = table.num_letters, table.length
    sets = [masked for size in range(1, length + 1) for masked in itertools.combinations(range(length), size)]
    rows = []
    for row in table.prepared_rows():
        for masked in sets:
            noised = [mask if place in masked else letter for place, letter in enumerate(row["input_ids"])]
            maskable = [place in masked for place in range(length)]
            for place, letter in itertools.product(masked, range(mask)):
                draft_ids = [*noised[:place], letter, *noised[place + 1 :]]
                rows.append({**row, "maskable": maskable, "draft_ids": draft_ids})
    return rows
