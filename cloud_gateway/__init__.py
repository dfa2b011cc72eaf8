"""The service in the cloud: AI models as a service, and the tails of split ones."""
