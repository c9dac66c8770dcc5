"""Pretrained encoders of text: sentences in, the embeddings of their tokens at every layer out.

Encoders come from outside: a package that ships one, a directory in the format of Hugging Face, or a Keras model file.
What they need beside this library is imported when they are opened.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np

from caps_tf.errors import UserError

WORDLLAMA = "wordllama"

_END_TOKENS = ("<|endoftext|>", "</s>", "[SEP]", "<eos>")


class TextEncoder(Protocol):
    """Turns sentences into token embeddings.

    Attributes:
        depth: embeddings per token, one for each layer, the lookup table's first.
        width: numbers in an embedding.
    """

    depth: int
    width: int

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, which end with the end-of-text token."""

    def spell(self, tokens: Sequence[int]) -> list[str]:
        """Each token as text, for people to read."""

    def embed(self, tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The embeddings of a batch of tokenized texts, each float32 [tokens, depth, width]."""

    def fingerprint(self) -> str:
        """Changes when the embeddings do."""


def open_encoder(name: str) -> TextEncoder:
    """Opens an encoder.

    Args:
        name: one of
            - wordllama: the table of 32,000 embeddings of 256 numbers that the package of this name ships (depth 1);
            - a directory in the format of Hugging Face (config.json, weights, tokenizer), read with the packages
              transformers and torch; depth is its layers and 1;
            - a Keras model file (.keras) from token numbers int32 [b, tokens], and if it has a second input their
              mask int32 [b, tokens], to embeddings [b, tokens, width] or [b, tokens, depth, width], or to a list of
              the former, one for each layer. Its tokens are described by a file beside it, <model>.tokenizer.json (of the
              package tokenizers) or <model>.vocabulary.txt: a token a line, first the end-of-text token, second the
              one for unknown words; sentences are then lower-cased and split at white space.

    Raises:
        UserError: there is no such encoder, or a package that it needs is missing.

    Example:
        >>> open_encoder("wordllama").depth  # doctest: +SKIP
        1
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: holds no config.json: give a directory in the format of Hugging Face")
        return HuggingFaceEncoder(path)
    if path.suffix == ".keras":
        return KerasEncoder(path)
    if name == WORDLLAMA:
        return WordLlamaEncoder()
    raise UserError(f"unknown encoder {name!r}: give {WORDLLAMA}, a Hugging Face directory, or a .keras file")


class WordLlamaEncoder:
    """The embedding table that the package wordllama ships; a token's embedding does not depend on its neighbours.

    Raises:
        UserError: the package is missing.
    """

    def __init__(self):
        try:
            import wordllama
        except ImportError:
            raise UserError(
                "the encoder wordllama is not installed: pip install '.[text]' (or pip install wordllama), "
                "or give another `encoder`"
            ) from None
        # By itself the package overlooks the tokenizer that it ships.
        model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
        self._table = np.asarray(model.embedding, np.float32)
        self._tokenizer = _FastTokenizer(model.tokenizer, WORDLLAMA)
        self.depth, self.width = 1, self._table.shape[1]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.tokenize(texts)

    def spell(self, tokens: Sequence[int]) -> list[str]:
        return self._tokenizer.spell(tokens)

    def embed(self, tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [self._table[list(sentence)][:, None] for sentence in tokens]

    def fingerprint(self) -> str:
        return f"{WORDLLAMA} {google_crc32c.value(self._table.tobytes()):08x}"


class HuggingFaceEncoder:
    """A model and tokenizer in a local directory, run by the packages transformers and torch.

    Raises:
        UserError: a package is missing, or the directory cannot be read.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise UserError(f"{directory}: needs the package {error.name}: pip install transformers torch") from None
        self._directory = Path(directory)
        self._torch = torch
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
            self._model = transformers.AutoModel.from_pretrained(directory, local_files_only=True).eval()
        except Exception as error:  # there are as many ways to fail as there are architectures
            raise UserError(f"{directory}: cannot be read as a model of Hugging Face: {error}") from error
        self._tokenizer = tokenizer
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if end is None:
            raise UserError(f"{directory}: its tokenizer has neither an end-of-text nor a separator token")
        self._end: int = end
        self.depth, self.width = self.embed([[self._end]])[0].shape[1:]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        sentences = self._tokenizer(list(texts), truncation=False)["input_ids"]
        return [_ended(sentence, self._end) for sentence in sentences]

    def spell(self, tokens: Sequence[int]) -> list[str]:
        return [self._tokenizer.decode([token]) for token in tokens]

    def embed(self, tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
        numbers, mask = (self._torch.from_numpy(array) for array in _padded(tokens, self._end, np.int64))
        with self._torch.inference_mode():
            layers = self._model(input_ids=numbers, attention_mask=mask, output_hidden_states=True).hidden_states
            embeddings = self._torch.stack(layers, dim=2).float().numpy()
        return _unpadded(embeddings, tokens)

    def fingerprint(self) -> str:
        return _files_fingerprint(path for path in sorted(self._directory.iterdir()) if path.is_file())


class KerasEncoder:
    """A Keras model file and the description of its tokens beside it; see `open_encoder`.

    Raises:
        UserError: a file is missing or cannot be read, or the model's outputs are no embeddings.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        if not self._path.is_file():
            raise UserError(f"{path}: no such file: give the encoder as a Keras model file")
        import keras

        self._ops = keras.ops
        try:
            self._model = keras.saving.load_model(path, compile=False)
        except Exception as error:  # an archive, its JSON and every layer in it have errors of their own
            raise UserError(f"{path}: cannot be loaded by Keras: {error}") from error
        described, vocabulary = (self._path.with_suffix(end) for end in (".tokenizer.json", ".vocabulary.txt"))
        self._description = described if described.is_file() else vocabulary
        if not self._description.is_file():
            raise UserError(f"{path}: needs {described.name} or {vocabulary.name} beside it, which tell its tokens")
        self._tokenizer = _open_fast_tokenizer(described) if described.is_file() else _Vocabulary(vocabulary)
        shape = self.embed([[self._tokenizer.end]])[0].shape
        if len(shape) != 3:
            raise UserError(f"{path}: puts out shape {shape} for a sentence instead of [tokens, depth, width]")
        self.depth, self.width = shape[1:]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.tokenize(texts)

    def spell(self, tokens: Sequence[int]) -> list[str]:
        return self._tokenizer.spell(tokens)

    def embed(self, tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
        arrays = _padded(tokens, self._tokenizer.end, np.int32)
        outputs = self._model(list(arrays) if len(self._model.inputs) == 2 else arrays[0])
        if isinstance(outputs, (list, tuple)):
            outputs = self._ops.stack(outputs, axis=2)
        embeddings = np.asarray(self._ops.convert_to_numpy(outputs), np.float32)
        return _unpadded(embeddings[:, :, None] if embeddings.ndim == 3 else embeddings, tokens)

    def fingerprint(self) -> str:
        return _files_fingerprint([self._path, self._description])


class _FastTokenizer:
    """A tokenizer of the package tokenizers."""

    def __init__(self, tokenizer: Any, name: str):
        ends = (tokenizer.token_to_id(token) for token in _END_TOKENS)
        end = next((end for end in ends if end is not None), None)
        if end is None:
            raise UserError(f"{name}: knows no end-of-text token (none of {', '.join(_END_TOKENS)})")
        self.end: int = end
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [_ended(sentence.ids, self.end) for sentence in self._tokenizer.encode_batch(list(texts))]

    def spell(self, tokens: Sequence[int]) -> list[str]:
        return [self._tokenizer.decode([token], skip_special_tokens=False) for token in tokens]


def _open_fast_tokenizer(path: Path) -> _FastTokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(f"{path}: needs the package tokenizers: pip install tokenizers") from None
    try:
        return _FastTokenizer(Tokenizer.from_file(os.fspath(path)), str(path))
    except UserError:
        raise
    except Exception as error:  # the package raises Exception itself
        raise UserError(f"{path}: cannot be read as a tokenizer: {error}") from None


class _Vocabulary:
    """Words by line number: the end-of-text token is 0, unknown words are 1."""

    end = 0

    def __init__(self, path: Path):
        try:
            words = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        if len(words) < 2:
            raise UserError(f"{path}: needs two lines at least, the end-of-text token and the one for unknown words")
        self._words = words
        self._numbers: Mapping[str, int] = {word: number for number, word in enumerate(words)}

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*(self._numbers.get(word, 1) for word in text.lower().split()), self.end] for text in texts]

    def spell(self, tokens: Sequence[int]) -> list[str]:
        return [self._words[token] for token in tokens]


def _ended(tokens: Sequence[int], end: int) -> list[int]:
    return [*tokens] if tokens and tokens[-1] == end else [*tokens, end]


def _padded(tokens: Sequence[Sequence[int]], end: int, dtype: type[np.integer]) -> tuple[np.ndarray, np.ndarray]:
    """Sentences and their mask as arrays [b, tokens], filled up with the end-of-text token."""
    longest = max(map(len, tokens))
    numbers = np.full((len(tokens), longest), end, dtype)
    mask = np.zeros_like(numbers)
    for row, sentence in enumerate(tokens):
        numbers[row, : len(sentence)] = sentence
        mask[row, : len(sentence)] = 1
    return numbers, mask


def _unpadded(embeddings: np.ndarray, tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [embedding[: len(sentence)] for embedding, sentence in zip(embeddings, tokens, strict=True)]


def _files_fingerprint(paths) -> str:
    crc = 0
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 22):
                crc = google_crc32c.extend(crc, chunk)
    return f"{crc:08x}"
