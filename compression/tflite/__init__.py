"""From torch to TensorFlow Lite: export, int8, and answers compared in every runtime that a device may have."""
