"""Options of the pictures."""

from dataclasses import dataclass

from trainer.options.declare import AT_LEAST_0, AT_LEAST_1, option


@dataclass(frozen=True)
class DataConfig:
    """Pictures"""

    source: str = option(
        "synthetic:flowers",
        "Where the pictures come from, such as folder:photos; --helpfull lists what there is.",
        short=True,
    )
    splits: str = option(
        "auto",
        "Train, validation and test, one after another: shares (50%,25%,25%), counts "
        "(1835,918,rest) or named ranges (train[:90%],train[90%:],test). auto: the source's own "
        "splits where it has them, else 80%,10%,10%.",
        short=True,
    )
    split_order: str = option(
        "auto",
        "Order that shares and counts are taken from: the source's own, or a permutation by "
        "--split_seed. auto: permuted where the source is sorted by class.",
        choices=("auto", "source", "permuted"),
    )
    split_seed: int = option(
        42,
        "Seed of the permutation; apart from --seed, so that runs with other seeds share splits.",
        bounds=AT_LEAST_0,
    )
    drop_duplicates: bool = option(
        False, "Leave pictures out of an earlier split that are byte for byte in a later one."
    )
    exif: str = option(
        "apply", "Turn pictures upright as their EXIF orientation says.", choices=("apply", "ignore")
    )
    # Not of the identity: what they change shows in the record of the splits, which decides.
    on_bad_image: str = option(
        "fail",
        "Pictures that cannot be read: stop before training and name them, or leave them out of the splits "
        "(skip).",
        choices=("fail", "skip"),
        identity=False,
        short=True,
    )
    max_pixels: int = option(
        100_000_000,
        "A picture with more pixels than this is a bad one, however small its file.",
        identity=False,
        bounds=AT_LEAST_1,
    )
    data_dir: str = option(
        "", "Folder of prepared tfds data sets; default $TFDS_DATA_DIR or tfds's own.", identity=False
    )
    checksum: str = option("", "SHA-256 that an archive of pictures must have.", identity=False)
    decode: str = option(
        "exact",
        "Decode JPEGs in full, or at 1/2, 1/4 or 1/8 where that is still as large as the network wants: "
        "faster for large photos, other pixels.",
        choices=("exact", "scaled"),
    )
    memory_budget_mb: int = option(
        64,
        "Encoded pictures, and features, are held in memory up to this many MB each; beyond it they are "
        "read from files.",
        identity=False,
        bounds=AT_LEAST_0,
    )
    synthetic_examples: int = option(
        1000,
        "How many pictures are drawn by a source that draws.",
        bounds=AT_LEAST_1,
    )
    synthetic_seed: int = option(
        0,
        "Seed of the drawn pictures.",
        bounds=AT_LEAST_0,
    )
