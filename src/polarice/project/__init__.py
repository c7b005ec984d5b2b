"""The life of a job in its folder: what it is doing, how far it is, how it ended."""
