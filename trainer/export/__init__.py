"""Finished runs as files for other programs, each checked in a fresh process against its network.

A form is a module with a writer and a place in `models`.
"""
