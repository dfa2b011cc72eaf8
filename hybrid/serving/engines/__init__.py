"""Opened models: sessions in memory, a queue and threads that run them, batches."""
