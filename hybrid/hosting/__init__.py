"""What it takes to be a service: who may ask, who we are, a folder of our own, the door, the end."""
