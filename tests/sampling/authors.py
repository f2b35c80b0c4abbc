"""The authors' own code, run from the folder of checkouts that `PRISM_AUTHORS` names; docs/methods.md says how to fill it."""

import ast
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from small_samplers import MASK, build_model

PLACE = Path(os.environ.get("PRISM_AUTHORS", "nowhere"))
needs_checkouts = pytest.mark.skipif(not PLACE.is_dir(), reason="PRISM_AUTHORS names no folder of the authors' checkouts")


def module_of(path, stubs=()):
    """A file of theirs as a module; what it imports and does not need here is stubbed."""
    if not (PLACE / path).exists():
        pytest.skip(f"{path} is not among the checkouts")
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update({name: ModuleType(name) for name in stubs})
    for name in stubs:
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, sys.modules[name])
    try:
        spec = importlib.util.spec_from_file_location(f"theirs_{abs(hash(path))}", PLACE / path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        for name, old in before.items():
            sys.modules.pop(name, None)
            if old is not None:
                sys.modules[name] = old
    return module


def function_of(path, name, **names):
    """One function or method of theirs, from a file whose other imports are not there."""
    if not (PLACE / path).exists():
        pytest.skip(f"{path} is not among the checkouts")
    tree = ast.parse((PLACE / path).read_text(encoding="utf-8"))
    (found,) = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and one.name == name]
    found.decorator_list = []
    scope = {"torch": torch, "F": torch.nn.functional, **names}
    exec(compile(ast.Module([found], []), path, "exec"), scope)
    return scope[name]


class Theirs:
    """A tiny model as their code calls one; the mask is never probable, as it is never drawn in ours."""

    def __init__(self, model, mask_id=MASK, vocab_size=32):
        self.model, self.mask_id, self.vocab_size, self.device = model, mask_id, vocab_size, torch.device("cpu")
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.seen = []

    @torch.no_grad()
    def __call__(self, ids, attention_mask=None, position_ids=None):
        self.seen.append(ids.clone())
        own = torch.where(ids == self.mask_id, MASK, ids)
        position_ids = position_ids if position_ids is None or position_ids.ndim == 2 else position_ids.expand(len(ids), -1)
        pairs = attention_mask if attention_mask is not None and attention_mask.ndim == 4 else None
        pairs = None if pairs is None else pairs.bool() if pairs.dtype == torch.bool else pairs > -1
        logits = self.model.plain_backbone(own, attention_mask=pairs, position_ids=position_ids).logits.float()
        logits[..., MASK] = -1e9
        wide = torch.full((*logits.shape[:2], self.vocab_size), -1e9)
        wide[..., :32] = logits
        return SimpleNamespace(logits=wide)


def sure_model():
    """Sure enough of some tokens for rules with a threshold."""
    model = build_model()
    with torch.no_grad():
        for parameter in model.get_output_embeddings().parameters():
            parameter.mul_(3)
    return model.eval()
