"""Learning on the box: tasks of the gateway's campaigns, done beside inference and never in its way."""
