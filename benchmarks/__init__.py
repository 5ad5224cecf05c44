"""Speed against named alternatives: ratios measured in one run, never a claim without its table."""
