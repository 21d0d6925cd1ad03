"""Archives of unknown origin, unpacked without harm: the one way to unpack anything."""
