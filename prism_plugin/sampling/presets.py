"""Samplers by name, each a value: rules with their numbers, what people may change in them, and where the numbers come from."""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from prism_plugin.core.detectors import (
    BacktrackRemasking,
    BelowRemasking,
    FallenRemasking,
    LowestRemasking,
    ReplacedRemasking,
)
from prism_plugin.core.editing import CorrectedEditing, SwapEditing, ThresholdEditing
from prism_plugin.core.joint import P2Decider, RemediDecider, WinoDecider
from prism_plugin.core.remasking import (
    QualityRemasking,
    QualityThresholdRemasking,
    RedraftRemasking,
    RemdmConfRemasking,
)
from prism_plugin.core.remdm import RemdmCapRemasking, RemdmRescaleRemasking
from prism_plugin.core.schedules import (
    CapsSchedule,
    EvenSchedule,
    LoopSchedule,
    OwnPaceSchedule,
    PlateauSchedule,
    RedraftSchedule,
    RefineSchedule,
    RollbackSchedule,
)
from prism_plugin.core.unmasking import (
    FactorUnmasking,
    KlassUnmasking,
    RandomUnmasking,
    RedraftUnmasking,
    ThresholdUnmasking,
)
from prism_plugin.decoding.corrected import CorrectedLook
from prism_plugin.decoding.shadow import ShadowLook
from prism_plugin.errors import ConfigurationError, UnknownKeyError, UnknownNameError, did_you_mean
from prism_plugin.sampling.preset import COMMON, PARTS, SAFETY, Change, Preset, look_of, policy_of, takes, trajectory_of
from prism_plugin.sampling.trajectories import BestOfN, PartialRefinement, ParticleGibbs, SelfRewardingSMC

# More than any canvas holds: the schedule's own limit, what the rest of the steps can refill, is then the only one.
_UNLIMITED = 2**31 - 1

# Settings of an even schedule that remasks; `draft_share` makes it a LoopSchedule.
_REMASKING = {
    "num_remask": Change("schedule", "num_remask"),
    "remask_from": Change("schedule", "remask_from"),
    "remask_until": Change("schedule", "remask_until"),
    "draft_share": Change("schedule", "draft_share", LoopSchedule),
}
_THRESHOLD = Change("unmasking", "threshold")
_DOUBT = Change("remasking", "threshold", QualityThresholdRemasking)
_REDRAFT = {"threshold": _THRESHOLD, "paces": Change("unmasking", "paces"), "min_steps": Change("schedule", "min_steps")}

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "random": Preset(
            "Ancestral sampling of a masked diffusion model (MDLM, arXiv 2406.07524), where PRISM's experiments start.",
            RandomUnmasking(),
            temperature=1.0,
        ),
        "remdm-conf": Preset(
            "ReMDM-conf, arXiv 2503.00307 section 4.1, which has neither a scale nor a cap per step.",
            RandomUnmasking(),
            RemdmConfRemasking(),
            EvenSchedule(_UNLIMITED),
            temperature=1.0,
            takes=takes(**_REMASKING, scale=Change("remasking", "scale")),
        ),
        "prism": Preset(
            "PRISM, arXiv 2510.01384; 4 remasks a step, the number of the authors' Sudoku sampling. Theirs takes back all 4 or "
            "none, and none while no more than 4 tokens are written or left to write; this takes back what there is and what "
            "the rest of the steps can refill: 184 in 51 steps for 51 tokens, theirs 168.",
            RandomUnmasking(),
            QualityRemasking(),
            EvenSchedule(4),
            temperature=1.0,
            takes=takes(**_REMASKING, quality_threshold=_DOUBT),
        ),
        "confidence": Preset('LLaDA\'s "low_confidence" order with argmax tokens, arXiv 2502.09992.'),
        "threshold": Preset(
            "Fast-dLLM, arXiv 2505.22618; its threshold.", ThresholdUnmasking(0.9), takes=takes(threshold=_THRESHOLD)
        ),
        "prism-confidence": Preset(
            "PRISM's rule on top of `confidence`; the number of remasks is ours.",
            remasking=QualityRemasking(),
            schedule=EvenSchedule(1),
            takes=takes(**_REMASKING, quality_threshold=_DOUBT),
        ),
        "prism-threshold": Preset(
            "PRISM's rule on top of `threshold`: looks that confident filling saves go to correction.",
            ThresholdUnmasking(0.9),
            QualityRemasking(),
            EvenSchedule(1),
            takes=takes(**_REMASKING, quality_threshold=_DOUBT, threshold=_THRESHOLD),
        ),
        "prism-refine": Preset(
            "`confidence`, then iterative partial refinement (arXiv 2605.19317) of what the head doubts; numbers ours.",
            remasking=QualityThresholdRemasking(0.9),
            schedule=RefineSchedule(num_remask=32, num_rounds=2),
            takes=takes(
                num_rounds=Change("schedule", "num_rounds"),
                num_remask=Change("schedule", "num_remask"),
                quality_threshold=Change("remasking", "threshold"),
            ),
        ),
        "redraft": Preset(
            "Ours: a draft by `threshold`, and another from nothing, at another pace, as long as the model doubts it.",
            RedraftUnmasking(0.9),
            RedraftRemasking(0.5, score="visible_confidence"),
            RedraftSchedule(),
            takes=takes(**_REDRAFT, visible_threshold=Change("remasking", "threshold")),
        ),
        "prism-redraft": Preset(
            "Ours: `redraft`, where the quality head doubts in place of the language model.",
            RedraftUnmasking(0.9),
            RedraftRemasking(0.9),
            RedraftSchedule(),
            takes=takes(**_REDRAFT, quality_threshold=Change("remasking", "threshold")),
        ),
        "remdm-cap": Preset(
            "ReMDM-cap, arXiv 2503.00307 section 4.1; eta of its script for 1,024 steps. With fewer steps it wants more, such "
            "as 0.04. What is filled follows the even line, where theirs draws the number, too.",
            RandomUnmasking(),
            RemdmCapRemasking(0.008),
            EvenSchedule(_UNLIMITED),
            temperature=1.0,
            takes=takes(**_REMASKING, eta=Change("remasking", "eta")),
        ),
        "remdm-rescale": Preset(
            "ReMDM-rescale, arXiv 2503.00307 section 4.1; eta of its script for 1,024 steps. Otherwise as `remdm-cap`.",
            RandomUnmasking(),
            RemdmRescaleRemasking(0.015),
            EvenSchedule(_UNLIMITED),
            temperature=1.0,
            takes=takes(**_REMASKING, eta=Change("remasking", "eta")),
        ),
        "remdm-loop": Preset(
            "ReMDM-loop, arXiv 2503.00307 section 4.2; its script's t_on 0.55, t_off 0.05, alpha_on 0.9 and eta.",
            RandomUnmasking(),
            RemdmCapRemasking(0.02),
            PlateauSchedule(_UNLIMITED),
            temperature=1.0,
            takes=takes(
                eta=Change("remasking", "eta"),
                **{name: Change("schedule", name) for name in ("num_remask", "begin", "end", "level")},
            ),
        ),
        "t2m": Preset(
            "Targeted remasking (T2M, arXiv 2604.18738): LowProb with its main result's threshold, once per position and a "
            "quarter of the block at most; `replaced_threshold` and `fall` make it T2T-Remask or LogitDiff.",
            ThresholdUnmasking(0.7),
            BelowRemasking(0.3, "visible_confidence"),
            OwnPaceSchedule(_UNLIMITED),
            takes=takes(
                threshold=_THRESHOLD,
                visible_threshold=Change("remasking", "threshold"),
                quality_threshold=Change("remasking", "quality_below"),
                replaced_threshold=Change("remasking", "threshold", ReplacedRemasking),
                fall=Change("remasking", "threshold", FallenRemasking),
                num_remask=Change("schedule", "num_remask"),
            ),
            safety=MappingProxyType({"max_remasks_per_position": 1, "max_change_share": 0.25}),
        ),
        "t2t": Preset(
            "Token-to-token editing of LLaDA2.1 (technical report; thresholds of its quality mode, from arXiv 2604.18738); its "
            "speed mode is 0.5 and 0.0. `blocks: begun` is its multi-block editing.",
            ThresholdUnmasking(0.7),
            schedule=OwnPaceSchedule(),
            takes=takes(
                threshold=_THRESHOLD,
                edit_threshold=Change("editing", "threshold"),
                blocks=Change("editing", "blocks"),
                quality_threshold=Change("editing", "quality_below"),
            ),
            editing=ThresholdEditing(0.5),
        ),
        "history-mean": Preset(
            "FreeCorrection, arXiv 2602.02927; its caps of 16, 8 and 4 are for 4,096 positions. `score: mean_quality` averages "
            "what the head says instead.",
            remasking=LowestRemasking("mean_confidence"),
            schedule=CapsSchedule(),
            takes=takes(score=Change("remasking", "score"), caps=Change("schedule", "caps"), begin=Change("schedule", "begin")),
        ),
        "rcr": Preset(
            "Running confidence remasking (MDPO, arXiv 2508.13148): everything is ranked at every look by the largest "
            "confidence so far. Its code ranks by that of the last filling: `planner: commit_confidence`.",
            schedule=EvenSchedule(_UNLIMITED),
            takes=takes(planner=Change("decider", "planner"), num_remask=Change("schedule", "num_remask")),
            decider=P2Decider(planner="running_confidence"),
        ),
        "wino": Preset(
            "WINO, arXiv 2507.18578; thresholds of its LLaDA code.",
            schedule=OwnPaceSchedule(_UNLIMITED),
            takes=takes(threshold=Change("decider", "threshold"), verify=Change("decider", "verify")),
            decider=WinoDecider(),
            look=ShadowLook(),
        ),
        "klass": Preset(
            "KLASS, arXiv 2511.05664; its numbers for MATH on LLaDA (GSM8K .6, .015; HumanEval .9, .01; MBPP .7, .01).",
            KlassUnmasking(0.6, 0.01),
            takes=takes(threshold=_THRESHOLD, divergence=Change("unmasking", "divergence")),
        ),
        "factor": Preset(
            "Fast-dLLM's factor, arXiv 2505.22618 theorem 1; its code's factor.",
            FactorUnmasking(1.0),
            takes=takes(factor=Change("unmasking", "factor")),
        ),
        "p2": Preset(
            "Path planning (P2, arXiv 2502.03540), self-planned: the language model judges its own tokens. `planner: quality` "
            "takes the head's word.",
            schedule=EvenSchedule(_UNLIMITED),
            takes=takes(
                eta=Change("decider", "eta"),
                planner=Change("decider", "planner"),
                num_remask=Change("schedule", "num_remask"),
            ),
            decider=P2Decider(planner="visible_confidence"),
        ),
        "remedi": Preset(
            "RemeDi, arXiv 2509.23653: the head ranks tokens and, if it was trained at masks, masks.",
            schedule=EvenSchedule(_UNLIMITED),
            takes=takes(num_remask=Change("schedule", "num_remask")),
            decider=RemediDecider(),
        ),
        "proseco": Preset(
            "ProSeCo, arXiv 2602.11590; every 2 looks at most 4 corrections, as its LLaDA script. `quality_threshold` "
            "overwrites only what the head doubts.",
            takes=takes(
                every=Change("look", "every"),
                most=Change("look", "most"),
                threshold=Change("unmasking", "threshold", ThresholdUnmasking),
                quality_threshold=Change("editing", "quality_below"),
            ),
            editing=CorrectedEditing(),
            look=CorrectedLook(),
        ),
        "backplay": Preset(
            "BackPlay, arXiv 2601.06428; threshold, number and queue of an independent re-implementation, since the paper's "
            "were not found. The share of the looks that draft is ours.",
            remasking=QualityThresholdRemasking(0.5),
            schedule=RollbackSchedule(2),
            takes=takes(
                quality_threshold=Change("remasking", "threshold"),
                num_remask=Change("schedule", "num_remask"),
                draft_share=Change("schedule", "draft_share"),
            ),
            safety=MappingProxyType({"tabu_length": 10}),
        ),
        "cdlm": Preset(
            "CDLM's refinement, arXiv 2512.15596: fill, take back what is below 0.9, and again; four rounds, as in its figure.",
            remasking=BelowRemasking(0.9, "visible_confidence"),
            schedule=RefineSchedule(_UNLIMITED, 4),
            takes=takes(
                visible_threshold=Change("remasking", "threshold"),
                quality_threshold=Change("remasking", "quality_below"),
                num_rounds=Change("schedule", "num_rounds"),
                num_remask=Change("schedule", "num_remask"),
            ),
        ),
        "gidd": Preset(
            "GIDD's self-correction, arXiv 2503.04482: once all is filled, a look overwrites the token that another beats by "
            "most. Theirs draws the other at temperature 0.1. The share of the looks that draft is ours.",
            schedule=LoopSchedule(0, 0.5),
            takes=takes(
                num_swaps=Change("editing", "num_swaps"),
                draft_share=Change("schedule", "draft_share"),
                quality_threshold=Change("editing", "quality_below"),
            ),
            editing=SwapEditing(),
        ),
        "best_of": Preset(
            "Best of n: the surest of four samples at temperature 1, by the log of the probability of what was written.",
            temperature=1.0,
            takes=takes(num_particles=Change("trajectory", "num_particles"), by=Change("trajectory", "by")),
            trajectory=BestOfN(),
        ),
        "self_rewarding_smc": Preset(
            "SR-SMC, arXiv 2602.01849: four particles at temperature 1 and threshold 0.9, weighed by their own probability. "
            "Theirs are resampled at the ends of blocks of 32; without blocks, after every four looks, as in its MDLM config.",
            unmasking=ThresholdUnmasking(0.9),
            temperature=1.0,
            takes=takes(
                threshold=Change("unmasking", "threshold"),
                **{
                    name: Change("trajectory", name)
                    for name in ("num_particles", "by", "every", "resample_below", "resampling", "tempered", "keep")
                },
            ),
            trajectory=SelfRewardingSMC(every=4, resampling="multinomial"),
        ),
        "particle_gibbs": Preset(
            "PG-DLM, arXiv 2507.08390, with the mean log quality for a reward. Its own numbers were not found: these are ours.",
            unmasking=RandomUnmasking(),
            temperature=1.0,
            takes=takes(
                **{
                    name: Change("trajectory", name)
                    for name in ("num_particles", "num_sweeps", "beta", "every", "resample_below")
                },
            ),
            trajectory=ParticleGibbs(every=4),
        ),
        "partial_refinement": Preset(
            "IPR, arXiv 2605.19317, for tokens: a quarter is masked and filled again, and kept where it is better; theirs is "
            "chosen by chance (`choose` random), and all rounds are kept (`by` always).",
            takes=takes(
                **{name: Change("trajectory", name) for name in ("num_rounds", "share", "choose", "by")},
            ),
            trajectory=PartialRefinement(),
        ),
        "backtrack": Preset(
            "Ours: where the head doubts, what was written since the doubt began goes back, and more at each failure.",
            remasking=BacktrackRemasking(0.5),
            schedule=EvenSchedule(_UNLIMITED),
            takes=takes(
                **_REMASKING,
                quality_threshold=Change("remasking", "threshold"),
                score=Change("remasking", "score"),
            ),
        ),
    }
)


def get_preset(name: str) -> Preset:
    """Find a preset.

    Raises:
        UnknownNameError: If none has that name.
    """
    if name not in PRESETS:
        raise UnknownNameError(f"No preset is called {name!r}{did_you_mean(str(name), PRESETS)}; known: {', '.join(PRESETS)}.")
    return PRESETS[name]


def preset_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a preset and the caller's settings into arguments of `RemaskingSampler`, all but `model` and `num_steps`.

    Args:
        name: A key of `PRESETS`.
        settings: What differs from the preset's defaults; None leaves one as it is.

    Raises:
        UnknownNameError: If no preset has that name.
        UnknownKeyError: If the preset has no such setting.
        ConfigurationError: If two settings cannot go together, or one is out of range.
    """
    preset = get_preset(name)
    unknown = sorted(set(settings) - set(preset.settings))
    if unknown:
        raise UnknownKeyError(
            f"The preset {name!r} has no {', '.join(map(repr, unknown))}; it takes {', '.join(preset.settings)}."
        )
    parts = {part: getattr(preset, part) for part in PARTS if getattr(preset, part) is not None}
    given = {key: value for key, value in settings.items() if key in preset.takes and value is not None}
    for key in sorted(given, key=lambda key: preset.takes[key].instead is not None):  # other classes take over what was set
        change = preset.takes[key]
        if change.instead is not None:
            _refuse_ignored(key, change, {one for one in given if preset.takes[one].part == change.part})
        parts[change.part] = change.made(parts[change.part], given[key])
    arguments = dict(preset.safety)
    arguments |= {key: settings[key] for key in (*COMMON, *SAFETY, "remask_neighbours") if key in settings}
    arguments.setdefault("temperature", preset.temperature)
    if settings.get("look") is not None:
        parts["look"] = look_of(settings["look"])
    if settings.get("trajectory") is not None:
        arguments["trajectory"] = trajectory_of(settings["trajectory"])
    if settings.get("policy") is not None:
        others = {name for name in given if preset.takes[name].part == "unmasking"}
        parts["unmasking"] = policy_of(settings["policy"], others)
    if isinstance(parts["unmasking"], RedraftUnmasking) and not arguments["temperature"]:
        # without chance, a draft at a pace that was tried already would be the same draft
        arguments.setdefault("max_remasks_per_position", len(parts["unmasking"].paces))
    return arguments | parts


def _refuse_ignored(key: str, change: Change, given: set[str]) -> None:
    ignored = sorted(given - {key} - {one.name for one in fields(change.instead)})
    if ignored:
        raise ConfigurationError(
            f"{' and '.join(f'`{name}`' for name in ignored)} would be ignored with `{key}`, which makes the {change.part} a "
            f"{change.instead.__name__}; give one or the other."
        )
