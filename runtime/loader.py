"""From a model folder (or a hub id) to a model with weights.

The model is built on the meta device, given memory, and filled in file order: each parameter is written exactly once,
straight from the file. What is missing, left over, misshapen or not finite is an error that names the file.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core.errors import ModelLoadError
from .checkpoint import StoredTensor, checkpoint_tensors, read_into
from .layers.embedding import Embedding
from .layers.linear import Linear
from .layers.mla import LatentUp
from .layers.moe import Experts
from .layers.rowwise import RowWise
from .model_config import ModelConfig
from .models.generic import TransformersForCausalLM, is_known_to_transformers, standard_fields
from .models.heads import Head, with_head
from .models.registry import known_models, model_class

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .models.base import CausalLM

WEIGHT_MODULES = (Linear, Embedding, Experts, LatentUp)  # kept in the weights' dtype, all others in that of activations
BUILTIN_MODEL = Path(__file__).parent / "builtin" / "dslc_tiny"
HUB_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.jinja", "tokenizer*", "*.tiktoken", "merges.txt", "vocab.txt")


def model_folder(model_path: str | None, revision: str | None = None) -> Path:
    """The local folder of a model: `model_path` itself if it is one, the built-in model for None, else a hub download.

    A hub id looks like `owner/name`. Raises ModelLoadError.
    """
    if model_path is None:
        if not (BUILTIN_MODEL / "config.json").exists():
            raise ModelLoadError("the built-in model is not installed; give a model_path", path=str(BUILTIN_MODEL))
        return BUILTIN_MODEL
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelLoadError("is a file; a model is a folder with config.json and *.safetensors", path=model_path)
    if folder.is_absolute() or model_path.startswith((".", "~")) or model_path.count("/") != 1:
        raise ModelLoadError("no such folder; give a local folder or a hub id `owner/name`", path=model_path)
    return _download(model_path, revision)


def _download(hub_id: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelLoadError(
            "is no local folder, and huggingface_hub, which could download it, is not installed", path=hub_id
        ) from None
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(HUB_PATTERNS)))
    except Exception as error:  # the hub client raises errors of its own, of requests and of the OS
        raise ModelLoadError(
            f"is no local folder, and the download failed ({type(error).__name__}: {error}); check the name and the "
            "network, or download the model elsewhere and give its folder",
            path=hub_id,
        ) from error


def load_config(folder: Path, *, context_length: int | None = None, impl: str = "auto") -> ModelConfig:
    """The model's config.json; for transformers' code as transformers reads it. Raises ModelLoadError."""
    architectures = ModelConfig.architectures(folder)
    if not runs_generic(architectures[0], impl):
        return ModelConfig.load(folder, context_length=context_length)
    return ModelConfig.load(folder, context_length=context_length, overrides=standard_fields(folder))


def runs_generic(architecture: str, impl: str = "auto") -> bool:
    """Whether this architecture runs through transformers' code (`EngineConfig.model_impl`)."""
    return impl == "transformers" or (
        impl == "auto" and architecture not in known_models() and is_known_to_transformers(architecture)
    )


def load_model(
    config: ModelConfig,
    *,
    impl: str = "auto",
    device: torch.device | str = "cpu",
    weight_dtype: torch.dtype = torch.float32,
    act_dtype: torch.dtype = torch.float32,
    check_finite: bool = True,
    is_embedding: bool = False,
) -> CausalLM:
    """The model of `config.path` with its weights, in eval mode; with `is_embedding` without its vocabulary head.

    Matrices and embeddings are kept in `weight_dtype`, all other parameters in `act_dtype`, the dtype of activations.
    Raises ModelLoadError naming the file (unknown architecture, missing shard or tensor, unexpected tensor, wrong
    shape, cut file, and with `check_finite` NaN or infinity).
    """
    if runs_generic(config.architecture, impl):
        if is_embedding:
            raise ModelLoadError(
                "runs through transformers' code, which gives logits only; is_embedding cannot be",
                path=str(config.path),
            )
        return TransformersForCausalLM.loaded(config, torch.device(device), act_dtype)
    model = empty_model(
        config, device=device, weight_dtype=weight_dtype, act_dtype=act_dtype, is_embedding=is_embedding
    )
    with torch.no_grad():
        fill(model, checkpoint_tensors(config.path), config.path, check_finite=check_finite)
    return model


def empty_model(
    config: ModelConfig,
    *,
    device: torch.device | str = "cpu",
    weight_dtype: torch.dtype = torch.float32,
    act_dtype: torch.dtype = torch.float32,
    is_embedding: bool = False,
) -> CausalLM:
    """The model with memory but without values."""
    cls = model_class(config.architecture, config.path / "config.json")
    if is_embedding:
        cls = with_head(Head, cls)
    with torch.device("meta"):
        model = cls(config, act_dtype)
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        dtype = weight_dtype if isinstance(module, WEIGHT_MODULES) else act_dtype
        for name, param in list(module._parameters.items()):
            if param is None:
                continue
            if id(param) not in made:  # a tied parameter stays one
                made[id(param)] = nn.Parameter(torch.empty(param.shape, dtype=dtype, device=device), False)
            module._parameters[name] = made[id(param)]
        if isinstance(module, RowWise):
            module.choose_kernels(torch.device(device), act_dtype)
    return model.eval()


def fill(model: CausalLM, stored: Iterable[StoredTensor], folder: Path, *, check_finite: bool = True) -> None:
    """Copy the tensors into the model's parameters; each of them must be there exactly once."""
    targets = dict(model.checkpoint_targets())
    by_file: dict[Path, list[StoredTensor]] = defaultdict(list)
    for tensor in stored:
        by_file[tensor.file].append(tensor)
    for file, tensors in by_file.items():
        with file.open("rb", buffering=0) as stream:
            for tensor in tensors:
                target = targets.pop(tensor.name, None)
                if target is None:
                    target = targets.pop(model.BASE_PREFIX + tensor.name, None)
                if target is None:
                    _check_unexpected(model, tensor, targets)
                    continue
                if tuple(target.shape) != tensor.shape:
                    raise ModelLoadError(
                        f"tensor {tensor.name!r} has shape {list(tensor.shape)}, but config.json asks for "
                        f"{list(target.shape)}",
                        path=str(file),
                    )
                read_into(stream, tensor, target)
                if check_finite:
                    _check_finite(tensor, target)
    if targets:
        names = sorted(targets)
        raise ModelLoadError(
            f"{len(names)} tensors of {type(model).__name__} are in no file, the first is {names[0]!r}; the checkpoint "
            "is incomplete, or config.json belongs to another model",
            path=str(folder),
        )


def _check_unexpected(model: CausalLM, tensor: StoredTensor, targets: Mapping[str, Tensor]) -> None:
    """Raise ModelLoadError unless the tensor is one that a checkpoint may hold in vain."""
    if model.is_ignored(tensor.name):
        return
    if tensor.name == "lm_head.weight" and model.config.tie_word_embeddings:
        return  # a copy of the embedding, which is the head
    raise ModelLoadError(
        f"tensor {tensor.name!r} has no place in {type(model).__name__}; does config.json belong to these weights?",
        path=str(tensor.file),
    )


def _check_finite(tensor: StoredTensor, target: Tensor) -> None:
    # A sum is one pass without a temporary; only if it is not finite look closer (it may have overflowed).
    if torch.isfinite(target.sum(dtype=torch.float32)) or torch.isfinite(target).all():
        return
    bad = int((~torch.isfinite(target)).sum())
    raise ModelLoadError(
        f"tensor {tensor.name!r} holds {bad} values that are NaN or infinite; the file is damaged",
        path=str(tensor.file),
    )
