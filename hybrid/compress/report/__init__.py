"""What was tried, shipped and kept off, and why: as data, as a page, and in sentences."""
