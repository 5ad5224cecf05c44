"""What is written for readers: README tables, claims, the front page, and the notebooks as HTML."""
