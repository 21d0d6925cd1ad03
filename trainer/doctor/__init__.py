"""What this machine has, can reach and lacks. Each check returns findings; none changes anything.

Nothing here imports TensorFlow but `probe`, which runs in a process of its own: a doctor that needs a healthy
TensorFlow would be of no use.
"""
