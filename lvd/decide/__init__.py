"""Scores -> decisions -> honest numbers."""
