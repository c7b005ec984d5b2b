"""Particles found in micrographs. A stage is a function of arrays; what it finds are peaks of a score, all of them.

Scores are normalised cross-correlations, from -1 to 1, so a threshold means the same in every micrograph.
"""
