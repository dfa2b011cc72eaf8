"""Feature codecs: one tensor to bytes and back, by the name that the wire gives each."""
