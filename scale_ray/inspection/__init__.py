"""What a corpus holds, and what its extraction will cost."""
