"""What the gateway wants this box to be: asked for by long poll, kept for starts without a network, carried out."""
