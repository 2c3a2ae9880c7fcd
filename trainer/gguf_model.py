"""BERT encoders as GGUF, for llama.cpp and Ollama, and the same vectors from the written file's tensors alone.

Names and metadata are those of llama.cpp's architecture ``bert``. It reads words in lower case and without
accents, by longest match against a vocabulary in which a word's start carries U+2581; so does the check.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from clickloop.errors import SettingsError
from trainer.model import Vectors, normalised

ARCHITECTURE = "bert"
WORD_START = "\u2581"
LONGEST_WORD = 100
"""Characters; what is longer is unknown to WordPiece."""
_UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
_POOLING = {"mean": 1, "cls": 2}

Floats = NDArray[np.float32]


def write_gguf(encoder: SentenceTransformer, path: Path, *, name: str, quantize: bool) -> None:
    """Write an encoder of the BERT family. Raises SettingsError for one that llama.cpp would read otherwise."""
    import gguf

    bert, tokenizer, pooling = _parts(encoder)
    config = bert.config
    writer = gguf.GGUFWriter(str(path), ARCHITECTURE)
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(_POOLING[pooling]))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if quantize else gguf.LlamaFileType.ALL_F32)
    writer.add_token_type_count(config.type_vocab_size)
    _add_vocabulary(writer, tokenizer, gguf)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config.num_hidden_layers)
    for own, tensor in bert.state_dict().items():
        if own in _UNUSED:
            continue
        theirs = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise SettingsError(f"--as gguf: llama.cpp's {ARCHITECTURE} has no tensor for {own}")
        data = tensor.float().cpu().numpy()
        # What is looked up or added stays as it is, as llama.cpp's own quantisation leaves it.
        if quantize and data.ndim == 2 and ".blk." in f".{theirs}" and data.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(theirs, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _parts(encoder: SentenceTransformer) -> tuple[Any, Any, str]:
    """The transformer, its tokenizer and how it pools. Raises SettingsError for what llama.cpp can't do."""
    kinds = [type(module).__name__ for module in encoder]
    first = encoder[0]
    bert, tokenizer = getattr(first, "model", None), encoder.tokenizer
    kind = getattr(getattr(bert, "config", None), "model_type", "nothing known")
    if kind != ARCHITECTURE or kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise SettingsError(f"--as gguf: only BERT encoders are written, this is {kind} ({', '.join(kinds)})")
    if any(encoder.prompts.values()):
        raise SettingsError("--as gguf: a GGUF holds no prompt, and this encoder puts one before each text")
    pooling = str(encoder[1].pooling_mode)
    if pooling not in _POOLING:
        raise SettingsError(f"--as gguf: pooling is mean or cls in llama.cpp, this encoder's is {pooling}")
    if tokenizer.tokenize("É") != tokenizer.tokenize("e"):
        raise SettingsError(
            "--as gguf: llama.cpp reads BERT's words in lower case and without accents, this doesn't"
        )
    return bert, tokenizer, pooling


def _add_vocabulary(writer: Any, tokenizer: Any, gguf: Any) -> None:
    special = set(tokenizer.all_special_ids)
    tokens, types = [], []
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        control = number in special
        types.append(gguf.TokenType.CONTROL if control else gguf.TokenType.NORMAL)
        tokens.append(token if control else token[2:] if token.startswith("##") else WORD_START + token)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_sep_token_id(tokenizer.sep_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_mask_token_id(tokenizer.mask_token_id)
    writer.add_bos_token_id(tokenizer.cls_token_id)
    writer.add_eos_token_id(tokenizer.sep_token_id)


def modelfile(weights: str, *, tokens: int) -> str:
    """For ``ollama create NAME -f Modelfile``; ``tokens`` is how many of a text the encoder was made to read."""
    return f"FROM ./{weights}\nPARAMETER num_ctx {tokens}\n"


def reader(path: Path, *, tokens: int) -> Callable[[Sequence[str]], Vectors]:
    """Vectors from the file alone: its vocabulary, its figures and its tensors, in numpy.

    The mathematics is BERT's (Devlin et al. 2019). It stands in for llama.cpp, which isn't run here.
    """
    import gguf

    found = gguf.GGUFReader(str(path))
    tensors = {
        tensor.name: np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        for tensor in found.tensors
    }
    fields = {name: field.contents() for name, field in found.fields.items()}
    words = {token: number for number, token in enumerate(fields["tokenizer.ggml.tokens"])}

    def vectors(texts: Sequence[str]) -> Vectors:
        return normalised(
            np.stack([_vector(tokenized(text, words, fields, tokens), tensors, fields) for text in texts])
        )

    return vectors


def tokenized(text: str, words: dict[str, int], fields: dict[str, Any], tokens: int) -> list[int]:
    """Ids by longest match, as llama.cpp's WordPiece does, between the tokens that begin and end a text."""
    ids: list[int] = []
    for word in _words(text):
        ids += _pieces(WORD_START + word, words) or [fields["tokenizer.ggml.unknown_token_id"]]
    begin, end = fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]
    return [begin, *ids[: tokens - 2], end]


def _words(text: str) -> list[str]:
    out: list[str] = []
    for letter in unicodedata.normalize("NFD", text.lower()):
        kind = unicodedata.category(letter)
        if kind == "Mn" or letter in "\0\ufffd" or (kind in {"Cc", "Cf"} and letter not in "\t\n\r"):
            continue
        alone = (
            kind.startswith("P") or (letter.isascii() and kind.startswith("S")) or 0x4E00 <= ord(letter) <= 0x9FFF
        )
        out.append(f" {letter} " if alone else letter)
    return "".join(out).split()


def _pieces(word: str, words: dict[str, int]) -> list[int]:
    """Empty where the word can't be made of the vocabulary's pieces."""
    found: list[int] = []
    start = 0
    while start < len(word) <= LONGEST_WORD:
        end = next((e for e in range(len(word), start, -1) if word[start:e] in words), 0)
        if not end:
            return []
        found.append(words[word[start:end]])
        start = end
    return found


def _vector(ids: list[int], w: dict[str, Floats], fields: dict[str, Any]) -> Floats:
    """(dim,) of one text."""
    eps, heads = fields["bert.attention.layer_norm_epsilon"], fields["bert.attention.head_count"]
    x = w["token_embd.weight"][ids] + w["position_embd.weight"][: len(ids)] + w["token_types.weight"][0]
    x = _layer_norm(x, w, "token_embd_norm", eps)
    for number in range(fields["bert.block_count"]):
        block = f"blk.{number}."
        attended = _linear(_attention(x, w, block, heads), w, f"{block}attn_output")
        x = _layer_norm(x + attended, w, f"{block}attn_output_norm", eps)
        grown = _linear(_gelu(_linear(x, w, f"{block}ffn_up")), w, f"{block}ffn_down")
        x = _layer_norm(x + grown, w, f"{block}layer_output_norm", eps)
    return np.asarray(x[0] if fields["bert.pooling_type"] == _POOLING["cls"] else x.mean(axis=0), np.float32)


def _attention(x: Floats, w: dict[str, Floats], block: str, heads: int) -> Floats:
    q, k, v = (
        _linear(x, w, f"{block}attn_{part}").reshape(len(x), heads, -1).transpose(1, 0, 2) for part in "qkv"
    )
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (chances / chances.sum(axis=-1, keepdims=True)) @ v
    return np.asarray(mixed.transpose(1, 0, 2).reshape(len(x), -1), np.float32)


def _linear(x: Floats, w: dict[str, Floats], name: str) -> Floats:
    return np.asarray(x @ w[f"{name}.weight"].T + w[f"{name}.bias"], np.float32)


def _layer_norm(x: Floats, w: dict[str, Floats], name: str, eps: float) -> Floats:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return np.asarray(scaled * w[f"{name}.weight"] + w[f"{name}.bias"], np.float32)


def _gelu(x: Floats) -> Floats:
    from scipy.special import erf

    return np.asarray(0.5 * x * (1.0 + erf(x / np.sqrt(2.0))), np.float32)
