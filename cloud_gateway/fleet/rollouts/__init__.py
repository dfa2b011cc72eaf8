"""Rollouts as pure decisions: stages, a control group, comparisons, and what follows from them."""
