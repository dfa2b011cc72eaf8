"""What was measured of links and machines, with its variance."""
