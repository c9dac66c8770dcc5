"""Sharded, resumable conversion of numbered rows into a TensorFlow Datasets directory.

The directory holds

    conversion.json                      what is being converted and how, written first
    <name>-<split>.tfrecord-0000i-of-0000n   the shards, each under a temporary name until it is whole and verified
    features.json, *.labels.txt, dataset_info.json   metadata; `dataset_info.json` comes last: where it is, all is there

A shard is a fixed slice of a seeded permutation of the rows, so its bytes depend neither on the number of threads nor
on how often the conversion was interrupted. Threads, not processes: Pillow releases Python's global lock while it
encodes, and memory then does not grow with the number of cores, the source is mapped only once, and a killed
conversion leaves no orphans behind.
"""

import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds

from caps_tf.data import records
from caps_tf.errors import UserError
from caps_tf.files import check_space, locked, write_atomically
from caps_tf.progress import Progress

PathLike = str | os.PathLike[str]

MANIFEST = "conversion.json"
_METADATA = "dataset_info.json"
_TEMPORARY = ".incomplete"


class RecordSource(Protocol):
    """Numbered rows that become records. Its methods are called from several threads at once."""

    def __len__(self) -> int:
        """The number of rows."""

    def examples(self, rows: Sequence[int]) -> Iterator[Mapping[str, bytes | str | int]]:
        """The features of these rows, in this order, encoded as the dataset's schema wants them."""

    def fingerprint(self) -> str:
        """Changes when the content of the rows does."""

    def max_bytes(self) -> int:
        """An upper bound of the disk space that the records need."""


@dataclass(frozen=True)
class Schema:
    """What TensorFlow Datasets tells about a directory.

    Attributes:
        name: of the dataset; a lower-case identifier.
        version: of the schema, like "1.0.0".
        features: types and shapes of a record's features.
        supervised_keys: the features that are the input and the label.
        description, homepage: shown by `tfds.builder(...).info`.
    """

    name: str
    version: str
    features: tfds.features.FeaturesDict
    supervised_keys: tuple[str, str]
    description: str
    homepage: str = ""


def convert(
    directory: PathLike,
    schema: Schema,
    sources: Mapping[str, RecordSource],
    *,
    num_shards: int = 16,
    seed: int = 0,
    num_threads: int | None = None,
    overwrite: bool = False,
) -> int:
    """Writes every split as TFRecord shards with TFDS metadata, or what is missing of them.

    A second run after a kill keeps the shards that are whole; after a success it verifies all of them and writes
    nothing; with another source, schema, seed or number of shards it starts from scratch.

    Args:
        directory: where to write; created if missing.
        schema: name, features and description.
        sources: the rows of each split, e.g. under "train" and "test".
        num_shards: files a split (fewer if a split has fewer rows).
        seed: of the order of the records.
        num_threads: all cores by default.
        overwrite: start from scratch in any case.

    Returns:
        The number of shards written, 0 if the directory was complete.

    Raises:
        UserError: the directory cannot be written, is being written by another process, has too little space left,
            or holds a dataset that this function did not write.
    """
    directory = Path(directory)
    try:
        with locked(directory, "another conversion is writing it: wait for its end"):
            _check_space(directory, schema, sources)
            _prepare(directory, _plan(schema, sources, num_shards, seed), overwrite)
            shards = _shards(directory, schema.name, sources, num_shards, seed)
            written = _write_shards(shards, num_threads or os.cpu_count() or 1)
            if not (directory / _METADATA).exists():
                _write_metadata(directory, schema, shards)
            return written
    except OSError as error:
        raise UserError(f"{error.filename or directory}: cannot be written: {error.strerror or error}") from None


def _plan(schema: Schema, sources: Mapping[str, RecordSource], num_shards: int, seed: int) -> dict[str, Any]:
    """Everything that decides the bytes of the result."""
    return {
        "name": schema.name,
        "version": schema.version,
        "features": schema.features.to_json(),
        "class_names": {
            key: feature.names
            for key, feature in schema.features.items()
            if isinstance(feature, tfds.features.ClassLabel)
        },
        "sources": {split: source.fingerprint() for split, source in sources.items()},
        "num_shards": num_shards,
        "seed": seed,
    }


def _prepare(directory: Path, plan: Mapping[str, Any], overwrite: bool) -> None:
    """Removes what another plan, or a killed conversion, left behind."""
    manifest, metadata = directory / MANIFEST, directory / _METADATA
    text = json.dumps(plan, indent=1, sort_keys=True)
    if metadata.exists() and not manifest.exists() and not overwrite:
        raise UserError(f"{directory}: holds a dataset from elsewhere: give `overwrite` to replace it")
    if overwrite or not manifest.exists() or manifest.read_text() != text:
        # The metadata first: without it nobody takes the rest for a whole dataset.
        for pattern in (_METADATA, MANIFEST, "features.json", "*.labels.txt", "*.tfrecord-*-of-*"):
            for path in sorted(directory.glob(pattern)):
                path.unlink()
        write_atomically(manifest, text.encode())
    for path in directory.glob("*" + _TEMPORARY):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_space(directory: Path, schema: Schema, sources: Mapping[str, RecordSource]) -> None:
    present = sum(path.stat().st_size for path in directory.glob(f"{schema.name}-*.tfrecord-*"))
    if not (directory / _METADATA).exists():
        check_space(directory, sum(source.max_bytes() for source in sources.values()) - present)


@dataclass(frozen=True)
class _Shard:
    path: Path
    split: str
    source: RecordSource
    rows: np.ndarray


def _shards(
    directory: Path, name: str, sources: Mapping[str, RecordSource], num_shards: int, seed: int
) -> list[_Shard]:
    shards = []
    for index, (split, source) in enumerate(sources.items()):
        order = np.random.Generator(np.random.PCG64([seed, index])).permutation(len(source))
        slices = np.array_split(order, min(num_shards, len(source)))
        for number, rows in enumerate(slices):
            path = directory / f"{name}-{split}.tfrecord-{number:05d}-of-{len(slices):05d}"
            shards.append(_Shard(path, split, source, rows))
    return shards


def _write_shards(shards: Sequence[_Shard], num_threads: int) -> int:
    stop = threading.Event()
    lock = threading.Lock()
    with Progress(sum(len(shard.rows) for shard in shards), "records", label="converting") as progress:

        def count(done: int) -> None:
            with lock:
                progress.update(done)
            if stop.is_set():
                raise InterruptedError(errno.EINTR, "interrupted")

        def ensure(shard: _Shard) -> bool:
            if _is_whole(shard.path, len(shard.rows)):
                count(len(shard.rows))
                return False
            (shard.path.parent / _METADATA).unlink(missing_ok=True)
            _write_shard(shard, count)
            return True

        with ThreadPoolExecutor(num_threads) as pool:
            futures = [pool.submit(ensure, shard) for shard in shards]
            try:
                return sum(future.result() for future in as_completed(futures))
            finally:
                # After an error or Ctrl-C the other threads must not finish their shards first.
                stop.set()
                pool.shutdown(cancel_futures=True)


def _write_shard(shard: _Shard, count: Callable[[int], None]) -> None:
    def encoded() -> Iterator[bytes]:
        for example in shard.source.examples(shard.rows.tolist()):
            yield records.encode_example(example)
            count(1)

    temporary = shard.path.with_name(shard.path.name + _TEMPORARY)
    try:
        records.write_records(temporary, encoded())
        if not _is_whole(temporary, len(shard.rows)):
            raise OSError(errno.EIO, "what was written does not read back", str(temporary))
        temporary.replace(shard.path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_whole(path: Path, num_records: int) -> bool:
    try:
        return sum(1 for _ in records.read_records(path)) == num_records
    except (FileNotFoundError, ValueError):
        return False


def _write_metadata(directory: Path, schema: Schema, shards: Sequence[_Shard]) -> None:
    template = tfds.core.ShardedFileTemplate(data_dir=directory, dataset_name=schema.name, filetype_suffix="tfrecord")
    splits = []
    for split in dict.fromkeys(shard.split for shard in shards):
        mine = [shard for shard in shards if shard.split == split]
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(shard.rows) for shard in mine],
                num_bytes=sum(shard.path.stat().st_size for shard in mine),
                filename_template=template,
            )
        )
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=schema.name, version=tfds.core.Version(schema.version), data_dir=os.fspath(directory), module_name=""
        ),
        features=schema.features,
        supervised_keys=schema.supervised_keys,
        description=schema.description,
        homepage=schema.homepage,
    )
    info.set_file_format(tfds.core.FileFormat.TFRECORD)
    info.set_splits(tfds.core.SplitDict(splits))
    with tempfile.TemporaryDirectory(dir=directory, suffix=_TEMPORARY) as temporary:
        info.write_to_directory(temporary)
        for path in sorted(Path(temporary).iterdir(), key=lambda path: path.name == _METADATA):
            path.replace(directory / path.name)
