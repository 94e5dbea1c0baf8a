"""What representations are worth."""
