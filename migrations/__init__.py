"""Scripts that rewrote committed results once; kept so that the rewriting can be checked."""
