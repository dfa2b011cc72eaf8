"""What campaigns leave on the disk, so that any end of the process can be gone on from."""
