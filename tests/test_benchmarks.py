"""What the benchmarks compare does the same work: the field's way gives our tokens and our loss."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from reference import sampler as reference

from benchmarks import cache, contest, field, gpu, report, sampling, shapes, training
from prism_plugin.modeling import headed
from prism_plugin.sampling import RemaskingSampler

CPU = contest.Machine()
SMALL = shapes.Shape(
    "small", "llama", vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    batch=3, prompt_length=4, max_new_tokens=12, block_length=4, num_steps=12, training_length=20,
)  # fmt: skip

PLACES = {"floor": 1.0, "ours": 1.2, "reference": 5.0}
LONGER = replace(SMALL, max_new_tokens=24, num_steps=24)


@pytest.fixture(autouse=True)
def _sensitive(monkeypatch):
    """A random model of the benchmarks says the same everywhere; scaled up, it listens to its input."""
    build = shapes.build_backbone

    def louder(*args):
        backbone = build(*args)
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.mul_(10 if parameter.ndim == 2 else 1)
        return backbone

    monkeypatch.setattr(shapes, "build_backbone", louder)


@pytest.mark.parametrize("block_length", [4, None])
def test_the_fields_sampler_gives_our_tokens_and_those_of_the_literal_walk(block_length):
    shape = replace(SMALL, block_length=block_length)
    ours = sampling.prepare_ours(shape, CPU)()
    fields = sampling.prepare_reference(shape, CPU)()
    assert torch.equal(fields, ours.sequences)
    assert ours.num_remasked.min() >= 4
    assert ours.num_forward_passes.tolist() == [shape.num_steps] * shape.batch
    model = shapes.build_model(shape, CPU)
    for row, prompt in enumerate(shapes.request(shape, CPU, model.mask_token_id)[:, : shape.prompt_length].tolist()):
        settings = {"max_new_tokens": 12, "num_steps": shape.num_steps, "block_length": block_length}
        assert reference.sample(model, prompt, num_remask=sampling.NUM_REMASK, **settings)[0] == fields[row].tolist()


def test_the_fields_training_step_gives_our_loss():
    model = shapes.build_model(SMALL, CPU, lora=True)
    clean_ids, noised_ids = shapes.training_tokens(SMALL, CPU), training.noised_tokens(SMALL, CPU, model.mask_token_id)
    theirs = field.training_loss(
        model.backbone, model.quality_head, clean_ids, noised_ids,
        mask_token_id=model.mask_token_id, t=training.T, num_drafted=training.NUM_DRAFTED,
        diffusion_weight=training.OBJECTIVE.weights["diffusion_weight"],
    )  # fmt: skip
    batch = training.collated(clean_ids, training.example_ids(SMALL, CPU))
    losses = training.OBJECTIVE.step(model, batch, epoch=0, seed=0, unwrapped=model)
    assert losses.terms["quality"].labels.labelled.sum() == SMALL.batch * training.NUM_DRAFTED
    assert losses.loss.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_floor_reads_the_rows_that_ours_reads():
    model = shapes.build_model(SMALL, CPU)
    counts = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: counts.append(out.numel() // 64))
    tokens = shapes.request(SMALL, CPU, model.mask_token_id)
    RemaskingSampler(model, num_steps=SMALL.num_steps, block_length=SMALL.block_length).infill(tokens)
    assert counts == sampling.rows_needed(SMALL)


@pytest.mark.parametrize("name", training.METHODS)
def test_the_floor_of_an_objective_has_its_looks_and_its_rows(name, monkeypatch):
    work, looks = training.METHODS[name], []
    build = training.build_model

    def listening(*args, **kwargs):
        model = build(*args, **kwargs)
        head = model.get_output_embeddings()
        head.register_forward_hook(lambda module, args, out: looks.append((out.requires_grad, out.numel() // SMALL.vocab_size)))
        return model

    monkeypatch.setattr(training, "build_model", listening)
    work.prepare(name, SMALL, CPU)()
    counts = training.row_counts(SMALL, CPU, SMALL.mask_token_id)
    assert looks == [(learns, counts[drafted] + counts[learnt]) for learns, drafted, learnt in work.looks]


@pytest.mark.parametrize("benchmark", [sampling, training])
def test_every_contestant_works_in_sixteen_bits(benchmark):
    for prepare in benchmark.CONTESTANTS.values():
        prepare(SMALL, replace(CPU, dtype="bfloat16"))()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_contestants_run_in_processes_of_their_own():
    results = contest.compete({"body": sampling.prepare_body}, [SMALL, LONGER], CPU, rounds=2)
    assert len(results) == 2
    for result in (one["body"] for one in results):
        assert len(result.seconds) == len(result.cpu_seconds) == 2
        assert result.peak >= result.before > 0
    with pytest.raises(RuntimeError, match="the contestant 'broken' failed"):
        contest.compete({"broken": _broken}, [SMALL], CPU, rounds=1)


def _broken(shape, machine):
    raise ValueError("on purpose")


@pytest.mark.parametrize("benchmark", [sampling, training])
@pytest.mark.parametrize(
    "options", [[], ["--sweep", "batch", "vocabulary"], ["--json"], ["--sweep", "batch", "--json"]], ids=str
)
def test_the_command_line(benchmark, options, monkeypatch, capsys):
    asked = []

    def measured(contestants, cases, machine, rounds):
        asked.extend(cases)
        one = {name: contest.Result(name, (2.0,) * rounds, (1.0,) * rounds, before=1e6, peak=3e6) for name in contestants}
        return [one] * len(cases)

    monkeypatch.setattr(report, "compete", measured)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--rounds", "3", *options])
    benchmark.main()
    printed = capsys.readouterr().out
    if "--json" in options:
        found = json.loads(printed)
        results = found["batch"]["4"] if "--sweep" in options else found["results"]
        assert results["ours"]["median"] == 2.0
        assert results["ours"]["above"] == 2e6
    elif options:
        assert [(shape.batch, shape.vocab_size) for shape in asked][2:5] == [(4, 32_768), (8, 32_768), (2, 8_192)]
        assert len([line for line in printed.splitlines() if "1.00 x" in line]) == 7
    else:
        assert {line.split("|")[1].strip() for line in printed.splitlines() if "1.00 x" in line} == set(benchmark.CONTESTANTS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rounds", "0"], "`--rounds` and `--threads` must be at least 1, got 0 and 1"),
        (["--dtype", "float"], None),
        (["--dtype", "floaty"], "`--dtype` must be a dtype of torch such as float32, got 'floaty'"),
        (["--picture", "x.png"], "`--picture` draws a sweep; add `--sweep`"),
        (["--sweep", "--picture", "x.gif"], r"must end in \.png or \.svg, found 'x\.gif'"),
    ],
)
def test_bad_options_are_one_sentence(options, words, monkeypatch):
    monkeypatch.setattr(report, "compete", lambda contestants, cases, machine, rounds: sys.exit("asked to run"))
    monkeypatch.setattr(sys, "argv", ["benchmark", *options])
    with pytest.raises(SystemExit, match=words or "asked to run"):
        sampling.main()


def test_a_sweep_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    results = {name: contest.Result(name, (seconds,), (seconds,), 0, 0) for name, seconds in PLACES.items()}
    report.draw({"batch": {1: results, 2: results}, "length": {64: results}}, tmp_path / "sweep.svg", "median")
    drawn = (tmp_path / "sweep.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {word} -->" in drawn for word in ("batch", "length", "seconds", *PLACES))


CACHED = replace(SMALL, max_new_tokens=16, num_steps=8)  # two looks at each of four blocks, of which two are filled


def test_with_a_cache_all_fill_the_same_blocks(monkeypatch):
    plain, reference_tokens = cache.prepare_ours(CACHED, CPU)(), cache.prepare_reference(CACHED, CPU)()
    cached = cache.prepare_cached(CACHED, CPU)()
    assert torch.equal(plain, reference_tokens)
    filled = cached[:, : CACHED.prompt_length + 2 * CACHED.block_length]
    assert not (filled == CACHED.mask_token_id).any()
    assert (cached[:, filled.shape[1] :] == CACHED.mask_token_id).all()


@pytest.mark.parametrize(("floor", "ours"), [("prepare_floor", "prepare_ours"), ("prepare_cached_floor", "prepare_cached")])
def test_the_floors_compute_the_positions_and_rows_of_ours(floor, ours, monkeypatch):
    computed, build = [], cache.build_model

    def listening(*args):
        model = build(*args)
        model.get_input_embeddings().register_forward_hook(lambda module, args, out: computed.append(tuple(out.shape[:2])))
        return model

    monkeypatch.setattr(cache, "build_model", listening)
    of_ours = getattr(cache, ours)(CACHED, CPU)
    del computed[:]  # the trial when a sampler is made
    of_ours()
    looks = computed.copy()
    del computed[:]
    getattr(cache, floor)(CACHED, CPU)()
    assert computed == looks
    assert len(looks) == 4


def test_the_cache_benchmark_prints_its_ratios(monkeypatch, capsys):
    def measured(contestants, cases, machine, rounds):
        seconds = {"floor": 8.0, "ours": 9.0, "reference": 30.0, "cached floor": 2.0, "cached": 3.0, "compiled": 2.5}
        assert [case.num_steps for case in cases] == [8 * 30, 16 * 30]
        return [{name: contest.Result(name, (one,), (one,), 0, 0) for name, one in seconds.items()}] * len(cases)

    monkeypatch.setattr(cache, "compete", measured)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--looks", "8", "16"])
    cache.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if "4.00 x" in line]
    assert len(rows) == 2
    assert all(figure in row for row in rows for figure in ("3.00 x", "0.75", "1.12 x", "1.50 x", "1.25 x"))
    for options in (["--looks", "0"], ["--rounds", "0"], ["--checkouts", "/nowhere"]):
        monkeypatch.setattr(sys, "argv", ["benchmark", *options])
        with pytest.raises(SystemExit, match="must be"):
            cache.main()


def test_the_gpu_benchmark_runs_small(monkeypatch, capsys):
    """All of its parts, in this process, on the CPU."""

    def here(contestants, cases, machine, rounds):
        for prepare in contestants.values():
            prepare(cases[0], machine)()
        return [{name: contest.Result(name, (2.0,) * rounds, (1.0,) * rounds, 0, 3e9) for name in contestants}]

    monkeypatch.setattr(gpu, "compete", here)
    monkeypatch.setattr(headed, "_compiled", lambda mode: headed._call_backbone)  # compiling has tests of its own
    monkeypatch.setitem(gpu.SHAPES, "llada", replace(SMALL, block_length=32))
    monkeypatch.setattr(sys, "argv", ["benchmark", "--device", "cpu", "--shape", "llada", "--dtype", "float32", "--json"])
    gpu.main()
    found = json.loads(capsys.readouterr().out)
    assert set(found["sampling"]) == set(gpu.SAMPLING)
    assert set(found["training"]) == set(gpu.TRAINING)
    shape, layers = replace(SMALL, prompt_length=448, max_new_tokens=64), SMALL.num_hidden_layers
    kept = 2 * layers * 4 * shape.length * SMALL.hidden_size * 4  # keys and values of 4 rows, float32
    assert found["estimates"]["ours, cached"] - found["estimates"]["ours"] == kept
    assert found["looks"]["ours"]["operators"] > 100
    assert 1 <= found["looks"]["ours"]["waits"] < found["looks"]["ours, cached"]["waits"] + 1
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], "--minutes", "1e-9"])
    gpu.main()
    assert capsys.readouterr().out.count("no time left") >= len(gpu.SAMPLING) - 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--minutes", "0"], "must be above 0, found 0.0"),
        (["--device", "cuda"], "give `--device cpu --shape llada`"),
        (["--device", "cpu", "--checkouts", "/nowhere"], r"holds LLaDA/generate.py, found none in /nowhere"),
    ],
)
def test_the_gpu_benchmark_says_what_it_lacks(options, words, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmark", *options])
    with pytest.raises(SystemExit, match=words):
        gpu.main()
