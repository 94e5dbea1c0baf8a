"""Where the videos are, and what is known of them."""
