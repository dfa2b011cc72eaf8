"""What both services share: the inference protocol over aiohttp, the split channel, the executor."""
