"""What a user asks for, from text to values: flags, options and the configuration made of them.

An option is declared here once, whole: type, default, bounds, unit, help, and the verbs it belongs to.
Standard library and absl only: `--help` must not wait for TensorFlow. `flags` is read by the door alone;
everybody else takes a `config.Config`.
"""
