"""Several runs of a row, as the page and the terminal are given them: against the records and what the sampler says."""

from dataclasses import replace

import pytest
import torch
from browser import CHROMIUM, browser
from small_traces import ATTENTION_MASK, IDS, MASK, sample_two, sampler_of

from prism_plugin.errors import ConfigurationError
from prism_plugin.report import trace_generation, trace_runs, write_trace_page
from prism_plugin.report.terminal import TerminalCanvas
from prism_plugin.sampling import BestOfN, PartialRefinement, ParticleGibbs, SelfRewardingSMC

TRAJECTORIES = {
    "best_of": BestOfN(3),
    "smc": SelfRewardingSMC(4, every=1, resample_below=1.0),
    "smc, blocks": SelfRewardingSMC(3, resample_below=1.0),
    "gibbs": ParticleGibbs(3, every=2, num_sweeps=2, beta=0.01),
    "refinement": PartialRefinement(num_rounds=3, share=0.5, choose="random"),
}


MARKS = str.maketrans("", "", "[]?~{}")  # of a terminal without styles


def settings_of(kind):
    return {"trajectory": TRAJECTORIES[kind], **({"block_length": 2} if "blocks" in kind else {})}


def canvas_after(generation, looks):
    """Pieces that stand after so many looks, -1 for masks, by what the page is given alone."""
    pieces = [-1 if at in generation.editable else piece for at, piece in enumerate(generation.start)]
    for look in generation.looks[:looks]:
        for at, piece in look.copied:
            pieces[at] = piece
        for at, piece, *_ in look.filled + look.overwritten + look.padded:
            pieces[at] = piece
        for at in look.taken_back:
            pieces[at] = -1
    return pieces


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("kind", TRAJECTORIES)
def test_each_run_is_replayed_to_what_it_came_to(model, kind, row):
    sampler, output = sampler_of(model, **settings_of(kind)), sample_two(model, **settings_of(kind))
    generations = trace_runs(output, row, sampler, attention_mask=ATTENTION_MASK)
    number, own = len(generations), ATTENTION_MASK[row].bool()
    for run, generation in enumerate(generations):
        records = [record for record in output.trace if record.looked[row * number : (row + 1) * number].any()]
        for looks, record in enumerate(records, start=1):
            after = record.tokens_after[row * number + run][own].tolist()
            expected = [-1 if token == MASK else model.tokenizer.decode([token]) for token in after]
            shown = [piece if piece < 0 else generation.pieces[piece] for piece in canvas_after(generation, looks)]
            assert shown == expected, (run, looks)
        end = output.sequences[row] if number == 1 else output.particles.sequences[row, run]
        assert generation.final_text() == model.tokenizer.decode(end[own])
        looked = sum(int(record.looked[row * number + run]) for record in records)
        assert generation.figures()["num_looks"] == looked
    if number > 1:
        kept = int(output.particles.kept[row])
        assert [one.run.kept for one in generations] == [run == kept for run in range(number)]
        assert trace_generation(output, row, sampler, attention_mask=ATTENTION_MASK) == generations[kept]
        assert {one.run.num_forward_passes for one in generations} == {int(output.num_forward_passes[row])}


def test_weights_and_ancestors_are_those_of_the_sampler(model):
    settings = settings_of("smc")
    sampler, output = sampler_of(model, **settings), sample_two(model, **settings)
    generations = trace_runs(output, 0, sampler)
    shares = torch.tensor([[share for _, share, _ in one.run.weighings] for one in generations])
    torch.testing.assert_close(shares.sum(0), torch.ones(shares.shape[1]))
    ancestors = torch.tensor([[ancestor for *_, ancestor in one.run.weighings] for one in generations])
    own = [one for one in output.particles.weighings if one.among[0]]
    assert torch.equal(ancestors, torch.stack([one.ancestors[0] for one in own], dim=1))
    assert (ancestors != torch.arange(4).unsqueeze(-1)).any(), "nobody was copied, so little was seen"
    # who was copied holds, before the next look, what its ancestor held
    for moment, (look, *_) in enumerate(generations[0].run.weighings):
        for run, generation in enumerate(generations):
            copied = generation.looks[look].copied if look < len(generation.looks) else []
            before = canvas_after(generation, look)
            for at, piece in copied:
                before[at] = piece
            ancestor = generations[int(ancestors[run, moment])]
            texts = [piece if piece < 0 else generation.pieces[piece] for piece in before]
            assert texts == [piece if piece < 0 else ancestor.pieces[piece] for piece in canvas_after(ancestor, look)]


def test_a_run_that_is_not_there_is_refused(model):
    settings = settings_of("best_of")
    sampler, output = sampler_of(model, **settings), sample_two(model, **settings)
    with pytest.raises(ConfigurationError, match="`run` must be one of the 3 runs of a row, counted from 0, found 3"):
        trace_generation(output, 0, sampler, run=3)
    with pytest.raises(ConfigurationError, match="pass the sampler that gave it"):
        trace_generation(replace(output, particles=None), 0, sampler)


def test_a_terminal_shows_a_line_for_each_run(model):
    settings = settings_of("best_of")
    count = TRAJECTORIES["best_of"].num_particles
    canvas = TerminalCanvas(
        IDS.repeat_interleave(count, 0), ATTENTION_MASK.repeat_interleave(count, 0), columns=[None] * 6,
        titles=[f"run {run}" for run in range(6)], tokenizer=model.tokenizer, mask_token_id=MASK, num_steps=None,
        doubt_below=0.5,
    )  # fmt: skip
    output = sample_two(model, **settings)
    for record in output.trace:
        assert canvas.update(record) == record.looked.nonzero().squeeze(-1).tolist()
    for place in range(6):
        row, run = divmod(place, count)
        text = model.tokenizer.decode(output.particles.sequences[row, run][ATTENTION_MASK[row].bool()])
        line = canvas.plain(place)
        assert line.startswith(f"run {place}, look ")
        assert " of at most " not in line
        assert line.split(" | ")[1].translate(MARKS) == text.translate(MARKS)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: `apt-get install chromium`, or any that is named chromium")
def test_the_page_shows_runs_side_by_side_and_goes_from_one_to_the_other(model, tmp_path, tmp_path_factory):
    settings = settings_of("smc")
    sampler, output = sampler_of(model, **settings), sample_two(model, **settings)
    generations = [one for row in (0, 1) for one in trace_runs(output, row, sampler, attention_mask=ATTENTION_MASK)]
    write_trace_page(tmp_path / "runs.html", generations)
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        tab.open((tmp_path / "runs.html").as_uri())
        kept = int(output.particles.kept[0])
        pressed = tab.run("[...document.querySelectorAll('.run')].map((one) => one.getAttribute('aria-pressed'))")
        assert pressed.index("true") == kept
        assert tab.text("#cards").count("\u2714") == 1
        for look in (0, 1, 3, 5):
            tab.open((tmp_path / "runs.html").as_uri() + f"#generation=6&look={look}")
            assert tab.run("document.querySelectorAll('.run').length") == 4
            for run in range(4):
                generation = generations[4 + run]
                tokens = f"[...document.querySelectorAll('.run')[{run}].querySelectorAll('.token')]"
                states = tab.run(f"{tokens}.map((token) => token.dataset.state)")
                expected = canvas_after(generation, look)
                taken = generation.looks[look - 1].taken_back if look else []
                for at, (state, piece) in enumerate(zip(states, expected, strict=True)):
                    assert (state in ("masked", "taken")) == (piece < 0)
                    assert (state == "taken") == (at in taken)
                weighed = [one for one in generation.run.weighings if one[0] <= look]
                said = tab.run(f"document.querySelectorAll('.run')[{run}].querySelector('.weight').innerText")
                assert said == "not weighed yet" if not weighed else f"after look {weighed[-1][0]}" in said
        tab.run("document.querySelectorAll('.run')[3].click()")
        assert tab.run("location.hash") == "#generation=8&look=5"
        assert tab.problems == []
