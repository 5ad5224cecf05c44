"""Data sets: get and check them, decode them once, draw synthetic ones."""
