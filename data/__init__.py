"""Data sets: download and check them, split them, decode them once into the image cache, draw synthetic ones."""
