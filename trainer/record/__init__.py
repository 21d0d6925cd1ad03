"""What a run writes while it lasts: its folder, checkpoints, event files, predictions, progress.

Each file is whole or not there, and what is read back is judged before it is believed.
"""
