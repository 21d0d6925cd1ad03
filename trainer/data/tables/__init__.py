"""Tables of pictures: which files, which columns, and what is in them, for `sources/table.py`.

A new format is a class in `formats.py`; nothing here decodes a picture.
"""
