"""The plan, the commit and the account of an extraction."""
