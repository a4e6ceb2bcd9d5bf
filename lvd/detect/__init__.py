"""Trunk and detectors: their networks, data and training, and the scores of a whole grid."""
