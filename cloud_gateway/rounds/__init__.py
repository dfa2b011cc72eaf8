"""The gateway's side of learning together: campaigns, their rounds, and what comes of them."""
