"""The one place that loads backbones: right class by spec, one-sentence errors, never the network for a path."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from prism_plugin.backbones import build_backbone, load_backbone, load_tokenizer
from prism_plugin.errors import BackboneError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.testing import tiny_backbone, tiny_tokenizer


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("family", ["bert", "esm", "llama"])
def test_a_saved_backbone_comes_back(tmp_path, family):
    backbone = tiny_backbone(family)
    backbone.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path)
    ids = torch.randint(2, 31, (2, 5))
    assert type(loaded) is type(backbone)
    assert not loaded.training
    assert torch.equal(loaded(input_ids=ids).logits, backbone(input_ids=ids).logits)


def test_dtype_is_the_saved_one_unless_told(tmp_path):
    tiny_backbone().bfloat16().save_pretrained(tmp_path)
    assert load_backbone(tmp_path).dtype == torch.bfloat16
    assert load_backbone(str(tmp_path), dtype=torch.float32).dtype == torch.float32


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(BackboneError, match="must be a folder with a transformers model, but there is no such folder"):
        load_backbone(tmp_path / "nowhere")
    with pytest.raises(BackboneError, match="there is no such folder"):
        load_backbone("./nowhere")


def test_a_folder_without_config(tmp_path):
    with pytest.raises(BackboneError, match=r"must hold a transformers model, but it has no config.json"):
        load_backbone(tmp_path)


def test_a_hub_id_that_cannot_be_reached():
    with pytest.raises(BackboneError, match=r"could be read from 'prism-plugin/no-such-model' .*can be reached or is cached"):
        load_backbone("prism-plugin/no-such-model")


def test_truncated_weights(tmp_path):
    tiny_backbone().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackboneError, match=r"The weights of the 'bert' backbone .* could not be loaded"):
        load_backbone(tmp_path)


def test_weights_of_other_shapes(tmp_path):
    tiny_backbone().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 64}), encoding="utf-8")
    with pytest.raises(
        BackboneError, match=r"could not be loaded \(their shapes are not those that its config.json describes\)"
    ):
        load_backbone(tmp_path)


def test_a_config_that_is_no_object(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BackboneError, match=r"No config .* could be read from .*it must be a JSON object, found a list"):
        load_backbone(tmp_path)


def test_a_checkpoint_without_lm_head(tmp_path):
    tiny_backbone().bert.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"must hold every weight of BertForMaskedLM, but 6 are missing, `cls.predictions"):
        load_backbone(tmp_path)


def test_a_model_type_without_spec(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(BackboneError, match="No BackboneSpec is registered for model type 'vit'"):
        load_backbone(tmp_path)


def test_tokenizer_beside_the_model_or_none(tmp_path):
    tiny_backbone().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path) is None
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode("abc [MASK]") == [3, 4, 5, 29, 31]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"hidden_size": "16"},
            r"must hold values of the types that transformers wants: .*'hidden_size' expected int, got str",
        ),
        ({"architectures": 1.5}, r"\(`architectures` cannot be 1.5\)"),
        ({"model_type": ["bert"]}, r"\(`model_type` cannot be \['bert'\]\)"),
        ({"auto_map": "x"}, r"\(`auto_map` cannot be 'x'\)"),
        (None, "No config of a transformers model could be read"),
    ],
)
@pytest.mark.parametrize("load", [load_backbone, build_backbone])
def test_a_config_with_a_value_of_another_type(tmp_path, load, values, words):
    tiny_backbone().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values and {**json.loads(file.read_text()), **values}))
    with pytest.raises(BackboneError, match=words):
        load(tmp_path)


def test_a_damaged_tokenizer(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BackboneError, match=r"The tokenizer in .* could not be read"):
        load_tokenizer(tmp_path)


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does for a gated repository, and for one that is not there."""

    def do_GET(self):
        gated = "gated" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


LOAD_BOTH = """
from prism_plugin.backbones import load_backbone
from prism_plugin.errors import BackboneError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
for name in ("someone/gated", "someone/nothing"):
    try:
        load_backbone(name)
    except BackboneError as error:
        print(error)
"""


def test_a_gated_and_a_missing_repository(hub, tmp_path):
    """The Hub's address is read at import, so the question is asked from a new process."""
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", LOAD_BOTH], capture_output=True, text=True, timeout=120, env=env)
    assert done.stdout.splitlines() == [
        "'someone/gated' is gated on the Hub: ask for access on its page, and log in with `hf auth login`.",
        "There is no 'someone/nothing' on the Hub that you may see; correct the id, or log in with `hf auth login`.",
    ], done.stderr[-2000:]


@pytest.mark.parametrize("trust_remote_code", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_adapted_checkpoints_are_loaded_into_the_class_they_come_from(tmp_path, family, trust_remote_code):
    """dLLM's A2D models: the weights of Llama or Qwen under a model type of their own, with code that is not needed."""
    backbone = tiny_backbone(family)
    backbone.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    stated.pop("is_causal")
    stated |= {"model_type": f"a2d-{family}", "architectures": ["A2DLMHeadModel"], "auto_map": {"AutoModel": "modeling.A2D"}}
    (tmp_path / "config.json").write_text(json.dumps(stated), encoding="utf-8")
    loaded = load_backbone(tmp_path, trust_remote_code=trust_remote_code)
    ids = torch.randint(2, 31, (2, 5))
    assert type(loaded) is type(backbone)
    assert loaded.config.is_causal is False
    assert torch.equal(loaded(input_ids=ids).logits, backbone(input_ids=ids).logits)
    model = attach_quality_head(loaded, PrismConfig(mask_token_id=31))
    assert model.prism_config.backbone_name == str(tmp_path)
    model.save_pretrained(tmp_path / "head")
    again = PrismModel.from_pretrained(tmp_path / "head")
    assert torch.equal(again(ids).quality_logits, model(ids).quality_logits)
