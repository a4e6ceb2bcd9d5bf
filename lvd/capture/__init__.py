"""Prompts -> generator -> capture."""
