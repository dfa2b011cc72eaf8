"""The search for a model that fits its device, its budget and its cut; what is shipped, and what was tried."""
