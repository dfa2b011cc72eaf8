"""Machines: what one is, its engines, its sensors, and the lab that emulates it."""
