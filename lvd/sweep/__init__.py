"""250 jobs: which there are, what became of each, and how far they are."""
