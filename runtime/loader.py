"""From a model folder (or a hub id) to a model with weights.

The model is built on the meta device, given memory, and filled in file order: each parameter is written exactly once,
straight from the file. What is missing, left over, misshapen or not finite is an error that names the file.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core.errors import ModelLoadError
from .checkpoint import PickledTensor, StoredTensor, checkpoint_tensors, pickled_tensors, read_into
from .gguf import GgufFile, GgufTensor
from .layers.embedding import Embedding
from .layers.linear import Linear
from .layers.mla import LatentUp
from .layers.moe import Experts
from .layers.rowwise import RowWise
from .model_config import ModelConfig
from .models.generic import TransformersForCausalLM, is_known_to_transformers, standard_fields
from .models.heads import Head, with_head
from .models.registry import known_models, model_class
from .mxfp4 import Mxfp4Tensor, merged

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..core.text.tokenizer import Tokenizer
    from .models.base import CausalLM

WEIGHT_MODULES = (Linear, Embedding, Experts, LatentUp)  # kept in the weights' dtype, all others in that of activations
RANDOM_STEP = 1 << 18
Stored = StoredTensor | PickledTensor | GgufTensor | Mxfp4Tensor
BUILTIN_MODEL = Path(__file__).parent / "builtin" / "dslc_tiny"
HUB_PATTERNS = ("*.json", "*.model", "*.jinja", "tokenizer*", "*.tiktoken", "merges.txt", "vocab.txt")


HUB_WEIGHTS: dict[str, tuple[str, ...]] = {
    "auto": ("*.safetensors",), "safetensors": ("*.safetensors",), "pt": ("*.bin", "*.pt", "*.pth"),
    "gguf": ("*.gguf",), "dummy": (),
}  # fmt: skip


def model_folder(model_path: str | None, revision: str | None = None, load_format: str = "auto") -> Path:
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
    if folder.is_file() and folder.suffix == ".gguf":
        return folder.parent
    if folder.exists():
        raise ModelLoadError(
            "is a file; a model is a folder with config.json and *.safetensors, or a *.gguf file", path=model_path
        )
    if folder.is_absolute() or model_path.startswith((".", "~")) or model_path.count("/") != 1:
        raise ModelLoadError("no such folder; give a local folder or a hub id `owner/name`", path=model_path)
    return _download(model_path, revision, HUB_WEIGHTS[load_format])


def _download(hub_id: str, revision: str | None, weights: tuple[str, ...]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelLoadError(
            "is no local folder, and huggingface_hub, which could download it, is not installed", path=hub_id
        ) from None
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=[*HUB_PATTERNS, *weights]))
    except Exception as error:  # the hub client raises errors of its own, of requests and of the OS
        raise ModelLoadError(
            f"is no local folder, and the download failed ({type(error).__name__}: {error}); check the name and the "
            "network, or download the model elsewhere and give its folder",
            path=hub_id,
        ) from error


def gguf_of(model_path: str | None, folder: Path, load_format: str = "auto") -> Path | None:
    """The GGUF file that a model's weights come from; None if they do not. Raises ModelLoadError."""
    if model_path is not None and model_path.endswith(".gguf") and Path(model_path).expanduser().is_file():
        return Path(model_path).expanduser()
    if load_format not in ("auto", "gguf") or (load_format == "auto" and any(folder.glob("*.safetensors*"))):
        return None
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1 or (load_format == "gguf" and not files):
        raise ModelLoadError(f"holds {len(files)} *.gguf files; give the path of one as model_path", path=str(folder))
    return files[0] if files else None


def load_config(
    folder: Path, *, context_length: int | None = None, impl: str = "auto", gguf: Path | None = None
) -> ModelConfig:
    """The model's config.json; for transformers' code as transformers reads it. Raises ModelLoadError.

    Of a GGUF file without a config.json beside it, its metadata.
    """
    if gguf is not None and not (folder / "config.json").exists():
        return ModelConfig.of_fields(gguf, GgufFile.open(gguf).config(), context_length=context_length)
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
    load_format: str = "auto",
    gguf: Path | None = None,
) -> CausalLM:
    """The model of `config.path` with its weights, in eval mode, from the files that `EngineConfig.load_format` names
    or from a GGUF file; with `is_embedding` without its vocabulary head.

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
        if load_format == "dummy":
            fill_at_random(model)
        else:
            stored = stored_tensors(config.path, load_format, gguf)
            fill(model, stored, config.path, check_finite=check_finite)
    return model


def stored_tensors(folder: Path, load_format: str, gguf: Path | None) -> Iterable[Stored]:
    """Where a model's tensors are. Raises ModelLoadError."""
    if gguf is not None:
        return GgufFile.open(gguf).checkpoint()
    return pickled_tensors(folder) if load_format == "pt" else merged(checkpoint_tensors(folder))


def fill_at_random(model: CausalLM) -> None:
    """Weights of no model, the same each time: normal with spread 0.02, norms 1."""
    rng = torch.Generator().manual_seed(0)
    for name, param in model.named_parameters():
        if param.dim() == 1 and "norm" in name.lower():
            param.fill_(1.0)
            continue
        flat = param.view(-1)
        for start in range(0, flat.numel(), RANDOM_STEP):
            piece = flat[start : start + RANDOM_STEP]
            piece.copy_(torch.randn(piece.numel(), generator=rng).mul_(0.02))


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, path: str) -> None:
    """Raise ModelLoadError if the tokenizer has text for ids that the model does not have.

    Special tokens beyond the model's ids are let be: some models are published with tokenizers of their larger kin.
    """
    beyond = [token for token in tokenizer.vocabulary.token_bytes[vocab_size:] if token]
    if beyond:
        raise ModelLoadError(
            f"the tokenizer has {len(beyond)} tokens, the first is {beyond[0].decode('utf-8', 'replace')!r}, for which "
            f"the model has no ids (vocab_size={vocab_size} in its config.json); is it another model's tokenizer?",
            path=path,
        )


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


def fill(model: CausalLM, stored: Iterable[Stored], folder: Path, *, check_finite: bool = True) -> None:
    """Copy the tensors into the model's parameters; each of them must be there exactly once."""
    targets = dict(model.checkpoint_targets())
    for file, tensors in groupby(stored, key=lambda tensor: tensor.file):
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
                        f"{list(target.shape)}; does config.json belong to these weights?",
                        path=str(file),
                    )
                if isinstance(tensor, StoredTensor):
                    _check_kind(tensor)
                    read_into(stream, tensor, target)
                else:
                    tensor.copy_into(target)
                if check_finite:
                    _check_finite(tensor, target)
    if targets:
        names = sorted(targets)
        raise ModelLoadError(
            f"{len(names)} tensors of {type(model).__name__} are in no file, the first is {names[0]!r}; the checkpoint "
            "is incomplete, or config.json belongs to another model",
            path=str(folder),
        )


def _check_unexpected(model: CausalLM, tensor: Stored, targets: Mapping[str, Tensor]) -> None:
    """Raise ModelLoadError unless the tensor is one that a checkpoint may hold in vain."""
    if model.is_ignored(tensor.name):
        return
    if tensor.name == "lm_head.weight" and model.config.tie_word_embeddings:
        return  # a copy of the embedding, which is the head
    raise ModelLoadError(
        f"tensor {tensor.name!r} has no place in {type(model).__name__}; does config.json belong to these weights?",
        path=str(tensor.file),
    )


def _check_kind(tensor: StoredTensor) -> None:
    if not tensor.dtype.is_floating_point:
        raise ModelLoadError(
            f"tensor {tensor.name!r} holds {str(tensor.dtype).removeprefix('torch.')}, no floating-point numbers: a "
            "quantised checkpoint? Use the model's plain one",
            path=str(tensor.file),
        )


def _check_finite(tensor: Stored, target: Tensor) -> None:
    # A sum is one pass without a temporary; only if it is not finite look closer (it may have overflowed).
    if torch.isfinite(target.sum(dtype=torch.float32)) or torch.isfinite(target).all():
        return
    bad = int((~torch.isfinite(target)).sum())
    raise ModelLoadError(
        f"tensor {tensor.name!r} holds {bad} values that are NaN or infinite; the file is damaged; download it again",
        path=str(tensor.file),
    )
