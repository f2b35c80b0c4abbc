"""Writes the configs of a backbone that will be saved whole, before the work whose result that would cost."""

import copy
import tempfile

from transformers import PreTrainedModel

from prism_plugin.errors import BackboneError


def require_saveable(backbone: PreTrainedModel) -> None:
    """Check that transformers will write a backbone's configs. They go into a temporary folder; the backbone stays as it is.

    Raises:
        BackboneError: If it refuses to, or code of a repository fails when it is asked to.
    """
    name, found = type(backbone).__name__, backbone.config._get_generation_parameters()
    if found:
        first = sorted(found)[0]
        raise BackboneError(
            f"The whole {name} would be saved, but its config holds {', '.join(sorted(found))}, which transformers takes for "
            f"settings of generation and refuses to write there; `del backbone.config.{first}`, or set it in "
            "`backbone.generation_config` instead."
        )
    with tempfile.TemporaryDirectory() as folder:
        try:
            copy.deepcopy(backbone.config).save_pretrained(folder)  # saving writes into a config
            if backbone.can_generate():
                copy.deepcopy(backbone.generation_config).save_pretrained(folder)
        except Exception as error:  # a repository's config may raise anything
            cause = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise BackboneError(
                f"The whole {name} would be saved, but transformers would not write its config ({cause}); correct "
                "`backbone.config` or `backbone.generation_config`, and try again."
            ) from error
