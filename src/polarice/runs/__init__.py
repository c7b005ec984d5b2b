"""Jobs at work: what those over particles, and those over micrographs, have in common."""
