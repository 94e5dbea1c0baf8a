"""The set transformer."""
