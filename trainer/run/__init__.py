"""What a run is made of: an experiment made real, its stages, its session, scoring and records.

Verbs of the command line and the Python API put these together. What enters here wires rooms below with one
another and knows no verb.
"""
