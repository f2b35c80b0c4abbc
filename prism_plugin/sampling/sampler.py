"""`RemaskingSampler`: a `MaskFiller` that reads texts, has presets, and is saved and shared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prism_plugin.backbones import DeviceMap, require_placement
from prism_plugin.decoding.chance import Generators
from prism_plugin.modeling.hub import push_model
from prism_plugin.modeling.model import PrismModel
from prism_plugin.modeling.model_card import Figure
from prism_plugin.modeling.stored_model import locate
from prism_plugin.sampling.canvas import require_new_tokens
from prism_plugin.sampling.filling import MaskFiller
from prism_plugin.sampling.presets import preset_settings
from prism_plugin.sampling.prompts import Chat, lay_prompts
from prism_plugin.sampling.settings_files import read_settings, stored_values, write_settings


@dataclass(frozen=True, eq=False)
class RemaskingSampler(MaskFiller):
    """Fills masks with a masked diffusion model, and takes back what looks wrong.

    A request makes at most `num_steps` looks at each row, and rows that are done cost no more. `dataclasses.replace`
    gives the same sampler with other settings. The mask token is never drawn, nor `suppress_tokens`, nor a token that the
    tokenizer does not have, nor its padding token unless it is an EOS token too, as where padding ends an answer (LLaDA). A
    rule without `needs`, such as a lambda, is given noise, quality, entropy and margin; the probability of visible tokens costs
    LM-head rows and has to be named.

    Attributes:
        model: The model that is asked; it is in eval mode while sampling, and as it was afterwards.

    Raises:
        ConfigurationError: If a setting is out of range, or two settings cannot go together.
        MissingQualityError: If a rule needs the quality head and the model has none.
        UnknownNameError: If a rule needs a feature that is not registered.
    """

    model: PrismModel = field(kw_only=False, repr=False)

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Chat],
        *,
        max_new_tokens: int,
        min_new_tokens: int | None = None,
        generator: Generators = None,
        streamer: Any = None,
    ) -> list[str]:
        """Continue texts or answer chats, through the model's tokenizer.

        A text's trailing special tokens (BERT's `[SEP]`) follow the new tokens, as in training. A chat is written by the
        tokenizer's chat template with its prompt for the answer.

        Args:
            prompts: Texts, or chats as lists of {"role", "content"}.
            max_new_tokens: Tokens to generate for each, >= 1.
            min_new_tokens: As for `sample`.
            generator: As for `sample`.
            streamer: As for `sample`, for one prompt.

        Returns:
            The new text of each prompt, without special tokens.

        Raises:
            SamplingError: If there is no tokenizer, no prompt, or a chat and no chat template; also as `sample`.
        """
        require_new_tokens(max_new_tokens, min_new_tokens)
        laid = lay_prompts(
            self.model.tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            mask_token_id=self.model.mask_token_id,
            pad_token_id=self.fill_id,
        )
        options: dict[str, Any] = {"min_new_tokens": min_new_tokens, "generator": generator, "streamer": streamer}
        output = self.infill(laid.input_ids, laid.attention_mask, **options)
        new = laid.new_tokens(output.sequences, max_new_tokens)
        return self.model.tokenizer.batch_decode(new, skip_special_tokens=True)

    @classmethod
    def from_preset(cls, name: str, model: PrismModel, *, num_steps: int, **settings: Any) -> "RemaskingSampler":
        """Make a sampler by name, such as "prism"; `prism_plugin.sampling.presets` lists them and their settings.

        Raises:
            UnknownNameError: If no preset has that name.
            UnknownKeyError: If the preset has no such setting.
            ConfigurationError: If a value is out of range.
        """
        return cls(model, num_steps=num_steps, **preset_settings(name, settings))

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `sampler_config.json` into a folder, and files that its rules read; `model.save_pretrained` saves the model.

        Raises:
            UnknownNameError: If a rule is not registered; a lambda works in `sample`, but has no name to save.
            SavingError: If the file cannot be written; what stood there before is unchanged.
        """
        write_settings(self, directory)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload a PRISM sampler",
        figures: Mapping[str, Figure] | None = None,
    ) -> str:
        """Upload the model, as its own `push_to_hub` does, with `sampler_config.json` beside. Returns the commit's address.

        Raises:
            ConfigurationError: If the backbone is known only as a local folder.
            UnknownNameError: If a rule is not registered.
        """
        beside: dict[str, Any] = {"sampler": stored_values(self), "also": partial(write_settings, self)}
        options: dict[str, Any] = {"private": private, "token": token, "commit_message": commit_message}
        return push_model(self.model, repo_id, known=self.model.card_facts, figures=figures, **beside, **options)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        model: PrismModel | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        device_map: DeviceMap | None = None,
    ) -> "RemaskingSampler":
        """Read a sampler from a folder with `sampler_config.json`, and its model too when `model` is None.

        Args:
            directory: The folder, or the id of a repository on the Hub.
            model: The model to sample from; None: the one in the folder.
            dtype: Of the model that is loaded, as for `PrismModel.from_pretrained`.
            device_map: Of the model that is loaded, as for `PrismModel.from_pretrained`.

        Raises:
            StoredStateError: If the file is missing or of another format.
            UnknownKeyError: If it holds a key that nothing would read.
            UnknownNameError: If it names a rule that is not registered; import the module that registers it.
            ConfigurationError: If `dtype` or `device_map` is given with a model, or names nothing that is there.
        """
        require_placement(dtype, device_map, loaded=None if model is None else "model")
        settings = read_settings(directory if Path(directory).exists() else locate(directory))
        model = PrismModel.from_pretrained(directory, dtype=dtype, device_map=device_map) if model is None else model
        return cls(model, **vars(settings))
