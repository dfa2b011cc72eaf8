"""What boxes should be and how they are: desired state by long poll, reports, rollouts carried out."""
