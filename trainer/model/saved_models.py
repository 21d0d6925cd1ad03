"""SavedModel folders on disk: whole or not."""

import hashlib
import shutil
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from trainer.files import move
from trainer.values import TrainerError
from trainer.values import told_by_tensorflow as first_line


def find_defect(folder: Path) -> str:
    """Returns what is missing or damaged in a SavedModel folder, or '' when it is whole.

    Every tensor is read once, because reading checks its checksum: a cut or altered data file
    is found whatever its size (0.1 s for 90 MB).
    """
    graph = folder / "saved_model.pb"
    if not graph.is_file():
        return "saved_model.pb is missing"
    saved_model = saved_model_pb2.SavedModel()
    try:
        saved_model.ParseFromString(graph.read_bytes())
    except Exception as error:  # protobuf's DecodeError has no lasting public place.
        return f"saved_model.pb cannot be read ({type(error).__name__})"
    if not saved_model.meta_graphs:
        return "saved_model.pb is cut short"
    for asset in sorted({a.filename for graph in saved_model.meta_graphs for a in graph.asset_file_def}):
        if not (folder / "assets" / asset).is_file():
            return f"assets/{asset} is missing"
    prefix = folder / "variables" / "variables"
    if not prefix.with_suffix(".index").is_file():
        # Modules of the TF1 format may have no variables; those of TF2 always write this file.
        is_tf2 = saved_model.meta_graphs[0].HasField("object_graph_def")
        return "variables/variables.index is missing" if is_tf2 else ""
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except Exception as error:  # The reader raises tf.errors, RuntimeError and ValueError.
        return f"variables cannot be read ({first_line(error)})"
    return ""


def module_digest(folder: Path) -> str:
    """Returns the hex SHA-256 of all that a SavedModel computes with: graph, stored values and assets.

    The values count because a module may use variables that it does not list: one with only a
    signature lists none, and its graph is the same bytes after it was trained on.
    """
    digest = hashlib.sha256()
    for part in ("saved_model.pb", "variables", "assets"):
        path = folder / part
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with open(file, "rb") as data:
                    content = hashlib.file_digest(data, "sha256").hexdigest()
                digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def move_aside(folder: Path) -> Path:
    """Renames a damaged folder to `NAME.broken`, in place of an older one, and returns that path.

    Raises:
      TrainerError: it cannot be moved.
    """
    aside = folder.with_name(folder.name + ".broken")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        move(folder, aside)
    except OSError as error:
        raise TrainerError(
            f"{folder} is damaged and cannot be moved away ({error.strerror}): remove it, or name another "
            "folder with --cache_dir"
        ) from error
    return aside
