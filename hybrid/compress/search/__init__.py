"""Which candidate is tried next, what is known of those before, and the bench that tries it."""
