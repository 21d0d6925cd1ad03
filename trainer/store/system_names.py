"""Files and folders that systems and their programs leave among those of people: one list of them."""

import re

# In any case. Whatever begins with a dot is hidden: .DS_Store, ._x.jpg, .Trash-1000, .ipynb_checkpoints ...
_LEFT_BY_SYSTEMS = re.compile(
    r"__MACOSX|Icon\r|Network Trash Folder|Temporary Items|TheVolumeSettingsFolder"  # macOS
    r"|\$RECYCLE\.BIN|RECYCLE[RD]|System Volume Information|FOUND\.\d{3}"  # Windows, its disks
    r"|(eh)?thumbs\.db(:encryptable)?|ehthumbs_vista\.db|desktop\.ini|Picasa\.ini"  # and its programs
    r"|lost\+found|lost\.dir|__pycache__"  # Linux, Android, Python
    r"|[@#](eaDir|recycle|snapshot|tmp)|@Recently-Snapshot|@__thumb|@SynoResource|@SynoEAStream"  # NAS
    r"|.+@Syno(Resource|EAStream)",
    re.IGNORECASE,
)


def is_system(name: str) -> bool:
    """Returns whether a file or folder of this name is hidden, or is no file of a person."""
    return name.startswith(".") or bool(_LEFT_BY_SYSTEMS.fullmatch(name))
