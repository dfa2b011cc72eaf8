"""Which boxes a campaign means, and what keeps each of them out."""
