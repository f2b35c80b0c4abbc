"""`prism-plugin doctor`: check a model before a quality head is attached, and estimate the memory of training it."""

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import datasets
import torch
from peft import LoraConfig
from rich.console import Console
from transformers import PreTrainedModel

from prism_plugin.backbones import (
    BackboneSpec,
    Check,
    build_backbone,
    describe,
    get_backbone_spec,
    has_weights,
    is_registered,
    load_backbone,
    load_tokenizer,
    max_row_length,
    resolve_mask_token_id,
)
from prism_plugin.backbones.alignment import judge_alignment_on_data
from prism_plugin.backbones.probe import not_run, why_not_run
from prism_plugin.backbones.spec import ALIGNMENTS
from prism_plugin.backbones.tested_code import check_own_code
from prism_plugin.cli.errors import in_options
from prism_plugin.data import DataSettings, Origin, prepare_rows, read_rows
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.alignment import fill_both_ways
from prism_plugin.modeling.attached_settings import changed_settings
from prism_plugin.modeling.block_context import NAME as BLOCK_CONTEXT
from prism_plugin.modeling.block_context import fill_behind_blocks, judge_block_context
from prism_plugin.modeling.probing import probe_model
from prism_plugin.report.tables import checks_table, memory_table
from prism_plugin.training import get_objective
from prism_plugin.training.checks import collator_of
from prism_plugin.training.given_rows import as_prepared
from prism_plugin.training.memory import StepShape, estimate_memory

_LENGTH = 1024
_ROWS_OF_DATA = 32
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("model", help="folder of a model (a config.json will do), or its id on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="let the model's own Python code run")
    parser.add_argument("--without-weights", action="store_true", help="read the config only, and estimate")
    parser.add_argument("--mask-token-id", type=int, help="id of the mask token, where model and tokenizer do not say")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="rows to train on (json, jsonl, csv, parquet, txt): see on the first ones which position logits are about",
    )
    parser.add_argument(
        "--logits-alignment", choices=ALIGNMENTS, help="which position they are about, where the model differs from its family"
    )
    step = parser.add_argument_group("the training step whose memory is estimated")
    step.add_argument("--batch-size", type=int, default=4, help="rows on one device (default: %(default)s)")
    step.add_argument("--length", type=int, help=f"tokens of a row (default: {_LENGTH}, or as many as the model takes)")
    step.add_argument(
        "--masked-share", type=float, default=1.0, help="share of masked positions (default: %(default)s, the largest step)"
    )
    step.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="of the weights; half precision is autocast too (default: the model's, with --four-bit bfloat16)",
    )
    step.add_argument("--four-bit", action="store_true", help="hold the backbone in NF4, as `quantization: nf4` in a recipe")
    step.add_argument("--lora-rank", type=int, default=8, help="rank of LoRA; 0: the head alone (default: %(default)s)")
    step.add_argument("--lora-targets", nargs="+", metavar="NAME", help="modules that get LoRA (default: the family's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")


@dataclass(frozen=True)
class Diagnosis:
    """What was found out. The first eight are what `--json` prints; what could not be found out is None.

    `changed_while_attached` maps a setting's dotted path to its value now and the one while a quality head is attached.
    """

    family: str
    mask_token_id: int
    mask_token_source: str
    alignment: str
    changed_while_attached: dict[str, tuple[Any, Any]]
    checks: list[Check]
    trainable_parameters: int | None
    memory_gb: dict[str, float | None]
    spec: BackboneSpec
    model: PrismModel | None
    shape: StepShape
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether a check failed; one that was not run did not."""
        return any(check.ok is False for check in self.checks)

    def to_json(self) -> str:
        """One JSON object."""
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)[:8]}
        return json.dumps({**values, "checks": [_finite(asdict(check)) for check in self.checks]})


def run(args: argparse.Namespace) -> int:
    """Examine and print. Returns the exit code: 1 where a check failed."""
    if args.lora_rank < 0:
        raise ConfigurationError(f"`--lora-rank` must be at least 0, got {args.lora_rank}.")
    if args.lora_targets and not args.lora_rank:
        raise ConfigurationError("`--lora-targets` says where LoRA goes, but `--lora-rank 0` asks for none; leave one out.")
    shape = _shape(
        args, _LENGTH if args.length is None else args.length, torch.float32
    )  # wrong sizes are found before anything is loaded
    with _without_warnings():
        diagnosis = _in_options(examine(args, shape))
    if args.json:
        print(diagnosis.to_json())
    else:
        _print(diagnosis)
    return int(diagnosis.failed)


def _in_options(diagnosis: Diagnosis) -> Diagnosis:
    """What checks found, in the words of the command line, as errors are told."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return replace(diagnosis, checks=[replace(check, detail=in_options(check.detail, parser)) for check in diagnosis.checks])


def _shape(args: argparse.Namespace, length: int, dtype: torch.dtype) -> StepShape:
    return StepShape(
        args.batch_size,
        length,
        masked_share=args.masked_share,
        autocast=None if dtype == torch.float32 else dtype,
        four_bit=args.four_bit,
    )


def examine(args: argparse.Namespace, shape: StepShape) -> Diagnosis:
    """Load the model, or build it without weights where there are none, attach to it, probe it, and estimate.

    Args:
        args: As parsed.
        shape: The training step, but for its dtype.

    Raises:
        MaskTokenError: If no mask token is known, or the one that was given cannot be.
        PrismError: If there is no model to examine, or the other options do not fit it.
    """
    where = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    rows = None if args.data is None else read_rows(args.data)  # before a large model is loaded in vain
    load = load_backbone if not args.without_weights and has_weights(args.model) else build_backbone
    dtype: Any = args.dtype or ("bfloat16" if args.four_bit else None)  # as load_backbone has it
    backbone = load(args.model, dtype=_DTYPES.get(dtype), **where)
    tokenizer = load_tokenizer(args.model, **where)
    spec = get_backbone_spec(backbone)
    mask_token_id, source = resolve_mask_token_id(args.mask_token_id, backbone.config, tokenizer, spec)
    source = "--mask-token-id" if args.mask_token_id is not None else source
    alignment = args.logits_alignment or spec.logits_alignment
    known: dict[str, Any] = {"family": spec.model_type, "spec": spec, "alignment": alignment}
    known |= {"mask_token_id": mask_token_id, "mask_token_source": source}
    known |= {"shape": _shape(args, _length(args, backbone), backbone.dtype), "changed_while_attached": {}}
    own_code = check_own_code(backbone)
    checks = [_check_spec(spec), *([] if own_code is None else [own_code])]
    with_lora = args.lora_rank and (args.lora_targets or spec.lora_target_modules)
    if args.lora_rank and not with_lora:
        checks.append(
            not_run("lora", "no layers are known that it goes to by itself; the head alone, or name `--lora-targets`")
        )
    lora = LoraConfig(r=args.lora_rank, target_modules=args.lora_targets) if with_lora else None
    began = time.perf_counter()
    stage = "attributes"
    try:
        known["changed_while_attached"] = changed_settings(backbone, spec)
        settings = PrismConfig(mask_token_id=mask_token_id, logits_alignment=args.logits_alignment)
        model = attach_quality_head(backbone, settings, lora=lora, tokenizer=tokenizer, probe=False)
        checks.append(Check(stage, True, None, "LM head, attention and vocabulary are as the spec says"))
        stage = "forward"
        checks += probe_model(model)
        checks += [] if rows is None else _checks_on_data(model, rows, args)
    except BackboneError as error:
        checks.append(Check(stage, False, None, str(error)))
        return Diagnosis(**known, checks=checks, trainable_parameters=None, memory_gb={}, model=None, seconds=0.0)
    seconds = time.perf_counter() - began
    # a frozen backbone has nothing to learn from the diffusion term
    objective = get_objective("prism") if lora else get_objective("prism", diffusion_weight=0.0)
    estimate = estimate_memory(model, known["shape"], objective)
    if estimate.not_estimated:
        checks.append(not_run("memory", estimate.not_estimated))
    trained = model.num_parameters(only_trainable=True)
    return Diagnosis(
        **known, checks=checks, trainable_parameters=trained, memory_gb=estimate.in_gb(), model=model, seconds=seconds
    )


def _length(args: argparse.Namespace, backbone: PreTrainedModel) -> int:
    """Tokens of a row of the step; without a wish no more than the model was made for."""
    limit = max_row_length(backbone)
    if args.length is None:
        made_for = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
        return min(length for length in (_LENGTH, limit, made_for) if length)
    if limit is not None and args.length > limit:
        raise ConfigurationError(
            f"`--length` must be at most {limit}, as many as {backbone.config.model_type} has positions for, got {args.length}."
        )
    return args.length


def _checks_on_data(model: PrismModel, rows: datasets.Dataset, args: argparse.Namespace) -> list[Check]:
    """Compare both alignments on the first rows of the data, as training does on its first batch; and what blocks know."""
    by_blocks = model.spec.attention_block_length is not None
    reason = why_not_run(model.plain_backbone)
    if reason is not None:
        return [not_run(name, reason) for name in ("alignment_on_data", *([BLOCK_CONTEXT] if by_blocks else []))]
    datasets.disable_progress_bars()
    origin, settings = Origin(args.data, counted=True), DataSettings(max_length=_length(args, model.plain_backbone))
    first = rows.select(range(min(len(rows), _ROWS_OF_DATA)))
    how: dict[str, Any] = {"mask_token_id": model.mask_token_id, "settings": settings, "origin": origin}
    prepared, collate = as_prepared(prepare_rows(first, model.tokenizer, **how), model, origin), collator_of(model)
    size = 1 if collate.equal_lengths else args.batch_size
    starts = range(0, len(prepared), size)
    batches = [collate([prepared[i] for i in range(start, min(start + size, len(prepared)))]) for start in starts]
    filled = torch.cat([fill_both_ways(model, batch) for batch in batches])
    checks = [judge_alignment_on_data(type(model.plain_backbone).__name__, model.spec, filled)]
    if by_blocks:
        checks.append(judge_block_context(torch.cat([fill_behind_blocks(model, batch) for batch in batches])))
    return checks


def _check_spec(spec: BackboneSpec) -> Check:
    if is_registered(spec):
        return Check("spec", True, None, f"registered, from {spec.reference}" if spec.reference else "registered")
    return Check("spec", True, None, f"not registered; from looking at the model: {describe(spec)}")


def _finite(check: dict[str, Any]) -> dict[str, Any]:
    figure = check["figure"]
    return {**check, "figure": None if figure is None or figure != figure or abs(figure) == float("inf") else figure}


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What a warning says of an unknown family stands in the checks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No BackboneSpec is registered", category=UserWarning)
        yield


def _print(diagnosis: Diagnosis) -> None:
    console = Console(highlight=False, markup=False)
    console.print(f"family       {diagnosis.family}")
    console.print(f"mask token   {diagnosis.mask_token_id}, from {diagnosis.mask_token_source}")
    console.print(f"alignment    {diagnosis.alignment}")
    console.print(f"padding      {_MASKS[diagnosis.spec.attention_mask]}")
    console.print(f"attaching    {_attaching(diagnosis)}")
    console.print(checks_table(diagnosis.checks))
    model, trained = diagnosis.model, diagnosis.trainable_parameters
    if model is None or trained is None:
        return
    if any(check.name == "bidirectional" and check.ok is not None for check in diagnosis.checks):
        console.print(f"attached and probed in {diagnosis.seconds:.2f} s")
    head = sum(parameter.numel() for parameter in model.quality_head.parameters())
    targets = ", ".join(sorted(set(map(_end, _targets(model))))) or "nothing"
    console.print(f"trained      {trained - head:,} parameters of LoRA on {targets}; {head:,} of the head")
    console.print(f"\nmemory of a training step: {_in_words(diagnosis.shape)}")
    console.print(memory_table(diagnosis.memory_gb))


def _attaching(diagnosis: Diagnosis) -> str:
    settings = [f"{place} {was} -> {now}" for place, (was, now) in diagnosis.changed_while_attached.items()]
    changes = [*settings, f"a hook on {diagnosis.spec.final_hidden_at}", "weights that are not trained frozen"]
    return f"{', '.join(changes)}, one mode for all modules; `detach` undoes it"


def _in_words(shape: StepShape) -> str:
    precision = "float32" if shape.autocast is None else str(shape.autocast).removeprefix("torch.")
    four_bit = ", backbone in 4 bits" if shape.four_bit else ""
    return f"{shape.batch_size} rows of {shape.length:,} tokens, {shape.masked_share:.0%} masked, {precision}{four_bit}"


def _end(path: str) -> str:
    """The last part of a module's path, with what is before it where that is a number."""
    above, _, last = path.rpartition(".")
    return f"{_end(above)}.{last}" if last.isdigit() and above else last


def _targets(model: PrismModel) -> list[str]:
    return getattr(getattr(model.backbone, "base_model", None), "targeted_module_names", [])


_MASKS = {
    "2d": "hidden by a mask of [batch, length]",
    "4d": "hidden by a mask of [batch, 1, length, length]",
    "none": "cannot be hidden: rows are equally long, or padding is seen as in pretraining",
}
