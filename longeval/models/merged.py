"""A folder with a model's weights after its adapter was merged into them, for engines that load models from folders.

It lies in the cache, so that it is made once for each base model, adapter and precision.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil

from longeval.errors import LongEvalError
from longeval.files import put_folder, working_folder
from longeval.models.gguf.folder import NOTE, cached_folder, is_whole, note_files, unwritable
from longeval.models.library import quiet_transformers
from longeval.models.load import load_config, load_model
from longeval.models.quantisation import quantization_settings
from longeval.models.resolve import ModelRef, config_path, tokenizer_names, weights_digest

_log = logging.getLogger(__name__)

_MERGING = 1
"""Version of what is written. Raise it whenever that changes."""


def merged_folder(ref: ModelRef, *, dtype: str) -> str:
    """Returns the folder of a model with its adapter merged in; makes it if it doesn't exist or is damaged.

    The model is loaded on the CPU. The folder is renamed to its final name when it is complete.

    Args:
        ref: A model with an adapter.
        dtype: The precision in which the weights are merged and stored, as `hf` does at loading.

    Raises:
        LongEvalError: The adapter doesn't fit, the base model needs code of its own or is quantised, or the cache can't
            be written.
    """
    adapter = ref.adapter
    assert adapter is not None, "there is nothing to merge"
    identity = f"{weights_digest(ref)} {adapter.digest} {dtype} {_MERGING}"
    name = f"merged-{os.path.basename(ref.name.rstrip('/'))}-{dtype}"
    folder = cached_folder(name, hashlib.sha256(identity.encode()).hexdigest(), 1)
    if is_whole(folder):
        return folder
    if quantization_settings(load_config(ref)) is not None:
        raise LongEvalError(
            f"--adapter {adapter.name}: the weights of {ref.name} are quantised, so it can't be merged into them",
            "Put it on the model without quantisation.",
        )
    _log.info("merging the adapter %s into %s (once; kept in %s)", adapter.name, ref.name, folder)
    model = load_model(ref, dtype=dtype, device="cpu")
    try:
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        with working_folder(os.path.dirname(folder)) as work:
            building = os.path.join(work, "model")
            os.mkdir(building)
            with quiet_transformers():
                model.save_pretrained(building)
            source = os.path.dirname(config_path(ref))
            for file in tokenizer_names(source) - {NOTE}:
                shutil.copyfile(os.path.join(source, file), os.path.join(building, file))
            note_files(building, {"base": weights_digest(ref), "adapter": adapter.digest})
            put_folder(building, folder, is_whole=is_whole)
    except OSError as error:
        raise unwritable(error) from error
    return folder
