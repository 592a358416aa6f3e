"""Read training data from files: arrays, tables, folders of images, data sets of Hugging Face."""

from __future__ import annotations

import contextlib
import csv
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fxelastic.cli.data_paths import TABLES
from fxelastic.edge.searching.columns import Ragged, column_of
from fxelastic.errors import UsageError
from fxelastic.files import open_regular

if TYPE_CHECKING:
    from fxelastic.cli.model_inputs import ModelInputs

#: The prefix of the arrays to validate on.
VALIDATION = "val_"

#: The names of the targets, the first of them in files that this package writes.
LABELS = ("targets", "y")

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
_LABEL_COLUMNS = (*LABELS, "target", "label", "labels", "class")
_TRAIN, _HELD_OUT = ("train", "training"), ("val", "valid", "validation", "test")
# The mean and the standard deviation of ImageNet's pixels.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MAX_NPY_BYTES = 2**40
# A larger picture takes hundreds of MB when it is decoded.
_MOST_PIXELS = 2**26
# What files of another form raise.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, SyntaxError)


@dataclass(frozen=True)
class Images:
    """Pictures in files, read when they are needed: ``(N, C, H, W)`` of 32-bit floats.

    They are resized and cropped to one size. Colours are normalised by the mean and the standard
    deviation of ImageNet; grey levels are from 0 to 1.

    Attributes:
        paths: The files.
        size: The height and width of each picture.
        mode: ``RGB`` or ``L``.
    """

    paths: Sequence[Path]
    size: tuple[int, int]
    mode: str

    dtype = np.dtype(np.float32)
    ndim = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as an array."""
        return (len(self.paths), 3 if self.mode == "RGB" else 1, *self.size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Sequence[int]) -> np.ndarray[Any, Any]:
        return np.stack([self._read(self.paths[i]) for i in indices])

    def _read(self, path: Path) -> np.ndarray[Any, Any]:
        from PIL import ImageOps

        with _opened(path) as image:
            fitted = ImageOps.fit(image.convert(self.mode), self.size[::-1])
            pixels = np.asarray(fitted, np.float32) / 255
        if self.mode == "L":
            return pixels[None]
        normal = (pixels - np.array(_MEAN, np.float32)) / np.array(_DEVIATION, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))


Column: TypeAlias = "np.ndarray[Any, Any] | Images"


def read_columns(path: Path, model: ModelInputs | None) -> dict[str, Column | Ragged]:
    """The arrays of a file or folder.

    Args:
        path: An ``.npz`` file; an ``.npy`` file with the only input; a table of numbers as ``.csv``
            or ``.tsv``, with the names of its columns in the first line; a folder of images
            ``class/name.jpg``, or ``train/class/name.jpg`` and ``val/class/name.jpg``; or a folder
            that ``save_to_disk`` of Hugging Face's ``datasets`` wrote.
        model: The model's inputs, which decide the size of images and the columns of tables.

    Returns:
        A column for each input, ``x`` for the only one, and ``targets`` or ``y``; those to validate
        on begin with ``val_``. Samples of different sizes are `Ragged`, as lists of a data set are,
        or padded or joined arrays with further columns as in `columns_of`.

    Raises:
        UsageError: It can't be read, has another form, or needs a package that is not installed.
    """
    from fxelastic.edge.npz_files import read_npz

    if path.is_dir():
        if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            return _from_hugging_face(path, model)
        return dict(_from_images(path, model))
    if path.suffix.lower() == ".npz":
        return {name: _comparable(name, array, path) for name, array in read_npz(path).items()}
    if path.suffix.lower() == ".npy":
        return {"x": _array(path)}
    return dict(_from_table(path))


def _comparable(name: str, array: np.ndarray[Any, Any], path: Path) -> np.ndarray[Any, Any]:
    """An array; unsigned labels as signed ones, since torch does not compare the others."""
    if array.dtype.kind != "u" or name.removeprefix(VALIDATION) not in LABELS:
        return array
    if array.size and array.max() >= 2**63:
        raise _unreadable(path, f"labels {name} below 2^63", str(array.max()))
    return array.astype(np.int64)


def _array(path: Path) -> np.ndarray[Any, Any]:
    from fxelastic.edge.array_bytes import read_npy

    try:
        with open_regular(path, follow=True) as file:
            found = read_npy(file, _MAX_NPY_BYTES)
    except OSError as e:
        raise _unreadable(path, "an .npy file, as written by numpy.save", e) from e
    if found is None:
        raise _unreadable(path, "an .npy file, as written by numpy.save", "an empty file")
    return found


def _from_table(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    expected = "a line of names, then a line of numbers for each sample"
    try:
        with (
            open_regular(path, follow=True) as raw,
            # Spreadsheets begin a file with a byte-order mark.
            open(raw.fileno(), encoding="utf-8-sig", newline="", closefd=False) as file,
        ):
            names, *rows = csv.reader(file, delimiter=TABLES[path.suffix.lower()])
        rows = [row for row in rows if row]
        table = np.array(rows, np.float64)
        if table.ndim != 2 or table.shape[1] != len(names):
            raise ValueError(f"{len(names)} names and rows of other lengths")
    except (OSError, ValueError, csv.Error) as e:
        raise _unreadable(path, expected, e) from e
    names = [name.strip() for name in names]
    label = next((name for name in names if name.lower() in _LABEL_COLUMNS), None)
    features = [i for i, name in enumerate(names) if name != label]
    if not features:
        raise _unreadable(path, expected, "targets alone")
    columns = {"x": table[:, features].astype(np.float32)}
    if label is not None:
        values = table[:, names.index(label)]
        if not (np.abs(values) < 2**53).all():
            raise _unreadable(path, f"numbers in the column {label}", "NaN, or a number too large")
        whole = bool((values == np.round(values)).all())
        columns["targets"] = values.astype(np.int64 if whole else np.float32)
    return columns


def _from_images(path: Path, model: ModelInputs | None) -> dict[str, Column]:
    _require("PIL", "pillow", f"{path} is a folder, and images need the package Pillow")
    held_out = next((path / name for name in _HELD_OUT if (path / name).is_dir()), None)
    training = next((path / name for name in _TRAIN if (path / name).is_dir()), None)
    if training is None:
        training, held_out = path, None
    classes = sorted(entry.name for entry in training.iterdir() if entry.is_dir())
    files, labels = _labelled(training, classes)
    if not files:
        raise UsageError(
            f"--data {path} has no images",
            expected="class/name.jpg, or train/class/name.jpg and val/class/name.jpg",
            got=", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty folder",
        )
    sizes, modes = _headers(files)
    wanted = None if model is None else model.image_size()
    chosen = wanted or (next(iter(sizes)) if len(sizes) == 1 else None)
    if chosen is None:
        few = ", ".join(f"{h}x{w}" for h, w in sorted(sizes)[:3])
        raise UsageError(
            f"the images of {path} have different sizes, and the model does not declare its own",
            expected="the size that the model takes",
            got=f"{len(sizes)} sizes: {few}, …",
            fix="pass --example-input 1x3x224x224",
        )
    mode = "L" if modes == {"L"} else "RGB"
    columns: dict[str, Column] = {"x": Images(files, chosen, mode), "targets": np.array(labels)}
    if held_out is not None:
        files, labels = _labelled(held_out, classes)
        if files:
            columns |= {
                f"{VALIDATION}x": Images(files, chosen, mode),
                f"{VALIDATION}targets": np.array(labels),
            }
    return columns


def _labelled(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    """The images of each class, and the classes' numbers."""
    found = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in _IMAGES
    ]
    return [file for file, _ in found], [label for _, label in found]


def _headers(files: Sequence[Path]) -> tuple[set[tuple[int, int]], set[str]]:
    """The sizes and modes of images, of which only the headers are read."""
    sizes, modes = set(), set()
    for file in files:
        with _opened(file) as image:
            sizes.add((image.height, image.width))
            modes.add(image.mode)
    return sizes, modes


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An image, whose errors while it is decoded are those of the file."""
    from PIL import Image, UnidentifiedImageError

    expected = f"a picture of at most {_MOST_PIXELS:,} pixels"
    try:
        with open_regular(path, follow=True) as raw, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open(raw.fileno(), "rb", closefd=False) as file, Image.open(file) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise ValueError(f"{image.width:,} x {image.height:,} pixels")
                yield image
    except UnidentifiedImageError as e:
        raise _unreadable(path, expected, "not a picture that Pillow knows") from e
    # Its decoders raise what they meet.
    except (OSError, *_MALFORMED, Image.DecompressionBombError) as e:
        raise _unreadable(path, expected, e) from e


def _from_hugging_face(path: Path, model: ModelInputs | None) -> dict[str, Column | Ragged]:
    what = f"{path} is a data set of Hugging Face, which needs the package datasets"
    datasets = _require("datasets", "datasets", what)
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, *_MALFORMED) as e:
        raise _unreadable(path, "a folder that save_to_disk wrote", e) from e
    known = None if model is None else model.names()
    if not isinstance(found, Mapping):
        return _columns_of(found, path, known)
    training = next((name for name in _TRAIN if name in found), next(iter(found)))
    held_out = next((name for name in _HELD_OUT if name in found and name != training), None)
    columns = _columns_of(found[training], path, known)
    if held_out is not None:
        rest = _columns_of(found[held_out], path, known)
        columns |= {f"{VALIDATION}{name}": column for name, column in rest.items()}
    return columns


def _columns_of(found: Any, path: Path, known: Sequence[str] | None) -> dict[str, Column | Ragged]:
    """The columns of a data set that hold targets, or what the model takes."""
    columns: dict[str, Column | Ragged] = {}
    for name in found.column_names:
        label = name.lower() in _LABEL_COLUMNS
        if known is not None and len(known) > 1 and name not in known and not label:
            continue
        values = found.select_columns([name]).with_format("numpy")[:][name]
        array = column_of(list(values), name)
        dtype = array.items[0].dtype if isinstance(array, Ragged) else array.dtype
        if dtype.kind not in "fiub":
            continue  # texts and names
        if dtype == np.float64:
            array = _as_float32(array)
        columns["targets" if label else name] = array
    if not columns:
        raise _unreadable(path, "columns of numbers", ", ".join(found.column_names))
    return columns


def _as_float32(column: np.ndarray[Any, Any] | Ragged) -> np.ndarray[Any, Any] | Ragged:
    if isinstance(column, Ragged):
        return Ragged(tuple(item.astype(np.float32) for item in column.items))
    return column.astype(np.float32)


def _require(module: str, package: str, what: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as e:
        raise UsageError(
            what, expected=f"{package} to be installed", got=str(e), fix=f"pip install {package}"
        ) from e


def _unreadable(path: Path, expected: str, error: object) -> UsageError:
    got = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
    return UsageError(f"--data {path} can't be read", expected=expected, got=got)
