"""Lists the files of a folder, and describes them in errors. Hidden files are skipped."""

from collections.abc import Iterable
from pathlib import Path

IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LABEL_TYPES = (".png", ".tif", ".tiff", ".bmp", ".gif")
VOLUMES = (
    "volumes are out of scope: this trainer reads 2-D images; docs/guide/volumes.md shows the density loss "
    "on volumes"
)
SHAPES = "polygons and boxes must be exported as masks, one PNG per image"
# Endings of files that the trainer cannot read, and what to do with them.
ADVICE = (
    ((".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".dcm"), VOLUMES),
    ((".npy", ".npz", ".mat", ".h5"), "arrays must be saved as PNG"),
    ((".json", ".xml", ".txt"), SHAPES),
    ((".heic", ".heif", ".avif", ".jp2", ".dng"), "images must be saved as JPEG or PNG"),
)


def files(folder: Path, endings: Iterable[str] = ("",)) -> list[Path]:
    """Returns the files of a folder with one of the endings, in any case, sorted. Hidden files are skipped."""
    endings = tuple(endings)
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(endings)
        and not path.name.startswith(".")
        and not path.is_dir()
    )


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders in a folder, sorted, without hidden ones and macOS's __MACOSX."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


def list_images(folder: Path) -> list[Path]:
    """Returns the images of a folder, sorted. A folder without images is an error."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; {contents(folder.parent)}")
    images = files(folder, IMAGE_TYPES)
    if not images:
        deeper = "; folders in it are not searched" if subfolders(folder) else ""
        raise ValueError(
            f"folder {folder} must hold images ({' '.join(IMAGE_TYPES)}), got none; {contents(folder)}{deeper}"
        )
    return images


def contents(folder: Path) -> str:
    """Describes the contents of a folder, with advice about files that the trainer cannot read."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    found = [f"{path.name}/" for path in subfolders(folder)] + [path.name for path in files(folder)]
    shown = ", ".join(found[:6]) + (f" and {len(found) - 6} more" if found[6:] else "")
    text = f"{folder.name or folder}/ holds {shown or 'nothing'}"
    for endings, what in ADVICE:
        if files(folder, endings):
            text += f"; {what}"
    return text


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file that are not blank, in UTF-8 or UTF-16, with or without a byte-order mark."""
    data = path.read_bytes()
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} must be a text file in UTF-8") from None
    return [line.strip() for line in text.lstrip("\ufeff").splitlines() if line.strip()]
