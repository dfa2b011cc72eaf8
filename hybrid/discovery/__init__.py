"""Finding gateways on the network, and proof of who they are."""
