"""What is kept between runs, and how: whole files, locks, places, downloads, archives, arrays.

Nothing here knows what the bytes mean. A key covers all that a value depends on, the code that computes it
among it (`provenance`). Standard library and NumPy only.
"""
