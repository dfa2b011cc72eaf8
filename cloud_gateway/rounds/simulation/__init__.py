"""Campaigns tried before there is a fleet: the gateway's own desk and the boxes' own learner on a virtual clock."""
