"""Runs exported samplers in a process where prism_plugin cannot be imported: `python without_us.py CASES ANSWERS`, both JSON.

A case says how the model is loaded, and holds requests; each request names a sampler's folder. No test: test_export.py runs it.
"""

import json
import sys
from functools import partial

import torch

# Importing one of these fails from here on; what transformers itself may do without is among them.
sys.modules.update(dict.fromkeys(("prism_plugin", "jaxtyping", "jinja2", "datasets")))

import transformers  # noqa: E402
from transformers import GenerationMixin  # noqa: E402
from transformers.dynamic_module_utils import get_class_from_dynamic_module  # noqa: E402


def load(case):
    if case["kind"] == "remote":
        load_backbone = get_class_from_dynamic_module("custom_generate/load_backbone.load", case["folder"])
        return load_backbone(case["folder"], trust_remote_code=True)
    model = getattr(transformers, case["auto_class"]).from_pretrained(case.get("base", case["folder"])).eval()
    if case["kind"] == "adapter":
        model.load_adapter(case["folder"])
    return model


def answer(generate, request):
    options = {name: torch.tensor(request[name]) for name in ("input_ids", "attention_mask")}
    options |= {name: request[name] for name in ("max_new_tokens",) if name in request}
    options["generator"] = [torch.Generator().manual_seed(seed) for seed in request["seeds"]]
    options |= {"sampler_path": request["sampler"], "return_dict_in_generate": True}
    output = generate(**options)
    return {
        "sequences": output.sequences.tolist(),
        "num_forward_passes": output.num_forward_passes.tolist(),
        "num_remasked": output.num_remasked.tolist(),
    }


def main(cases, answers):
    found = []
    with open(cases) as file:  # noqa: PTH123
        for case in json.load(file):
            model = load(case)
            if case["kind"] == "method":
                generate = partial(model.generate, custom_generate=case["folder"], trust_remote_code=True)
            else:
                generate = partial(GenerationMixin.load_custom_generate(model, case["folder"], trust_remote_code=True), model)
            found.append([answer(generate, request) for request in case["requests"]])
            assert case["kind"] == "adapter" or "peft" not in sys.modules, "a merged export must not need it"
    with open(answers, "w") as file:  # noqa: PTH123
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
