"""`load_tokenizer`: a model folder, or a model's name on the hub, to a `Tokenizer`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError
from .builtin_templates import builtin_template_name, load_chat_template
from .hf import HFTokenizer, SpecialToken
from .sentencepiece_tok import SentencePieceTokenizer, is_sentencepiece
from .template import ChatTemplate
from .tiktoken_tok import PATTERNS, SPECIALS, TiktokenTokenizer, read_ranks, read_tekken
from .tokenizer import Tokenizer

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Models whose files name the LlamaTokenizer class though transformers takes their tokenizer.json as it is.
_NOT_LLAMA = frozenset(
    "mistral mixtral ministral mistral3 phi3 phi3_v phimoe internlm2 internlm3 jamba minicpm3 persimmon fuyu nemotron "
    "llava llava_next vipllava arctic ernie4_5 ernie4_5_moe h2ovl_chat stablelm granite".split()
)
_FILES = ["*.json", "*.jinja", "additional_chat_templates/*", "*.model", "*.tiktoken"]


def load_tokenizer(path: str | Path, revision: str | None = None, chat_template: str | None = None) -> Tokenizer:
    """The tokenizer in a model folder, or of a model on the Hugging Face hub (`revision`: branch, tag or commit).

    `chat_template`: a built-in template's name or a file, instead of the model's own. Without either, a built-in one
    is taken if the model's name says that it speaks it. Raises ModelLoadError naming the file that is missing or
    wrong, TemplateError for a `chat_template` that is not there.
    """
    folder = _folder(path, revision)
    chat_template = chat_template or (builtin_template_name(str(path)) if not _has_template(folder) else None)
    return _load_folder(folder, chat_template)


def _load_folder(folder: Path, chat_template: str | None) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return load_hf(folder, chat_template)
    if (folder / "tekken.json").is_file():
        return load_tekken(folder, chat_template)
    ranks = [path for path in sorted(folder.glob("*.model")) if not is_sentencepiece(path)]
    if (folder / "tokenizer.model").is_file() and folder / "tokenizer.model" not in ranks:
        return load_sentencepiece(folder, chat_template)
    if ranks := [*sorted(folder.glob("*.tiktoken")), *ranks]:
        return load_tiktoken(folder, ranks[0], chat_template)
    raise ModelLoadError(
        "holds no tokenizer (tokenizer.json, tekken.json, tokenizer.model or *.tiktoken); download it, or give "
        "tokenizer_path",
        path=str(folder),
    )


def _folder(path: str | Path, revision: str | None) -> Path:
    folder = Path(path)
    if folder.is_file():
        return folder.parent
    if folder.is_dir():
        return folder
    if str(path).count("/") > 1 or str(path).startswith((".", "/", "~")):
        raise ModelLoadError("there is no such folder", path=str(path))
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        try:
            found = huggingface_hub.snapshot_download(
                str(path), revision=revision, allow_patterns=_FILES, local_files_only=True
            )
        except LocalEntryNotFoundError:
            found = huggingface_hub.snapshot_download(str(path), revision=revision, allow_patterns=_FILES)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelLoadError(
            f"is neither a folder nor a model that could be found on the hub: {error}", path=str(path)
        ) from None
    return Path(found)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if the file is not there. Raises ModelLoadError if it is no JSON object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"is not valid JSON: {error}", path=str(path)) from None
    if not isinstance(value, dict):
        raise ModelLoadError("must hold a JSON object", path=str(path))
    return value


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token if isinstance(token, str) else None


def special_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, ... of a tokenizer_config.json, as text."""
    texts = {name: _text(config.get(name)) for name in SPECIAL_NAMES}
    return {name: text for name, text in texts.items() if text}


def read_eos_ids(folder: Path) -> tuple[int, ...]:
    """The ids that end a generation by generation_config.json, or else by config.json."""
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list) and value:
            return tuple(int(item) for item in value)
    return ()


def _has_template(folder: Path) -> bool:
    return bool(_template_sources(folder, read_tokenizer_config(folder)))


def read_chat_template(folder: Path, config: Mapping[str, Any], instead: str | None = None) -> ChatTemplate | None:
    """The model's chat template(s), or `instead`: a built-in one's name or a file."""
    texts = special_texts(config)
    if instead is not None:
        return load_chat_template(instead, texts)
    sources = _template_sources(folder, config)
    return ChatTemplate(sources, texts) if sources else None


def _template_sources(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name. Files of their own win over the entry in tokenizer_config.json."""
    sources: dict[str, str] = {}
    if (folder / "chat_template.jinja").is_file():
        sources["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        sources[path.stem] = path.read_text(encoding="utf-8")
    if not sources:
        entry = config.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
        if isinstance(entry, str):
            sources["default"] = entry
        elif isinstance(entry, list):
            sources = {item["name"]: item["template"] for item in entry}
        elif isinstance(entry, dict):
            sources = dict(entry)
    return sources


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with special_tokens_map.json merged in where the former lists no added tokens."""
    config = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config.update(read_json(folder / "special_tokens_map.json"))
    return config


def load_hf(folder: Path, chat_template: str | None = None) -> HFTokenizer:
    """The tokenizer of `folder`/tokenizer.json with what the files beside it say. Raises ModelLoadError."""
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise ModelLoadError(f"cannot be read: {error}", path=str(folder / "tokenizer.json")) from None
    config = read_tokenizer_config(folder)
    if _is_llama_class(config, read_json(folder / "config.json"), backend):
        _as_llama_class(backend, config)
    _add_tokens(backend, config)
    template = read_chat_template(folder, config, chat_template)
    return HFTokenizer(
        backend,
        special_texts=special_texts(config),
        eos_ids=read_eos_ids(folder),
        chat_template=template,
        control_tokens=control_tokens(
            (token.content for token in backend.get_added_tokens_decoder().values()), config, template
        ),
    )


def load_sentencepiece(folder: Path, chat_template: str | None = None) -> SentencePieceTokenizer:
    """The tokenizer of `folder`/tokenizer.model. Raises ModelLoadError."""
    config = read_tokenizer_config(folder)
    return SentencePieceTokenizer(
        (folder / "tokenizer.model").read_bytes(),
        special_texts=special_texts(config),
        added=_added_specials(folder, config),
        eos_ids=read_eos_ids(folder),
        add_bos=bool(config.get("add_bos_token", not config)),
        add_eos=bool(config.get("add_eos_token", False)),
        chat_template=read_chat_template(folder, config, chat_template),
    )


def load_tiktoken(folder: Path, path: Path, chat_template: str | None = None) -> TiktokenTokenizer:
    """The tokenizer of a tiktoken file. Its pattern and special tokens stand in tokenizer_config.json (`pat_str`,
    `added_tokens_decoder`), or are known by the file's name. Raises ModelLoadError."""
    config = read_tokenizer_config(folder)
    ranks = read_ranks(path)
    pattern = config.get("pat_str") or PATTERNS.get(path.name)
    if not pattern:
        raise ModelLoadError(
            "holds no pattern to split text by, and none is known for this name: "
            'set "pat_str" in tokenizer_config.json beside it',
            path=str(path),
        )
    specials = {token.content: token.id for token in _added_specials(folder, config)}
    if not specials:
        specials = {text: len(ranks) + i for i, text in enumerate(SPECIALS.get(path.name, ()))}
    texts = special_texts(config)
    if path.name == "tokenizer.model" and not config:
        texts = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    return TiktokenTokenizer(
        ranks,
        pattern,
        specials=specials,
        special_texts=texts,
        eos_ids=read_eos_ids(folder),
        add_bos=bool(config.get("add_bos_token", not config)),
        chat_template=read_chat_template(folder, config, chat_template),
    )


def load_tekken(folder: Path, chat_template: str | None = None) -> TiktokenTokenizer:
    """The tokenizer of `folder`/tekken.json. Raises ModelLoadError."""
    ranks, pattern, specials = read_tekken(folder / "tekken.json")
    config = {"bos_token": "<s>", "eos_token": "</s>", **read_tokenizer_config(folder)}
    return TiktokenTokenizer(
        ranks,
        pattern,
        specials=specials,
        special_texts=special_texts(config),
        eos_ids=read_eos_ids(folder),
        add_bos=True,
        chat_template=read_chat_template(folder, config, chat_template),
    )


def _added_specials(folder: Path, config: Mapping[str, Any]) -> list[SpecialToken]:
    """Tokens beyond the vocabulary file, from tokenizer_config.json or added_tokens.json. All count as special."""
    listed = config.get("added_tokens_decoder") or {}
    tokens = [
        SpecialToken(value["content"], int(i), value.get("lstrip", False), value.get("rstrip", False))
        for i, value in listed.items()
    ]
    if not listed:
        tokens = [SpecialToken(text, int(i)) for text, i in read_json(folder / "added_tokens.json").items()]
    return tokens


def _is_llama_class(config: Mapping[str, Any], model_config: Mapping[str, Any], backend: Any) -> bool:
    """Whether transformers (5.x) builds its LlamaTokenizer class here, from no more than the file's vocabulary."""
    name = config.get("tokenizer_class") or model_config.get("tokenizer_class") or ""
    if name.removesuffix("Fast") != "LlamaTokenizer" or model_config.get("model_type") in _NOT_LLAMA:
        return False
    return "ByteLevel" not in f"{backend.pre_tokenizer} {backend.decoder}" and type(backend.model).__name__ == "BPE"


def _as_llama_class(backend: Any, config: Mapping[str, Any]) -> None:
    """Give the backend the steps of that class: a space before the text, with `legacy` also after special tokens."""
    from tokenizers import decoders, pre_tokenizers

    has_prefix = config.get("add_prefix_space") in (None, True)
    scheme = ("always" if config.get("legacy") else "first") if has_prefix else "never"
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.model.fuse_unk = True
    backend.model.byte_fallback = True
    backend.model.dropout = None


def control_tokens(added: Iterable[str], config: Mapping[str, Any], template: ChatTemplate | None) -> list[str]:
    """Added tokens that open or close a turn though the file does not call them special (DeepSeek's role marks).

    As in transformers: those that the tokenizer's config lists, or those that its chat template writes.
    """
    listed = config.get("chat_control_tokens")
    if isinstance(listed, list):
        return [token for token in added if token in listed]
    written = "\x00".join(template.sources.values()) if template else ""
    return [token for token in added if token and not token.isspace() and token in written]


def _add_tokens(backend: Any, config: Mapping[str, Any]) -> None:
    """Add the tokens of tokenizer_config.json that tokenizer.json lacks, and mark the named ones special."""
    from tokenizers import AddedToken

    def token_of(value: Any, **defaults: Any) -> Any:
        if isinstance(value, dict):
            names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
            return AddedToken(**{**defaults, **{name: value[name] for name in names if name in value}})
        return AddedToken(value, **defaults)

    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for _, value in sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0])):
        if value["content"] not in known or repr(known[value["content"]]) != repr(token_of(value)):
            known[value["content"]] = token_of(value)
            backend.add_tokens([known[value["content"]]])
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    named = [config[name] for name in SPECIAL_NAMES if _text(config.get(name))]
    for value in [*named, *(extra.values() if isinstance(extra, dict) else extra)]:
        text = _text(value)
        if text and not (text in known and known[text].special):
            backend.add_special_tokens([known.get(text) or token_of(value, special=True, normalized=False)])
