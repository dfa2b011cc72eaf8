"""How long this machine takes for a model's parts: measured within a budget, kept, shared among like machines."""
