"""Learning together: rounds on devices, their updates small and private, and what comes of them."""
