"""The other half of a split model: the channel, its messages, and the tails."""
