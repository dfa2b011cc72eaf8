"""The service on an edge box: serves the box's models and keeps them up to date."""
