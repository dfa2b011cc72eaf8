"""What must reach the gateway: stored first, sent later, never twice, never lost."""
