"""Models, devices, links and policies against each other: measured parts, then every cell on the virtual clock."""
